package container

import (
	"context"
	"strconv"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"machine/agent/fault"
	"machine/agent/model"
)

func itoa(n int) string { return strconv.Itoa(n) }

// Attach is one client's connection to a container, made before or while it
// runs.
type Attach struct {
	c    *Container
	opts model.AttachOptions
	TTY  bool
}

// Attach checks that a container can be attached to.
func (m *Manager) Attach(ref string, o model.AttachOptions) (*Attach, error) {
	c, err := m.find(ref)
	if err != nil {
		return nil, err
	}
	r := c.rec.Load()
	switch r.State.Status {
	case container.StatePaused:
		return nil, fault.Conflict.Errorf("container %s is paused, unpause the container before attach", r.ID)
	case container.StateRestarting:
		return nil, fault.Conflict.Errorf("container %s is restarting, wait until the container is running", r.ID)
	}
	c.event(events.ActionAttach)
	o.Stdin = o.Stdin && r.Config.OpenStdin
	return &Attach{c: c, opts: o, TTY: r.Config.Tty}, nil
}

// Streams returns the streams of the run: the present one, or the next one
// when the container does not run yet; it waits for that. They were
// connected before the program's first byte.
func (a *Attach) Streams(ctx context.Context) (*model.Streams, error) {
	a.c.mu.Lock()
	task := a.c.task
	if task == nil && !a.c.removed {
		ch := make(chan *model.Streams, 1)
		a.c.pending = append(a.c.pending, pendingAttach{a.opts, ch})
		a.c.mu.Unlock()
		select {
		case s := <-ch:
			if s == nil {
				return nil, fault.Conflict.Errorf("container %s did not start", a.c.id)
			}
			return s, nil
		case <-ctx.Done():
			a.c.dropPending(ch)
			return nil, ctx.Err()
		}
	}
	a.c.mu.Unlock()
	if task == nil {
		return nil, fault.NotFound.Errorf("No such container: %s", a.c.id)
	}
	return task.Attach(a.opts)
}

// pendingAttach waits for a container to be started.
type pendingAttach struct {
	o  model.AttachOptions
	ch chan *model.Streams
}

// dropPending gives up waiting; streams that came meanwhile are closed.
func (c *Container) dropPending(ch chan *model.Streams) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, p := range c.pending {
		if p.ch == ch {
			c.pending = append(c.pending[:i], c.pending[i+1:]...)
			return
		}
	}
	select {
	case s := <-ch:
		if s != nil {
			s.Close()
		}
	default:
	}
}

// connectPending attaches those who waited to a task that was created but
// not started; nil answers them that there is none. c.mu is held.
func (c *Container) connectPending(task model.Task) {
	for _, p := range c.pending {
		if task == nil {
			p.ch <- nil
			continue
		}
		s, err := task.Attach(p.o)
		if err != nil {
			c.m.o.Log.Error("attach", "container", c.id, "error", err)
			s = nil
		}
		p.ch <- s
	}
	c.pending = nil
}

// Logs reads a container's log record by record.
func (m *Manager) Logs(ctx context.Context, ref string, o model.LogOptions, f func(*model.LogRecord) error) error {
	c, err := m.find(ref)
	if err != nil {
		return err
	}
	lc, _, done, err := c.logSource()
	if err != nil {
		return err
	}
	return m.o.ReadLog(ctx, lc, o, done, f)
}

// LogInfo tells how a container's log is to be framed, and whether there is
// one to read.
func (m *Manager) LogInfo(ref string) (tty bool, err error) {
	c, err := m.find(ref)
	if err != nil {
		return false, err
	}
	_, tty, _, err = c.logSource()
	return tty, err
}

func (c *Container) logSource() (model.LogConfig, bool, <-chan struct{}, error) {
	r := c.rec.Load()
	lc, err := logConfig(c.m.logPath(r), r.HostConfig.LogConfig, r)
	if err != nil {
		return lc, false, nil, err
	}
	if lc.Driver == "none" {
		return lc, false, nil, fault.NotImplemented.Errorf("configured logging driver does not support reading")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.task != nil {
		return lc, r.Config.Tty, c.task.Done(), nil
	}
	done := make(chan struct{})
	close(done)
	return lc, r.Config.Tty, done, nil
}

// Top lists the processes of a running container by their host's numbers.
func (m *Manager) Top(ref string) ([]int, error) {
	c, err := m.find(ref)
	if err != nil {
		return nil, err
	}
	task, err := c.running()
	if err != nil {
		return nil, fault.Conflict.Errorf("container %s is not running", c.id)
	}
	c.event(events.ActionTop)
	return task.Pids()
}

// Sample is one reading of a container's counters; nil Stats: not running.
type Sample struct {
	ID, Name string
	Stats    *model.Stats
	Links    map[string]model.LinkStats
}

// Stats reads a container's counters.
func (m *Manager) Stats(ctx context.Context, ref string) (*Sample, error) {
	c, err := m.find(ref)
	if err != nil {
		return nil, err
	}
	r := c.rec.Load()
	s := &Sample{ID: c.id, Name: r.Name}
	task, err := c.running()
	if err != nil {
		return s, nil
	}
	if s.Stats, err = task.Stats(); err != nil {
		return s, nil // it ended while we looked
	}
	if r.SandboxKey != "" {
		s.Links, _ = m.o.Networks.Stats(ctx, r.SandboxKey)
	}
	return s, nil
}
