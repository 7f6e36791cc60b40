package container

import (
	"context"
	"fmt"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"machine/agent/fault"
)

// Pause freezes a running container.
func (m *Manager) Pause(ctx context.Context, ref string) error {
	return m.freeze(ctx, ref, container.StateRunning, container.StatePaused)
}

// Unpause thaws a paused container.
func (m *Manager) Unpause(ctx context.Context, ref string) error {
	return m.freeze(ctx, ref, container.StatePaused, container.StateRunning)
}

func (m *Manager) freeze(ctx context.Context, ref string, from, to container.ContainerState) error {
	c, err := m.hold(ctx, ref)
	if err != nil {
		return err
	}
	defer c.unlock()
	r := c.rec.Load()
	if r.State.Status != from {
		switch {
		case r.State.Status == container.StatePaused:
			return fault.Conflict.Errorf("Container %s is already paused", r.ID)
		case from == container.StatePaused:
			return fault.Conflict.Errorf("Container %s is not paused", r.ID)
		}
		return fault.Conflict.Errorf("Container %s is not running", r.ID)
	}
	task, err := c.running()
	if err != nil {
		return err
	}
	act, ev := task.Pause, events.ActionPause
	if to == container.StateRunning {
		act, ev = task.Resume, events.ActionUnPause
	}
	if err := act(); err != nil {
		return fmt.Errorf("cannot %s container %s: %w", ev, r.ID, err)
	}
	if err := c.set(func(r *Record) { r.State.Status = to }); err != nil {
		return err
	}
	c.event(ev)
	return nil
}
