package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"

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

// RemoveOptions are those of rm.
type RemoveOptions struct {
	Volumes bool // anonymous volumes too
	Force   bool // kill it first
	Link    bool // only the link: not supported
	auto    bool // by --rm: the run has ended already
}

// Remove deletes a container. A running one without Force is a Conflict.
func (m *Manager) Remove(ctx context.Context, ref string, o RemoveOptions) error {
	c, err := m.find(ref)
	if err != nil {
		return err
	}
	if o.Link {
		return fault.Invalid.Errorf("links are removed with their containers")
	}
	if o.Force {
		c.setStopping(true)
		c.cancelRestart()
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	c.mu.Lock()
	gone := c.removed
	c.mu.Unlock()
	if gone {
		if o.auto {
			return nil
		}
		return fault.NotFound.Errorf("No such container: %s", ref)
	}
	r := c.rec.Load()
	if r.State.Running() {
		if !o.Force {
			c.setStopping(false)
			state := string(r.State.Status)
			return fault.Conflict.Errorf("cannot remove container %q: container is %s: stop the container before removing or force remove", r.Name, state)
		}
		c.cancelRestart()
		if err := c.killForRemoval(ctx, r); err != nil {
			return err
		}
	}
	failpoint.Hit("rm.ready")
	return m.remove(ctx, c, o)
}

// killForRemoval ends the run at once.
func (c *Container) killForRemoval(ctx context.Context, r *Record) error {
	task, err := c.running()
	if err != nil {
		c.goneSoon(ctx)
		return nil
	}
	if r.State.Status == container.StatePaused {
		defer task.Resume()
	}
	if err := c.signal(task, syscall.SIGKILL); err != nil && !ending(err) {
		return err
	}
	if r.State.Status == container.StatePaused {
		task.Resume()
	}
	if !c.endsWithin(ctx, task, killGrace) {
		return fault.Internal.Errorf("could not kill container %s: its processes do not end", r.ID)
	}
	c.goneSoon(ctx)
	return nil
}

// remove deletes what a stopped container owns, its record last: an agent that
// dies in between finds the mark of the removal, and goes on.
func (m *Manager) remove(ctx context.Context, c *Container, o RemoveOptions) error {
	ctx = context.WithoutCancel(ctx)
	r := c.rec.Load()
	c.note(func(r *Record) { r.State.Status = container.StateRemoving })
	err := c.markRemoval(o.Volumes)
	failpoint.Hit("rm.marked")
	if err == nil {
		err = m.o.Layers.Remove(ctx, c.id)
	}
	failpoint.Hit("rm.layer")
	if err == nil {
		err = os.RemoveAll(m.dir(c.id))
		failpoint.Hit("rm.files")
	}
	if err == nil {
		m.releaseVolumes(ctx, r, o.Volumes)
		failpoint.Hit("rm.volumes")
		err = m.recs.Delete(c.id)
		failpoint.Hit("rm.record")
	}
	m.unmarkRemoval(c.id)
	if err != nil {
		c.set(func(r *Record) { r.State.Status, r.State.Error = container.StateDead, err.Error() })
		return fmt.Errorf("remove container %s: %w", r.Name, err)
	}
	c.mu.Lock()
	c.removed = true
	c.mu.Unlock()
	m.mu.Lock()
	delete(m.byID, c.id)
	if m.names[r.Name] == c.id {
		delete(m.names, r.Name)
	}
	for id := range c.execIDs {
		delete(m.execs, id)
	}
	m.mu.Unlock()
	c.event(events.ActionDestroy)
	c.mu.Lock()
	c.wake(condRemoved, c.exitCodeOf(r), "")
	c.mu.Unlock()
	return nil
}

// Marks of a removal that goes on, beside the container's folder; the second
// says that its anonymous volumes go, too.
const (
	markRemoving = ".removing"
	markVolumes  = ".removing-volumes"
)

// markRemoval is what an agent that comes later knows the removal by. It does
// not wait for the disk: what follows is written behind it.
func (c *Container) markRemoval(volumes bool) error {
	mark := markRemoving
	if volumes {
		mark = markVolumes
	}
	f, err := os.Create(c.m.dir(c.id) + mark)
	if err != nil {
		return err
	}
	return f.Close()
}

func (m *Manager) unmarkRemoval(id string) {
	os.Remove(m.dir(id) + markRemoving)
	os.Remove(m.dir(id) + markVolumes)
}

// removal tells whether a removal was cut short, and whether of the volumes.
func (c *Container) removal() (marked, volumes bool) {
	_, err := os.Lstat(c.m.dir(c.id) + markVolumes)
	if err == nil {
		return true, true
	}
	_, err = os.Lstat(c.m.dir(c.id) + markRemoving)
	return err == nil, false
}

func (c *Container) exitCodeOf(r *Record) int {
	if r.State.HasBeenStarted {
		return r.State.ExitCode
	}
	return c.exitCode
}

// releaseVolumes drops the claims, and with anon the anonymous volumes.
func (m *Manager) releaseVolumes(ctx context.Context, r *Record, anon bool) {
	for _, mt := range r.Mounts {
		if mt.Type != mount.TypeVolume {
			continue
		}
		err := m.o.Volumes.Release(ctx, mt.Name, r.ID)
		if anon && mt.Anonymous {
			if e := m.o.Volumes.Remove(ctx, mt.Name); e != nil && !fault.Is(e, fault.Conflict) && !fault.Is(e, fault.NotFound) {
				err = errors.Join(err, e)
			}
		}
		if err != nil {
			m.o.Log.Error("release volume", "volume", mt.Name, "container", r.ID, "error", err)
		}
	}
}
