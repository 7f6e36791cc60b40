// Package faults kills the agent at every named point between the steps of
// what it does (agent/failpoint), starts it again, and holds it to its word:
// within seconds nothing leaks, what was acknowledged is there, and all can
// be used. It is slow, so "make faults" runs it and "make test" does not.
package faults
