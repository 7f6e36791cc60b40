package shim

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"machine/agent/failpoint"
	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/runtime"
	"machine/agent/runtime/cgroup"
	"machine/agent/runtime/wire"
	"machine/agent/spare"
	"machine/agent/undo"
)

// Options are what a Shim is made from.
type Options struct {
	Root         string // data root of tasks; made when absent, 0700
	CgroupParent string // "docker" when empty
	Log          *slog.Logger
	Binary       []byte // of the shim; the embedded one when empty
	// Remapped says that containers mostly get a user namespace: their first
	// process cannot be made ahead.
	Remapped bool
}

// A Shim makes and finds tasks. It may be used by several goroutines.
type Shim struct {
	log      *slog.Logger
	parent   string
	cgroups  *cgroup.Host
	binary   *os.File
	compiler runtime.Compiler
	spare    spare.Spare[spawned] // the next container's
	warm     bool                 // shims make their container's process ahead
}

// New prepares the host: it finds the cgroups and loads the shim's binary. The
// binary stays in memory until the process ends. The caller closes the Shim.
func New(o Options) (*Shim, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Root != "" {
		if err := os.MkdirAll(o.Root, 0o700); err != nil {
			return nil, fault.Internal.Errorf("make the root of tasks: %w", err)
		}
	}
	host, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	bin, err := seal(o.Binary)
	if err != nil && fault.KindOf(err) != fault.Unavailable {
		return nil, err
	}
	s := &Shim{log: o.Log, parent: strings.Trim(o.CgroupParent, "/"), cgroups: host, binary: bin, warm: !o.Remapped}
	s.spare.Make, s.spare.End, s.spare.Good = s.fork, spawned.end, spawned.alive
	if bin != nil {
		s.spare.Refill()
	}
	return s, nil
}

// Close ends the process that was started for the next container. Tasks go on.
// Safe to repeat.
func (s *Shim) Close() {
	s.spare.Close()
	s.binary.Close() // nil does not mind
}

// Host tells what the host's cgroups can do.
func (s *Shim) Host() *cgroup.Host { return s.cgroups }

// Create makes the container and its first process up to the point where only
// the program is missing. b.Dir is made when absent; the rest of b is the
// caller's and may be changed afterwards. After an error nothing is left.
func (s *Shim) Create(ctx context.Context, b *model.Bundle) (_ model.Task, err error) {
	if s.binary == nil {
		return nil, fault.Unavailable.Errorf("shim not built: make shims")
	}
	group, path, err := s.group(b)
	if err != nil {
		return nil, err
	}
	prog, err := s.compiler.Compile(b, group)
	if err != nil {
		return nil, err
	}
	if err := makeDir(b.Dir); err != nil {
		return nil, err
	}
	var u undo.Stack
	defer u.Run(&err)
	m := newMeta(b, prog, path)
	u.Add(func() error { cleanFiles(b.Dir); return nil })
	if err := m.save(b.Dir); err != nil {
		return nil, err
	}
	failpoint.Hit("shim.saved")
	grouped := make(chan error, 1)
	go func() { grouped <- group.Create(resources(b)) }() // while the shim is made ready
	u.Add(func() error { return deleteSoon(ctx, group) })
	t := newTask(s, b.ID, b.Dir, m, group)
	files, err := s.connectNew(t)
	groupErr := <-grouped
	if err != nil {
		return nil, err
	}
	defer wire.CloseAll(files)
	u.Add(t.abort)
	failpoint.Hit("shim.spawned")
	go t.read()
	if groupErr != nil {
		return nil, groupErr
	}
	failpoint.Hit("shim.cgroup")
	prog.Dir = b.Dir
	r, err := t.client.call(ctx, &wire.Message{Kind: wire.MsgCreate, Body: wire.Marshal(prog)}, files...)
	if err != nil {
		return nil, t.explain(err)
	}
	if r.msg.Err != "" {
		wire.CloseAll(r.fds)
		return nil, fault.Internal.Errorf("unable to start container process: %s", r.msg.Err)
	}
	failpoint.Hit("shim.created")
	if err := t.adopt(r); err != nil {
		return nil, err
	}
	u.Keep()
	return t, nil
}

// deleteSoon removes a group that no process should be in, whatever becomes of
// the request.
func deleteSoon(ctx context.Context, g *cgroup.Group) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return g.Delete(ctx)
}

// makeDir makes a task's directory. One that is there may hold what an
// earlier task has left.
func makeDir(dir string) error {
	err := unix.Mkdir(dir, 0o700)
	if err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.Internal.Errorf("make the task's directory: %w", err)
	}
	for _, name := range []string{wire.ExitName, wire.SocketName} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fault.Internal.Errorf("clean the task's directory: %w", err)
		}
	}
	return nil
}

