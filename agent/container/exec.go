package container

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"machine/agent/failpoint"
	"machine/agent/fault"
	"machine/agent/model"
)

// execKept is how long an ended exec can still be inspected.
const execKept = 5 * time.Minute

type execState struct {
	id  string
	c   *Container
	req container.ExecCreateRequest

	mu      sync.Mutex
	started bool
	done    bool
	code    int
	pid     int
	proc    model.ExecProcess
	exited  chan struct{}
}

// ExecCreate prepares a process in a running container.
func (m *Manager) ExecCreate(ref string, req container.ExecCreateRequest) (string, error) {
	c, err := m.find(ref)
	if err != nil {
		return "", err
	}
	if err := c.execReady(); err != nil {
		return "", err
	}
	if len(req.Cmd) == 0 {
		return "", fault.Invalid.Errorf("no exec command specified")
	}
	e := &execState{id: model.NewID(), c: c, req: req, exited: make(chan struct{})}
	m.mu.Lock()
	m.execs[e.id] = e
	c.execIDs[e.id] = true
	m.mu.Unlock()
	failpoint.Hit("exec.created")
	c.event(events.Action("exec_create: "+strings.Join(req.Cmd, " ")), "execID", e.id)
	return e.id, nil
}

func (c *Container) execReady() error {
	switch r := c.rec.Load(); r.State.Status {
	case container.StateRunning:
		return nil
	case container.StatePaused:
		return fault.Conflict.Errorf("container %s is paused, unpause the container before exec", r.Name)
	case container.StateRestarting:
		return fault.Conflict.Errorf("Container %s is restarting, wait until the container is running", r.ID)
	default:
		return fault.Conflict.Errorf("container %s is not running", r.ID)
	}
}

func (m *Manager) exec(id string) (*execState, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	e, ok := m.execs[id]
	if !ok {
		return nil, fault.NotFound.Errorf("No such exec instance: %s", id)
	}
	return e, nil
}

// An ExecSession is a started exec with its streams.
type ExecSession struct {
	*model.Streams
	Wait func(ctx context.Context) // until the process has ended and was booked
}

// ExecTTY tells how to frame an exec's streams, before it is started.
func (m *Manager) ExecTTY(id string) (bool, error) {
	e, err := m.exec(id)
	if err != nil {
		return false, err
	}
	return e.req.Tty, e.c.execReady()
}

// ExecStart starts an exec; its streams are connected before its first byte.
// An error of the program itself is booked as exit 126 or 127. A second
// start is a Conflict.
func (m *Manager) ExecStart(ctx context.Context, id string, size *[2]uint, detach bool) (*ExecSession, error) {
	e, err := m.exec(id)
	if err != nil {
		return nil, err
	}
	if err := e.c.execReady(); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.started {
		return nil, fault.Conflict.Errorf("exec command has already run")
	}
	task, err := e.c.running()
	if err != nil {
		return nil, err
	}
	r := e.c.rec.Load()
	p := e.process(r)
	p.OpenStdin = e.req.AttachStdin && !detach
	if size == nil {
		size = e.req.ConsoleSize
	}
	if size != nil {
		p.ConsoleSize = *size
	}
	e.started = true
	failpoint.Hit("exec.begun")
	e.c.event(events.Action("exec_start: "+strings.Join(e.req.Cmd, " ")), "execID", e.id)
	proc, err := task.Exec(context.WithoutCancel(ctx), p)
	if err != nil {
		return nil, e.failed(err)
	}
	e.proc, e.pid = proc, proc.Pid()
	failpoint.Hit("exec.running")
	s, err := proc.Attach()
	if err != nil {
		return nil, err
	}
	closed := make(chan struct{})
	shut := s.Close
	s.Close = sync.OnceValue(func() error { defer close(closed); return shut() })
	m.bg.Go(func() { m.watchExec(e, proc, closed) })
	return &ExecSession{Streams: s, Wait: func(ctx context.Context) {
		select {
		case <-e.exited:
		case <-ctx.Done():
		}
	}}, nil
}

