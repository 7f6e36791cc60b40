package shim

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"machine/agent/aside"
	"machine/agent/failpoint"
	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/runtime/cgroup"
	"machine/agent/runtime/wire"
)

// task is one container. It implements [model.Task].
type task struct {
	s       *Shim
	id      string
	dir     string
	meta    *meta
	group   *cgroup.Group
	client  *client // nil for a task that ended before Load
	shim    int     // pid of the shim; 0 when it has ended
	pid     int
	pidfd   *os.File // of the container's init; nil for an ended task
	created bool     // when it was made or found, its program had not been started

	mu    sync.Mutex
	execs map[uint32]*execProcess
	exit  model.ExitStatus
	done  chan struct{}
	oom   chan struct{}
	work  sync.WaitGroup // compressions
	zip   sync.Mutex     // one at a time
}

func newTask(s *Shim, id, dir string, m *meta, g *cgroup.Group) *task {
	return &task{s: s, id: id, dir: dir, meta: m, group: g,
		execs: map[uint32]*execProcess{}, done: make(chan struct{}), oom: make(chan struct{}, 1)}
}

func resources(b *model.Bundle) *specs.LinuxResources {
	if b.Spec == nil || b.Spec.Linux == nil {
		return nil
	}
	return b.Spec.Linux.Resources
}

// adopt takes the shim's answer about the container's init.
func (t *task) adopt(r reply) error {
	t.pid = int(r.msg.B)
	if len(r.fds) == 1 {
		t.pidfd = os.NewFile(uintptr(r.fds[0]), "pidfd")
	} else {
		wire.CloseAll(r.fds)
	}
	t.created = r.msg.A == wire.StateCreated
	if r.msg.A == wire.StateExited {
		rec, err := readExit(t.dir)
		if err != nil {
			return fault.Internal.Errorf("container %s: read its exit record: %w", t.id, err)
		}
		t.finish(status(rec))
	}
	return nil
}

// Created implements [model.Task].
func (t *task) Created() bool { return t.created }

// read serves the connection until it ends, and then sees to it that the end
// of the container is booked. It is the task's own goroutine; it ends with the
// shim, and Delete waits for it.
func (t *task) read() {
	t.client.read(t.event)
	t.lost()
}

func (t *task) event(m *wire.Message) {
	switch m.Kind {
	case wire.MsgExit:
		st := model.ExitStatus{Code: int(m.A), At: time.Unix(0, int64(m.B)).UTC(), OOMKilled: m.Flags&wire.ExitOOM != 0}
		if m.Proc == 0 {
			t.finish(st)
			return
		}
		t.mu.Lock()
		e := t.execs[m.Proc]
		t.mu.Unlock()
		if e != nil {
			e.finish(st)
		}
	case wire.MsgOOM:
		select {
		case t.oom <- struct{}{}:
		default: // one is waiting to be told already
		}
	case wire.MsgLog:
		t.work.Add(1)
		go func() {
			defer t.work.Done()
			t.compress(m.A)
		}()
	}
}

// finish books the exit, once.
func (t *task) finish(st model.ExitStatus) {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-t.done:
	default:
		t.exit = st
		close(t.done)
	}
}

// lost is called when the connection to the shim has ended: because it had
// nothing to do any more, or because somebody killed it, which ends the
// container.
func (t *task) lost() {
	select {
	case <-t.done:
	default:
		if rec, err := readExit(t.dir); err == nil {
			t.finish(status(rec))
			break
		}
		t.killAll()
		t.finish(model.ExitStatus{Code: 137, At: time.Now().UTC(), Err: "the container's shim was killed"})
	}
	t.mu.Lock()
	execs := make([]*execProcess, 0, len(t.execs))
	for _, e := range t.execs {
		execs = append(execs, e)
	}
	t.mu.Unlock()
	for _, e := range execs {
		e.finish(model.ExitStatus{Code: 137, At: time.Now().UTC(), Err: "the container's shim has ended"})
	}
	if t.shim != 0 {
		reap(t.shim)
	}
}

func (t *task) killAll() {
	if t.pidfd != nil {
		_ = unix.PidfdSendSignal(int(t.pidfd.Fd()), unix.SIGKILL, nil, 0)
	}
	if err := t.group.Kill(); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.s.log.Warn("kill what is left of a container", "container", t.id, "err", err)
	}
}

// abort ends a task that was never handed out.
func (t *task) abort() error {
	t.killAll()
	if t.shim != 0 {
		_ = unix.Kill(t.shim, unix.SIGKILL)
	}
	<-t.client.done
	<-t.done
	t.closeFiles()
	return nil
}

func (t *task) closeFiles() {
	if t.pidfd != nil {
		t.pidfd.Close()
	}
}

// explain adds the shim's last words to an error about its loss.
func (t *task) explain(err error) error {
	if errors.Is(err, errLost) {
		if b, e := os.ReadFile(filepath.Join(t.dir, wire.ErrName)); e == nil && len(b) > 0 {
			return fault.Internal.Errorf("the shim of container %s died: %s", t.id, strings.TrimSpace(string(b[:min(len(b), 2000)])))
		}
	}
	return err
}

// Pid implements [model.Task].
func (t *task) Pid() int { return t.pid }

// Done implements [model.Task].
func (t *task) Done() <-chan struct{} { return t.done }

