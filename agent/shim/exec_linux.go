package shim

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"machine/agent/failpoint"
	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/runtime/rootfs"
	"machine/agent/runtime/wire"
)

// execProcess implements [model.ExecProcess].
type execProcess struct {
	t       *task
	id      uint32
	pid     int
	pidfd   *os.File
	streams *model.Streams
	outs    []*output
	master  *os.File // of the terminal; nil without
	drained chan struct{}

	mu       sync.Mutex
	attached bool
	exit     model.ExitStatus
	done     chan struct{}
	release  sync.Once
}

// Exec implements [model.Task]. Its error carries the texts that clients map
// to exit codes.
func (t *task) Exec(ctx context.Context, m model.Process) (_ model.ExecProcess, err error) {
	if t.client == nil || t.ended() {
		return nil, t.notRunning()
	}
	p, err := t.s.compiler.Process(&m, nil)
	if err != nil {
		return nil, err
	}
	p.UserNS = t.meta.UserNS
	if !m.NoSeccomp {
		p.Seccomp, p.SeccompFlags = t.meta.Seccomp, t.meta.SeccompFlags
	}
	if p.AppArmor == "" {
		p.AppArmor = t.meta.AppArmor
	}
	e := &execProcess{t: t, id: number(), done: make(chan struct{})}
	in, out := m.OpenStdin && !m.TTY, !m.TTY && !m.Detached
	st, fds, outs, err := pipes(in, out, out)
	if err != nil {
		return nil, fault.Internal.Errorf("exec in container %s: %w", t.id, err)
	}
	e.streams, e.outs = st, outs
	t.mu.Lock()
	t.execs[e.id] = e
	t.mu.Unlock()
	r, err := t.client.call(ctx, &wire.Message{Kind: wire.MsgExec, Proc: e.id, Flags: flags(in, out, out), Body: wire.Marshal(p)}, fds...)
	failpoint.Hit("shim.exec")
	wire.CloseAll(fds)
	if err == nil && r.msg.Err != "" {
		err = fault.Invalid.Errorf("%s", r.msg.Err)
	}
	if err != nil {
		wire.CloseAll(r.fds)
		_ = e.Release()
		return nil, t.explain(err)
	}
	e.take(r, m)
	return e, nil
}

func number() uint32 {
	var b [4]byte
	for {
		_, _ = rand.Read(b[:]) // cannot fail
		if n := binary.LittleEndian.Uint32(b[:]); n != 0 {
			return n
		}
	}
}

// take keeps the descriptors of the shim's answer.
func (e *execProcess) take(r reply, m model.Process) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pid = int(r.msg.B)
	if len(r.fds) > 0 {
		e.pidfd = os.NewFile(uintptr(r.fds[0]), "pidfd")
	}
	if len(r.fds) < 2 {
		return
	}
	_ = unix.SetNonblock(r.fds[1], true)
	e.master = os.NewFile(uintptr(r.fds[1]), "terminal")
	o := &output{f: e.master}
	e.outs = []*output{o}
	e.streams = &model.Streams{Stdout: o, Close: e.master.Close}
	if m.OpenStdin {
		e.streams.Stdin = terminalInput{e.master}
	}
	if m.Detached {
		e.drained = make(chan struct{})
		go func() {
			defer close(e.drained)
			_, _ = io.Copy(io.Discard, o)
		}()
	}
	select {
	case <-e.done:
		o.end()
	default:
	}
}

// terminalInput is the writing side of a terminal, which has no half-close.
type terminalInput struct{ f *os.File }

func (t terminalInput) Write(b []byte) (int, error) { return t.f.Write(b) }
func (t terminalInput) Close() error                { return nil }

func (e *execProcess) finish(st model.ExitStatus) {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.done:
		return
	default:
	}
	e.exit = st
	close(e.done)
	for _, o := range e.outs {
		o.end()
	}
}

// Pid implements [model.ExecProcess].
func (e *execProcess) Pid() int { return e.pid }

// Attach implements [model.ExecProcess].
func (e *execProcess) Attach() (*model.Streams, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.attached {
		return nil, fault.Conflict.Errorf("the exec was attached to already")
	}
	e.attached = true
	return e.streams, nil
}

// Wait implements [model.ExecProcess].
func (e *execProcess) Wait(ctx context.Context) (model.ExitStatus, error) {
	select {
	case <-e.done:
		return e.exit, nil
	case <-ctx.Done():
		return model.ExitStatus{}, ctx.Err()
	}
}

// Resize implements [model.ExecProcess].
func (e *execProcess) Resize(h, w uint) error {
	if e.master == nil {
		return fault.Conflict.Errorf("the exec has no terminal")
	}
	c, err := e.master.SyscallConn()
	if err == nil {
		var set error
		if err = c.Control(func(fd uintptr) { set = rootfs.SetSize(int(fd), uint32(h), uint32(w)) }); err == nil {
			err = set
		}
	}
	if err != nil {
		return fault.Conflict.Errorf("resize the exec's terminal: %w", err)
	}
	return nil
}

// Kill implements [model.ExecProcess].
func (e *execProcess) Kill(sig syscall.Signal) error {
	gone := fault.Conflict.Errorf("the exec has ended")
	if e.pidfd == nil {
		return gone
	}
	c, err := e.pidfd.SyscallConn()
	if err != nil {
		return gone
	}
	var sent error
	if err := c.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil || errors.Is(sent, unix.ESRCH) {
		return gone
	}
	return sent
}

// Release implements [model.ExecProcess].
func (e *execProcess) Release() error {
	e.release.Do(func() {
		e.t.mu.Lock()
		delete(e.t.execs, e.id)
		e.t.mu.Unlock()
		_ = e.streams.Close()
		if e.pidfd != nil {
			_ = e.pidfd.Close()
		}
		if e.drained != nil {
			<-e.drained
		}
	})
	return nil
}