// failed books an exec whose program could not be run; e.mu is held.
func (e *execState) failed(err error) error {
	s := err.Error()
	code := 126
	if strings.Contains(s, "executable file not found") || strings.Contains(s, "no such file or directory") {
		code = 127
	}
	e.done, e.code = true, code
	close(e.exited)
	return fault.Invalid.Errorf("OCI runtime exec failed: exec failed: unable to start container process: %w: unknown", err)
}

// execDrain is how long a client may take to read what an ended exec wrote.
const execDrain = time.Minute

// watchExec books the end of an exec, and lets go of it when its output has
// been read.
func (m *Manager) watchExec(e *execState, proc model.ExecProcess, closed <-chan struct{}) {
	x, err := proc.Wait(m.ctx)
	failpoint.Hit("exec.ended")
	if m.ctx.Err() != nil {
		return
	}
	e.mu.Lock()
	e.done, e.code = true, x.Code
	if err != nil {
		e.code = 137
	}
	e.mu.Unlock()
	e.c.event(events.ActionExecDie, "execID", e.id, "exitCode", itoa(e.code))
	failpoint.Hit("exec.told")
	close(e.exited)
	t := time.NewTimer(execDrain)
	defer t.Stop()
	select {
	case <-closed:
	case <-t.C:
	case <-m.ctx.Done():
	}
	proc.Release()
	time.AfterFunc(execKept, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.execs, e.id)
		delete(e.c.execIDs, e.id)
	})
}

// process is the exec's process in the container's terms.
func (e *execState) process(r *Record) model.Process {
	p := e.c.execProcess(r, e.req.Cmd)
	p.TTY = e.req.Tty
	if e.req.Tty {
		p.Env = overrideEnv(append([]string{"TERM=xterm"}, p.Env...), nil)
	}
	p.Env = overrideEnv(p.Env, e.req.Env)
	if e.req.User != "" {
		p.User = e.req.User
	}
	if e.req.WorkingDir != "" {
		p.Cwd = e.req.WorkingDir
	}
	if e.req.Privileged {
		p.Caps, p.NoSeccomp, p.AppArmorProfile = allCaps, true, "unconfined"
	}
	return p
}

// execProcess is a further process with the container's own settings.
func (c *Container) execProcess(r *Record, args []string) model.Process {
	caps, _ := capabilities(r.HostConfig) // checked at create
	sec, _ := parseSecurity(r.HostConfig, c.m.o.Defaults)
	p := c.m.process(r, caps, sec)
	p.Args, p.TTY, p.OpenStdin, p.ConsoleSize = args, false, false, [2]uint{}
	p.NoSeccomp = r.HostConfig.Privileged
	return p
}

// ExecInspect describes an exec.
func (m *Manager) ExecInspect(id string) (*container.ExecInspectResponse, error) {
	e, err := m.exec(id)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	out := &container.ExecInspectResponse{
		ID: e.id, Running: e.started && !e.done, ContainerID: e.c.id, Pid: e.pid, CanRemove: e.done,
		OpenStdin: e.req.AttachStdin, OpenStdout: e.req.AttachStdout, OpenStderr: e.req.AttachStderr,
		DetachKeys: []byte(e.req.DetachKeys),
		ProcessConfig: &container.ExecProcessConfig{
			Tty: e.req.Tty, Entrypoint: e.req.Cmd[0], Arguments: append([]string{}, e.req.Cmd[1:]...),
			Privileged: &e.req.Privileged, User: e.req.User,
		},
	}
	if e.done {
		out.ExitCode = &e.code
	}
	return out, nil
}

// ExecResize sets the size of an exec's terminal.
func (m *Manager) ExecResize(id string, h, w uint) error {
	e, err := m.exec(id)
	if err != nil {
		return err
	}
	e.mu.Lock()
	proc, done := e.proc, e.done
	e.mu.Unlock()
	if proc == nil || done {
		return fault.Conflict.Errorf("exec process is not running")
	}
	return proc.Resize(h, w)
}

// Resize sets the size of a container's terminal.
func (m *Manager) Resize(ref string, h, w uint) error {
	c, err := m.find(ref)
	if err != nil {
		return err
	}
	task, err := c.running()
	if err != nil {
		return err
	}
	if err := task.Resize(h, w); err != nil {
		return err
	}
	c.event(events.ActionResize, "height", itoa(int(h)), "width", itoa(int(w)))
	return nil
}
