package container

import (
	"cmp"
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"

	"machine/agent/failpoint"
	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/undo"
)

// Start runs a container. One that runs already is Unchanged; a paused one
// is a Conflict. Errors of the program itself (not found, not executable)
// carry Docker's texts and kind Invalid.
func (m *Manager) Start(ctx context.Context, ref string) error {
	c, err := m.hold(ctx, ref)
	if err != nil {
		return err
	}
	defer c.unlock()
	r := c.rec.Load()
	switch r.State.Status {
	case container.StateRunning:
		return fault.Unchanged.Errorf("container %s is running already", r.Name)
	case container.StatePaused:
		return fault.Conflict.Errorf("cannot start a paused container, try unpause instead")
	case container.StateRemoving, container.StateDead:
		return fault.Conflict.Errorf("container is marked for removal and cannot be started")
	}
	c.cancelRestart()
	c.setStopping(false)
	err = c.start(context.WithoutCancel(ctx))
	if err != nil && r.HostConfig.AutoRemove {
		go m.Remove(context.WithoutCancel(ctx), c.id, RemoveOptions{Volumes: true, Force: true})
	}
	return err
}

// start does the work of Start; the op lock is held.
func (c *Container) start(ctx context.Context) (err error) {
	m := c.m
	r := c.rec.Load()
	var u undo.Stack
	defer func() {
		if err != nil {
			failed := err
			u.Run(&err)
			c.bookFailure(failed)
		}
	}()
	c.free(ctx)
	u.Add(func() error { os.Remove(m.taskDir(c.id)); return nil }) // empty by then
	if err := m.useVolumes(ctx, r); err != nil {
		return err
	}
	failpoint.Hit("start.volumes")
	c.tellVolumes(r, events.ActionMount)
	u.Add(func() error { c.tellVolumes(r, events.ActionUnmount); return nil })
	r = r.clone()
	r.Remap = m.remap(r.HostConfig)
	if err := checkUserns(r.Remap, r.HostConfig); err != nil { // the engine's settings may be others now
		return err
	}
	key, err := c.sandbox(ctx, r, &u)
	if err != nil {
		return err
	}
	r.SandboxKey = key
	failpoint.Hit("start.sandbox")
	if err := m.makeFiles(r); err != nil {
		return err
	}
	failpoint.Hit("start.files")
	netns := key
	if r.HostConfig.NetworkMode.IsHost() {
		netns = "host"
	}
	b, done, err := m.bundle(ctx, r, netns)
	if err != nil {
		return err
	}
	defer done()
	task, eps, err := c.assemble(ctx, r, b, &u)
	if err != nil {
		return err
	}
	clean := context.WithoutCancel(ctx)
	u.Add(func() error { return task.Delete(clean) })
	failpoint.Hit("start.assembled")
	if err := m.writeNetFiles(ctx, r, eps); err != nil {
		return err
	}
	failpoint.Hit("start.netfiles")
	if err := c.launch(ctx, r, task, eps, key); err != nil {
		return err
	}
	u.Keep()
	return nil
}

// assemble makes the task and attaches the networks at the same time: the
// one sets up mounts, the other links, and neither needs the other.
func (c *Container) assemble(ctx context.Context, r *Record, b *model.Bundle, u *undo.Stack) (model.Task, map[string]*model.Endpoint, error) {
	type made struct {
		t   model.Task
		err error
	}
	ch := make(chan made, 1)
	go func() {
		t, err := c.m.o.Tasks.Create(ctx, b)
		failpoint.Hit("start.task")
		ch <- made{t, err}
	}()
	eps, netErr := c.attachAll(ctx, r, r.SandboxKey, u)
	failpoint.Hit("start.networks")
	t := <-ch
	if t.err == nil && netErr != nil {
		t.t.Delete(context.WithoutCancel(ctx))
	}
	if netErr != nil {
		return nil, nil, netErr
	}
	if t.err != nil {
		return nil, nil, startError(t.err)
	}
	return t.t, eps, nil
}

// launch books the container as running, then lets its program go.
func (c *Container) launch(ctx context.Context, r *Record, task model.Task, eps map[string]*model.Endpoint, key string) error {
	rn := newRun()
	c.mu.Lock()
	c.task, c.endpoints, c.run = task, eps, rn
	c.connectPending(task)
	err := c.setLocked(func(n *Record) {
		n.SandboxKey, n.Remap = key, r.Remap
		n.Networks, n.Ports = operational(r, eps)
		h := (*container.Health)(nil)
		if hasHealth(n.Config.Healthcheck) {
			h = &container.Health{Status: container.Starting}
		}
		n.State = State{Status: container.StateRunning, Pid: task.Pid(), StartedAt: c.m.o.Clock.Now().UTC(), FinishedAt: n.State.FinishedAt, HasBeenStarted: true, Health: h}
	})
	c.mu.Unlock()
	failpoint.Hit("start.booked")
	if err == nil {
		err = startError(task.Start(ctx))
		failpoint.Hit("start.running")
	}
	if err != nil {
		c.mu.Lock()
		c.task, c.endpoints = nil, nil
		c.mu.Unlock()
		close(rn.booked)
		close(rn.ended)
		return err
	}
	c.event(events.ActionStart)
	failpoint.Hit("start.told")
	c.watch(task, rn)
	return nil
}

