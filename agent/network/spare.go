package network

import (
	"os"
	"sync"
)

// A spare is a namespace made ahead of time: the kernel takes long for one,
// and a start waits for it. It has no name, so that nothing is left of it when
// the agent ends, however that comes. It is ready when make is set.
type spare struct {
	make   func() (*os.File, error)
	mu     sync.Mutex
	ns     *os.File
	making bool
	closed bool
	wg     sync.WaitGroup
}

// take returns a namespace, which the caller closes, and has the next one
// made.
func (s *spare) take() (*os.File, error) {
	s.mu.Lock()
	ns := s.ns
	s.ns = nil
	s.mu.Unlock()
	if ns != nil {
		s.refill()
		return ns, nil
	}
	defer s.refill()
	return s.make()
}

func (s *spare) refill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.making || s.closed || s.ns != nil {
		return
	}
	s.making = true
	s.wg.Go(func() {
		ns, err := s.make()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.making = false
		if err != nil { // whoever needs one next will say so
			return
		}
		if s.closed {
			ns.Close()
			return
		}
		s.ns = ns
	})
}

func (s *spare) close() {
	s.mu.Lock()
	s.closed = true
	if s.ns != nil {
		s.ns.Close()
		s.ns = nil
	}
	s.mu.Unlock()
	s.wg.Wait()
}
