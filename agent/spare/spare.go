// Package spare keeps one thing made ahead of time, where the kernel takes long
// for it and a container's start would wait.
package spare

import "sync"

// A Spare is one T that waits for its user. Set the functions before it is
// used; then it is safe for concurrent use. It makes nothing before Refill.
type Spare[T any] struct {
	Make func() (T, error)
	End  func(T)      // takes back one that was not used
	Good func(T) bool // whether one that waited can still be used; nil is always

	mu     sync.Mutex
	have   bool
	t      T
	making bool
	closed bool
	wg     sync.WaitGroup
}

// Take returns the spare one, which is the caller's then, or makes one. Call
// Refill when there is time for the next.
func (s *Spare[T]) Take() (T, error) {
	s.mu.Lock()
	have, t := s.have, s.t
	s.have = false
	s.mu.Unlock()
	if have {
		if s.Good == nil || s.Good(t) {
			return t, nil
		}
		s.End(t)
	}
	return s.Make()
}

// Peek tells which one waits, if one does.
func (s *Spare[T]) Peek() (t T, have bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.t, s.have
}

// Refill has the next one made, in the background, unless there is one.
func (s *Spare[T]) Refill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.have || s.making || s.closed {
		return
	}
	s.making = true
	s.wg.Go(func() {
		t, err := s.Make()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.making = false
		switch {
		case err != nil: // whoever needs one next will say so
		case s.closed:
			s.End(t)
		default:
			s.have, s.t = true, t
		}
	})
}

// Close ends the one that waits; there will be no other. Safe to repeat.
func (s *Spare[T]) Close() {
	s.mu.Lock()
	have := s.have
	s.have, s.closed = false, true
	s.mu.Unlock()
	s.wg.Wait()
	if have {
		s.End(s.t)
	}
}
