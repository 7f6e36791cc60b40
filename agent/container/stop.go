package container

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"machine/agent/failpoint"
	"machine/agent/fault"
	"machine/agent/model"
)

// defaultStopTimeout is how long a container has to end on its stop signal.
const defaultStopTimeout = 10 * time.Second

// killGrace is how long after SIGKILL an act still waits: a process in
// uninterruptible sleep must not hold the caller for ever.
const killGrace = 10 * time.Second

// StopOptions are those of stop and restart. A nil Timeout is the
// container's own, a negative one is for ever; an empty Signal is the
// container's own.
type StopOptions struct {
	Timeout *int
	Signal  string
}

// Stop ends a container: its stop signal, then, after the timeout, SIGKILL.
// One that does not run is Unchanged.
func (m *Manager) Stop(ctx context.Context, ref string, o StopOptions) error {
	c, err := m.find(ref)
	if err != nil {
		return err
	}
	c.setStopping(true)
	defer c.setStopping(false)
	waiting := c.rec.Load().State.Status == container.StateRestarting
	c.cancelRestart()
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	r := c.rec.Load()
	if !r.State.Running() {
		return fault.Unchanged.Errorf("container %s is not running", r.Name)
	}
	if waiting && r.State.Status == container.StateRestarting {
		c.settleStopped()
		c.event(events.ActionStop)
		return c.set(func(r *Record) { r.State.ManuallyStopped = true })
	}
	return c.stop(ctx, o)
}

// stop does the work; the op lock is held and the container runs.
func (c *Container) stop(ctx context.Context, o StopOptions) error {
	task, err := c.running()
	if err != nil {
		c.goneSoon(ctx)
		return nil // it ended by itself meanwhile
	}
	if err := c.set(func(r *Record) { r.State.ManuallyStopped = true }); err != nil {
		return err
	}
	r := c.rec.Load()
	failpoint.Hit("stop.marked")
	sig, timeout, err := stopParams(r, o)
	if err != nil {
		return err
	}
	if r.State.Status == container.StatePaused { // a frozen process takes no signal
		task.Resume()
	}
	if err := c.signal(task, sig); (err == nil || ending(err)) && c.endsWithin(ctx, task, timeout) {
		failpoint.Hit("stop.ended")
		c.goneSoon(ctx)
		c.event(events.ActionStop)
		failpoint.Hit("stop.told")
		return nil
	}
	if err := ctx.Err(); err != nil {
		return fault.Unavailable.Errorf("stop of container %s: %w", r.Name, err)
	}
	if err := c.signal(task, syscall.SIGKILL); err != nil && !ending(err) {
		return err
	}
	if !c.endsWithin(ctx, task, killGrace) {
		return fault.Internal.Errorf("cannot stop container: %s: tried to kill container, but did not receive an exit event", r.ID)
	}
	c.goneSoon(ctx)
	c.event(events.ActionStop)
	return nil
}

func stopParams(r *Record, o StopOptions) (syscall.Signal, time.Duration, error) {
	sig := syscall.SIGTERM
	for _, s := range []string{r.Config.StopSignal, o.Signal} {
		if s == "" {
			continue
		}
		n, err := model.ParseSignal(s)
		if err != nil {
			return 0, 0, err
		}
		sig = n
	}
	t := defaultStopTimeout
	for _, p := range []*int{r.Config.StopTimeout, o.Timeout} {
		if p != nil {
			t = time.Duration(*p) * time.Second
		}
	}
	return sig, t, nil
}

// ending tells whether a signal failed because the container has just ended
// by itself: what was wanted, then.
func ending(err error) bool {
	return errors.Is(err, syscall.ESRCH) || fault.Is(err, fault.Conflict)
}

// signal sends a signal and says so.
func (c *Container) signal(t model.Task, s syscall.Signal) error {
	if err := t.Kill(s); err != nil {
		return fmt.Errorf("signal %d to container %s: %w", s, c.id, err)
	}
	failpoint.Hit("signal.sent")
	c.event(events.ActionKill, "signal", strconv.Itoa(int(s)))
	return nil
}

// endsWithin waits for the end of a run; a negative time is for ever.
func (c *Container) endsWithin(ctx context.Context, t model.Task, d time.Duration) bool {
	var limit <-chan time.Time
	if d >= 0 {
		tm := time.NewTimer(d)
		defer tm.Stop()
		limit = tm.C
	}
	select {
	case <-t.Done():
		return true
	case <-limit:
		return false
	case <-ctx.Done():
		return false
	}
}

// Restart stops a running container and starts it.
func (m *Manager) Restart(ctx context.Context, ref string, o StopOptions) error {
	c, err := m.find(ref)
	if err != nil {
		return err
	}
	c.setStopping(true)
	c.cancelRestart()
	if err := c.lock(ctx); err != nil {
		c.setStopping(false)
		return err
	}
	defer c.unlock()
	r := c.rec.Load()
	if r.State.Status == container.StateRestarting {
		c.settleStopped()
	} else if r.State.Running() {
		if err := c.stop(ctx, o); err != nil {
			c.setStopping(false)
			return fmt.Errorf("Cannot restart container %s: %w", r.Name, err)
		}
	}
	c.setStopping(false)
	failpoint.Hit("restart.stopped")
	if err := c.start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	failpoint.Hit("restart.started")
	c.event(events.ActionRestart)
	return nil
}

// Kill sends a signal. One that does not run is a Conflict.
func (m *Manager) Kill(ctx context.Context, ref, signal string) error {
	c, err := m.find(ref)
	if err != nil {
		return err
	}
	sig := syscall.SIGKILL
	if signal != "" {
		if sig, err = model.ParseSignal(signal); err != nil {
			return err
		}
	}
	r := c.rec.Load()
	task, err := c.running()
	if err != nil {
		if r.State.Status == container.StateRestarting {
			c.setStopping(true)
			c.cancelRestart()
			c.settleStopped()
			c.setStopping(false)
			return nil
		}
		return fault.Conflict.Errorf("cannot kill container: %s: container %s is not running", ref, r.ID)
	}
	own, _, err := stopParams(r, StopOptions{})
	if err != nil {
		return err
	}
	if sig == syscall.SIGKILL || sig == own { // as stop: the policy leaves it alone
		if err := c.set(func(r *Record) { r.State.ManuallyStopped = true }); err != nil {
			return err
		}
	}
	failpoint.Hit("kill.marked")
	if r.State.Status == container.StatePaused && sig == syscall.SIGKILL {
		defer task.Resume()
	}
	if err := c.signal(task, sig); err != nil {
		return err
	}
	failpoint.Hit("kill.sent")
	if sig == syscall.SIGKILL && c.endsWithin(ctx, task, killGrace) {
		c.goneSoon(ctx)
	}
	return nil
}

// Marks of a removal that goes on, beside the container's folder; the second
// says that its anonymous volumes go, too.
const (
	markRemoving = ".removing"
	markVolumes  = ".removing-volumes"
)

func (c *Container) exitCodeOf(r *Record) int {
	if r.State.HasBeenStarted {
		return r.State.ExitCode
	}
	return c.exitCode
}
