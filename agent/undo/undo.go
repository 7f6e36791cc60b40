// Package undo rolls back a half-done sequence.
package undo

import "errors"

// A Stack holds the undo steps of a sequence. Its zero value is ready. It is
// not for use by several goroutines at once.
//
//	var u undo.Stack
//	defer u.Run(&err)
//	u.Add(deleteVeth) // after making it
//	u.Keep()          // after the last step
type Stack struct{ steps []func() error }

// Add pushes the step that reverses what was just done.
func (s *Stack) Add(f func() error) { s.steps = append(s.steps, f) }

// Keep drops all steps: the sequence succeeded.
func (s *Stack) Keep() { s.steps = nil }

// Run runs the steps, last first, and joins any failure onto *err.
func (s *Stack) Run(err *error) {
	for i := len(s.steps) - 1; i >= 0; i-- {
		*err = errors.Join(*err, s.steps[i]())
	}
	s.steps = nil
}