// OOM implements [model.Task].
func (t *task) OOM() <-chan struct{} { return t.oom }

// Exit implements [model.Task]. Before Done is closed it is the zero value.
func (t *task) Exit() model.ExitStatus {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.exit
}

func (t *task) ended() bool {
	select {
	case <-t.done:
		return true
	default:
		return false
	}
}

func (t *task) notRunning() error {
	return fault.Conflict.Errorf("container %s is not running", t.id)
}

// Start implements [model.Task].
func (t *task) Start(ctx context.Context) error {
	if t.client == nil {
		return t.notRunning()
	}
	defer t.s.spare.Refill() // not before: both would be slower
	r, err := t.client.call(ctx, &wire.Message{Kind: wire.MsgStart})
	if err != nil {
		return t.explain(err)
	}
	wire.CloseAll(r.fds)
	if r.msg.Err != "" {
		return fault.Invalid.Errorf("error during container init: %s", r.msg.Err)
	}
	return nil
}

// Kill implements [model.Task]. A container that has ended is a Conflict; one
// that is paused is resumed to die of SIGKILL.
func (t *task) Kill(sig syscall.Signal) error {
	if t.pidfd == nil || t.ended() {
		return t.notRunning()
	}
	err := t.signal(sig)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrClosed) {
		return t.notRunning()
	}
	if err == nil && sig == unix.SIGKILL {
		err = t.group.Thaw()
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			err = nil // gone already
		}
	}
	if err != nil {
		return fault.Internal.Errorf("kill container %s: %w", t.id, err)
	}
	return nil
}

func (t *task) signal(sig syscall.Signal) error {
	c, err := t.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := c.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	return sent
}

// Resize implements [model.Task].
func (t *task) Resize(h, w uint) error {
	if t.client == nil || t.ended() {
		return t.notRunning()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r, err := t.client.call(ctx, &wire.Message{Kind: wire.MsgResize, A: uint64(h), B: uint64(w)})
	if err != nil {
		return err
	}
	if r.msg.Err != "" {
		return fault.Conflict.Errorf("resize container %s: %s", t.id, r.msg.Err)
	}
	return nil
}

// Pause implements [model.Task].
func (t *task) Pause() error {
	if t.ended() {
		return t.notRunning()
	}
	return t.group.Freeze()
}

// Resume implements [model.Task].
func (t *task) Resume() error {
	if t.ended() {
		return t.notRunning()
	}
	return t.group.Thaw()
}

// Update implements [model.Task].
func (t *task) Update(r *specs.LinuxResources) error { return t.group.Set(r) }

// Stats implements [model.Task].
func (t *task) Stats() (*model.Stats, error) { return t.group.Stats() }

// Pids implements [model.Task].
func (t *task) Pids() ([]int, error) { return t.group.Pids() }

// Root implements [model.Task].
func (t *task) Root() (*os.File, error) {
	if t.pidfd == nil || t.ended() {
		return nil, t.notRunning()
	}
	f, err := os.OpenFile("/proc/"+strconv.Itoa(t.pid)+"/root", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err == nil {
		// The number was still the container's after the open: so is the root.
		if err = t.signal(0); err != nil {
			f.Close()
		}
	}
	if err != nil {
		return nil, fault.Conflict.Errorf("container %s is not running: %w", t.id, err)
	}
	return f, nil
}

// BareRoot implements [model.Task]. A clone of one mount has nothing mounted
// in it, but only those in its namespace may make it: a thread goes there.
func (t *task) BareRoot() (f *os.File, err error) {
	if t.pidfd == nil || t.ended() {
		return nil, t.notRunning()
	}
	aside.Thread(func() {
		if err = unix.Unshare(unix.CLONE_FS); err != nil {
			return
		}
		if err = unix.Setns(int(t.pidfd.Fd()), unix.CLONE_NEWNS); err != nil {
			return
		}
		var tree, fd int
		if tree, err = unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC); err != nil {
			return
		}
		defer unix.Close(tree)
		if fd, err = unix.Openat(tree, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
			f = os.NewFile(uintptr(fd), "root of container "+t.id)
		}
	})
	if err != nil {
		return nil, fault.Conflict.Errorf("open the root of container %s: %w", t.id, err)
	}
	return f, nil
}

// Delete implements [model.Task]. Clients that have not read all output yet
// still get it: the shim stays, unseen, until they have or are gone.
func (t *task) Delete(ctx context.Context) error {
	if !t.ended() {
		_ = t.group.Thaw()
		_ = t.Kill(unix.SIGKILL)
		select {
		case <-t.done:
		case <-ctx.Done():
			return fault.Unavailable.Errorf("container %s does not die: %w", t.id, ctx.Err())
		}
	}
	if t.client != nil {
		_ = t.client.post(&wire.Message{Kind: wire.MsgShutdown})
	}
	err := t.group.Delete(ctx) // while the shim goes
	failpoint.Hit("shim.emptied")
	if t.client != nil {
		select {
		case <-t.client.done:
		case <-ctx.Done():
			_ = unix.Kill(t.shim, unix.SIGKILL)
			<-t.client.done
		}
	}
	t.work.Wait()
	t.closeFiles()
	if err == nil {
		cleanFiles(t.dir)
		_ = os.Remove(t.dir) // when there is nothing else in it
	}
	return err
}