// watch starts the monitor and the health probes of a running task.
func (c *Container) watch(task model.Task, rn *run) {
	c.m.bg.Go(func() { c.monitor(task, rn) })
	c.startHealth(task)
}

// startError makes the runtime's error the request's: clients map the text
// to exit codes 126 and 127.
func startError(err error) error {
	if err == nil {
		return nil
	}
	return fault.Invalid.Errorf("failed to create task for container: failed to create shim task: OCI runtime create failed: unable to start container process: %w: unknown", err)
}

// bookFailure notes why the container did not start, with Docker's codes.
func (c *Container) bookFailure(err error) {
	code := 128
	switch s := err.Error(); {
	case strings.Contains(s, "executable file not found"), strings.Contains(s, "no such file or directory"):
		code = 127
	case strings.Contains(s, "permission denied"), strings.Contains(s, "is a directory"):
		code = 126
	}
	e := c.set(func(r *Record) {
		r.State.Status, r.State.Pid, r.State.ExitCode, r.State.Error = container.StateExited, 0, code, err.Error()
		if !r.State.HasBeenStarted {
			r.State.Status = container.StateCreated
		}
		r.State.FinishedAt = c.m.o.Clock.Now().UTC()
		r.SandboxKey, r.Ports = "", nil
	})
	if e != nil {
		c.m.o.Log.Error("save container", "container", c.id, "error", e)
	}
	c.mu.Lock()
	c.exitCode = code
	c.connectPending(nil)
	// Nobody who waits for the next exit is told: there was no run. The client
	// would print its second-hand error beside that of the start.
	c.wake(condNotRunning, code, "")
	c.mu.Unlock()
}

// tellVolumes tells of each volume that the container begins or ceases to use.
func (c *Container) tellVolumes(r *Record, a events.Action) {
	for _, mt := range r.Mounts {
		if mt.Type != mount.TypeVolume {
			continue
		}
		attrs := map[string]string{"driver": cmp.Or(mt.Driver, "local"), "container": c.id}
		if a == events.ActionMount {
			attrs["destination"], attrs["propagation"], attrs["read/write"] = mt.Destination, string(mt.Propagation), strconv.FormatBool(mt.RW)
		}
		c.m.o.Publish(events.VolumeEventType, a, mt.Name, attrs)
	}
}

// useVolumes mounts the volumes again: after a restart of the host they are
// there, but not mounted.
func (m *Manager) useVolumes(ctx context.Context, r *Record) error {
	for _, mt := range r.Mounts {
		if mt.Type != mount.TypeVolume {
			continue
		}
		if _, err := m.o.Volumes.Use(ctx, model.VolumeRequest{Name: mt.Name, Driver: mt.Driver, Options: mt.Opts}, r.ID); err != nil {
			return err
		}
	}
	return nil
}

// sandbox returns the network namespace to run in; empty for the host's.
func (c *Container) sandbox(ctx context.Context, r *Record, u *undo.Stack) (string, error) {
	mode := r.HostConfig.NetworkMode
	switch {
	case mode.IsHost():
		return "", nil
	case mode.IsContainer():
		id := strings.TrimPrefix(string(mode), "container:")
		other, err := c.m.find(id)
		if err != nil {
			return "", err
		}
		o := other.rec.Load()
		if o.State.Status != container.StateRunning {
			return "", fault.Conflict.Errorf("cannot join network of a non running container: %s", id)
		}
		if r.Remap != nil && o.Remap == nil {
			return "", fault.Invalid.Errorf("cannot join network of container %s: it runs in the host's user namespace (hint: use --userns=host for this container, too)", id)
		}
		if o.HostConfig.NetworkMode.IsHost() {
			return "", nil
		}
		return o.SandboxKey, nil
	}
	key, err := c.m.o.Networks.NewSandbox(ctx, c.id, r.Remap != nil)
	if err != nil {
		return "", err
	}
	clean := context.WithoutCancel(ctx)
	u.Add(func() error { return c.m.o.Networks.RemoveSandbox(clean, key) })
	return key, nil
}

// cancelRestart ends a back-off.
func (c *Container) cancelRestart() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopRetry != nil {
		c.stopRetry()
		c.stopRetry = nil
	}
}

func (c *Container) setStopping(v bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopping = v
}

var errNotRunning = errors.New("is not running")

// running returns the task of a running container, or a Conflict.
func (c *Container) running() (model.Task, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.task == nil {
		return nil, fault.Conflict.Errorf("container %s %w", c.id, errNotRunning)
	}
	return c.task, nil
}

// goneSoon waits, but not for ever, until the end of a run has been booked.
func (c *Container) goneSoon(ctx context.Context) {
	if rn := c.lastRun(); rn != nil {
		await(ctx, rn.booked)
	}
}

// free waits, but not for ever, until the last run has given all back.
func (c *Container) free(ctx context.Context) {
	if rn := c.lastRun(); rn != nil {
		await(ctx, rn.ended)
	}
}

func (c *Container) lastRun() *run {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.run
}

func await(ctx context.Context, ch <-chan struct{}) {
	select {
	case <-ch:
		return
	default:
	}
	t := time.NewTimer(10 * time.Second)
	defer t.Stop()
	select {
	case <-ch:
	case <-ctx.Done():
	case <-t.C:
	}
}
