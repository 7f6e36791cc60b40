package container

import "github.com/moby/moby/api/types/container"

type waiter struct {
	cond container.WaitCondition
	ch   chan container.WaitResponse
}

// wake answers all waiters of a condition; c.mu is held. The removal of a
// container wakes everybody.
func (c *Container) wake(cond container.WaitCondition, code int, msg string) {
	resp := container.WaitResponse{StatusCode: int64(code)}
	if msg != "" {
		resp.Error = &container.WaitExitError{Message: msg}
	}
	keep := c.waiters[:0]
	for _, w := range c.waiters {
		if w.cond == cond || cond == condRemoved {
			w.ch <- resp
		} else {
			keep = append(keep, w)
		}
	}
	c.waiters = keep
}

// Wait registers for a condition and returns a channel that gets the answer
// once. The registration is made when Wait returns: what happens afterwards
// is not missed. Forget gives the registration up.
func (m *Manager) Wait(ref string, cond container.WaitCondition) (<-chan container.WaitResponse, func(), error) {
	c, err := m.find(ref)
	if err != nil {
		return nil, nil, err
	}
	ch := make(chan container.WaitResponse, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rec.Load()
	switch {
	case c.removed:
		ch <- container.WaitResponse{StatusCode: int64(c.exitCode)}
		return ch, func() {}, nil
	case cond == condNotRunning && !r.State.Running():
		ch <- container.WaitResponse{StatusCode: int64(r.State.ExitCode)}
		return ch, func() {}, nil
	}
	c.waiters = append(c.waiters, waiter{cond, ch})
	forget := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for i, w := range c.waiters {
			if w.ch == ch {
				c.waiters = append(c.waiters[:i], c.waiters[i+1:]...)
				return
			}
		}
	}
	return ch, forget, nil
}
