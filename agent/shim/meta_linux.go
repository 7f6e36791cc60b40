package shim

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/runtime/wire"
	"machine/agent/sysfile"
)

// meta is what a restarted agent must know of a task that neither the shim nor
// the kernel tells.
type meta struct {
	Cgroup       string
	LogPath      string
	Compress     bool
	TTY, UserNS  bool
	AppArmor     string
	Seccomp      []byte // of the container, for its execs
	SeccompFlags uint32
}

// Code lists the fields.
func (m *meta) Code(c *wire.Codec) {
	c.Str(&m.Cgroup)
	c.Str(&m.LogPath)
	c.Bool(&m.Compress)
	c.Bool(&m.TTY)
	c.Bool(&m.UserNS)
	c.Str(&m.AppArmor)
	c.Bytes(&m.Seccomp)
	c.U32(&m.SeccompFlags)
}

func newMeta(b *model.Bundle, prog *wire.Program, cgroup string) *meta {
	m := &meta{Cgroup: cgroup, LogPath: b.Log.Path, Compress: b.Log.Compress, TTY: b.Process.TTY, UserNS: prog.Process.UserNS,
		AppArmor: prog.Process.AppArmor, Seccomp: prog.Process.Seccomp, SeccompFlags: prog.Process.SeccompFlags}
	if b.Process.NoSeccomp && b.Spec != nil && b.Spec.Linux != nil {
		m.Seccomp, m.SeccompFlags = nil, 0
	}
	return m
}

func (m *meta) save(dir string) error {
	path := filepath.Join(dir, wire.MetaName)
	if err := sysfile.Write(path+".tmp", wire.Marshal(m), 0o600); err != nil {
		return fault.Internal.Errorf("save the task's record: %w", err)
	}
	if err := unix.Rename(path+".tmp", path); err != nil {
		return fault.Internal.Errorf("save the task's record: %w", err)
	}
	return nil
}

func loadMeta(dir string) (*meta, error) {
	b, err := os.ReadFile(filepath.Join(dir, wire.MetaName))
	if err != nil {
		return nil, err
	}
	m := &meta{}
	return m, wire.Unmarshal(b, m)
}

func readExit(dir string) (*wire.ExitRecord, error) {
	b, err := os.ReadFile(filepath.Join(dir, wire.ExitName))
	if err != nil {
		return nil, err
	}
	r := &wire.ExitRecord{}
	return r, wire.Unmarshal(b, r)
}

// socketPath names the socket in dir by a path that fits into a socket's
// address, however long dir's is. The caller closes the directory afterwards.
func socketPath(dir string) (string, *os.File, error) {
	d, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", nil, err
	}
	return "/proc/self/fd/" + itoa(int(d.Fd())) + "/" + wire.SocketName, d, nil
}

// listen makes the task's socket.
func listen(dir string) (int, error) {
	path, d, err := socketPath(dir)
	if err != nil {
		return -1, fault.Internal.Errorf("task directory: %w", err)
	}
	defer d.Close()
	_ = unix.Unlink(path)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fault.Internal.Errorf("make the task's socket: %w", err)
	}
	// The mode of the inode before it has a name: the umask is everybody's.
	_ = unix.Fchmod(fd, 0o600)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	if err == nil {
		err = unix.Chmod(path, 0o600)
	}
	if err == nil {
		err = unix.Listen(fd, 16)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fault.Internal.Errorf("make the task's socket in %s: %w", dir, err)
	}
	return fd, nil
}

func dial(dir string) (int, error) {
	path, d, err := socketPath(dir)
	if err != nil {
		return -1, err
	}
	defer d.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