// group names the cgroups of a bundle's container.
func (s *Shim) group(b *model.Bundle) (*cgroup.Group, string, error) {
	parent := s.parent
	if parent == "" {
		parent = "docker"
	}
	path := parent + "/" + b.ID
	if b.Spec != nil && b.Spec.Linux != nil && b.Spec.Linux.CgroupsPath != "" {
		path = b.Spec.Linux.CgroupsPath
		// systemd's form, slice:prefix:name.
		if f := strings.Split(path, ":"); len(f) == 3 {
			path = f[0] + "/" + f[1] + "-" + f[2] + ".scope"
		}
	}
	g, err := s.cgroups.Group(path)
	return g, path, err
}

// connectNew gives the task a shim's process and the files that it will hold:
// the socket at which a restarted agent finds it, and where its last words go.
// The caller closes the files when the shim has them.
func (s *Shim) connectNew(t *task) (files []int, err error) {
	lis, err := listen(t.dir)
	if err != nil {
		return nil, err
	}
	files = append(files, lis)
	path := filepath.Join(t.dir, wire.ErrName)
	errs, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC, 0o600)
	if err != nil {
		wire.CloseAll(files)
		return nil, fault.Internal.Errorf("open %s: %w", path, err)
	}
	files = append(files, errs)
	p, err := s.spare.Take()
	if err != nil {
		wire.CloseAll(files)
		return nil, err
	}
	t.shim = p.pid
	if t.client, err = newClient(p.conn); err != nil {
		_ = unix.Kill(p.pid, unix.SIGKILL)
		reap(p.pid)
		wire.CloseAll(files)
		return nil, err
	}
	return files, nil
}

// reap waits for a shim that is our child; one that an earlier agent started
// is not, and init reaps it.
func reap(pid int) {
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &ws, 0, nil)
		if err != unix.EINTR {
			return
		}
	}
}

// Load finds a task again after a restart of the agent: a live shim, or an
// ended container's exit record. When there is neither, or the container was
// made but never started, what is left of it is removed and the error is
// NotFound.
func (s *Shim) Load(ctx context.Context, id, dir string) (model.Task, error) {
	m, err := loadMeta(dir)
	if err != nil {
		return nil, fault.NotFound.Errorf("task %s: %w", id, err)
	}
	group, err := s.cgroups.Group(m.Cgroup)
	if err != nil {
		return nil, err
	}
	t := newTask(s, id, dir, m, group)
	t.sweepCompressed()
	state, err := t.connect(ctx)
	if err == nil && state != wire.StateCreated {
		return t, nil
	}
	if err == nil {
		if err := t.Delete(ctx); err != nil {
			s.log.Warn("remove a container that was never started", "container", id, "err", err)
		}
		return nil, fault.NotFound.Errorf("task %s: it was never started", id)
	}
	// The shim ends by itself once the exit is on record.
	if rec, recErr := readExit(dir); recErr == nil {
		t.finish(status(rec))
		return t, nil
	}
	if derr := deleteSoon(ctx, group); derr != nil {
		s.log.Warn("lost container's cgroup stays", "container", id, "err", derr)
	}
	cleanFiles(dir)
	_ = os.Remove(dir) // nobody comes back to it: the container is booked as ended
	return nil, fault.NotFound.Errorf("task %s: its shim is gone and left no exit record: %w", id, err)
}

// connect adopts a live shim and tells its container's state.
func (t *task) connect(ctx context.Context) (state uint64, err error) {
	fd, err := dial(t.dir)
	if err != nil {
		return 0, err
	}
	if cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
		t.shim = int(cred.Pid)
	}
	if t.client, err = newClient(fd); err != nil {
		return 0, err
	}
	go t.read()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := t.client.call(ctx, &wire.Message{Kind: wire.MsgHello})
	if err == nil && r.msg.Err != "" {
		err = errors.New(r.msg.Err)
	}
	if err == nil {
		err = t.adopt(r)
	}
	if err != nil {
		t.client.conn.Close()
		<-t.client.done
	}
	return r.msg.A, err
}

func cleanFiles(dir string) {
	for _, name := range []string{wire.ExitName, wire.SocketName, wire.MetaName, wire.ErrName, wire.ExitName + ".tmp", wire.MetaName + ".tmp"} {
		_ = unix.Unlink(filepath.Join(dir, name))
	}
}

func status(r *wire.ExitRecord) model.ExitStatus {
	return model.ExitStatus{Code: int(r.Status), At: time.Unix(0, int64(r.At)).UTC(), OOMKilled: r.OOM, Err: r.Error}
}

func itoa(n int) string { return strconv.Itoa(n) }
