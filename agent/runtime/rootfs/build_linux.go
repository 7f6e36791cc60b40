package rootfs

import (
	"strings"

	"golang.org/x/sys/unix"

	"machine/agent/aside"
	"machine/agent/runtime/wire"
)

const emptyBoth = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH

// Build puts the container's tree into place: it must run in the container's
// new mount (and user, network, IPC, PID) namespaces, on the only thread that
// matters. Afterwards the tree is the process's root, and Leave remains to be
// called. With a terminal it returns the terminal's master and slave, else -1 twice.
func Build(p *wire.Program) (master, slave int, err error) {
	// Nothing that happens here reaches the host, whatever is shared there.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return -1, -1, wire.Fail("make mounts private", err)
	}
	if err := attr(p.RootFD, 0, 0, unix.MS_PRIVATE, true); err != nil {
		return -1, -1, wire.Fail("make the root private", err)
	}
	if err := unix.MoveMount(p.RootFD, "", unix.AT_FDCWD, attachPoint, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return -1, -1, wire.Fail("attach the root", err)
	}
	t := Tree{p.RootFD}
	for i := range p.Mounts {
		if err := t.mount(&p.Mounts[i]); err != nil {
			return -1, -1, wire.Fail("mount "+p.Mounts[i].Dest, err)
		}
	}
	if err := t.devices(p); err != nil {
		return -1, -1, err
	}
	master, slave = -1, -1
	if p.Process.TTY {
		if master, slave, err = t.console(); err != nil {
			return -1, -1, wire.Fail("open a terminal", err)
		}
	}
	if err := t.hide(p); err != nil {
		return -1, -1, err
	}
	if p.Root.Readonly {
		if err := attr(t.fd, unix.MOUNT_ATTR_RDONLY, 0, 0, false); err != nil {
			return -1, -1, wire.Fail("make the root read-only", err)
		}
	}
	return master, slave, t.enter(p)
}

// Empty leaves the process, which must be in a new mount namespace of its own,
// with a tree that has nothing in it but what Build needs: the place where it
// attaches the container's, and a null device to cover masked paths. The host's mounts are let go: what the host unmounts is not kept
// busy by a process that waits.
func Empty() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return wire.Fail("make mounts private", err)
	}
	fd, err := newFS("tmpfs", "tmpfs", []string{"mode=700", "size=4k"}, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, dir := range []string{attachPoint[1:], "dev"} {
		if err := unix.Mkdirat(fd, dir, 0o700); err != nil {
			return wire.Fail("make an empty tree", err)
		}
	}
	if err := unix.Mknodat(fd, "dev/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		return wire.Fail("make an empty tree", err)
	}
	if err := unix.Fchmodat(fd, "dev/null", 0o666, 0); err != nil {
		return wire.Fail("make an empty tree", err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, attachPoint, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return wire.Fail("attach an empty tree", err)
	}
	if err := unix.Fchdir(fd); err != nil {
		return wire.Fail("enter an empty tree", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return wire.Fail("pivot_root to an empty tree", err)
	}
	return Leave()
}

// attachPoint is a directory that every tree has. Any will do: the root that
// is attached there moves away from it at once.
const attachPoint = "/sys"

// attr changes a mount's attributes and propagation.
func attr(fd int, set, clear, propagation uint64, recursive bool) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(fd, "", flags, &unix.MountAttr{Attr_set: set, Attr_clr: clear, Propagation: propagation})
}

func (t Tree) enter(p *wire.Program) error {
	if err := unix.Fchdir(t.fd); err != nil {
		return wire.Fail("enter the root", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return wire.Fail("pivot_root", err)
	}
	if p.Propagation != 0 && p.Propagation != unix.MS_PRIVATE {
		if err := attr(t.fd, 0, 0, p.Propagation&^unix.MS_REC, p.Propagation&unix.MS_REC != 0); err != nil {
			return wire.Fail("set the root's propagation", err)
		}
	}
	return nil
}

// Leave unmounts the old root, which is mounted on top of the new one after
// Build, and enters the new one. Until then the container's program must not
// run. It is a step of its own since the kernel waits for all its CPUs here,
// which the caller can have it do while it waits for something else.
func Leave() error {
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return wire.Fail("unmount the old root", err)
	}
	return unix.Chdir("/")
}

func (t Tree) mount(m *wire.Mount) error {
	switch m.Kind {
	case wire.MountBind:
		return t.bind(m)
	case wire.MountCgroup:
		return t.cgroup(m)
	}
	before, missing := t.openIn(m.Dest, unix.O_PATH, 0)
	if missing == nil {
		unix.Close(before)
	}
	target, err := t.target(m, false)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	fd, err := newFS(m.Type, m.Source, m.Data, m.Set&^unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if m.CopyUp {
		if err := copyUp(target, fd); err != nil {
			return wire.Fail("copy what the image has there", err)
		}
	}
	if m.Type == "tmpfs" && missing == nil && !hasMode(m.Data) {
		var st unix.Stat_t // as the directory that the image has there
		if unix.Fstat(target, &st) == nil {
			if f, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
				_ = unix.Fchmod(f, st.Mode&0o7777)
				unix.Close(f)
			}
		}
	}
	if m.Set&unix.MOUNT_ATTR_RDONLY != 0 {
		if err := attr(fd, unix.MOUNT_ATTR_RDONLY, 0, 0, false); err != nil {
			return err
		}
	}
	if m.Propagation != 0 {
		if err := attr(fd, 0, 0, m.Propagation, false); err != nil {
			return err
		}
	}
	return unix.MoveMount(fd, "", target, "", emptyBoth)
}

func hasMode(data []string) bool {
	for _, d := range data {
		if strings.HasPrefix(d, "mode=") {
			return true
		}
	}
	return false
}

// newFS makes a detached instance of a file system.
func newFS(typ, source string, data []string, attrs uint64) (int, error) {
	fs, err := unix.Fsopen(typ, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, wire.Fail("file system "+typ, err)
	}
	defer unix.Close(fs)
	if source != "" {
		_ = unix.FsconfigSetString(fs, "source", source)
	}
	for _, d := range data {
		k, v, ok := strings.Cut(d, "=")
		if ok {
			err = unix.FsconfigSetString(fs, k, v)
		} else {
			err = unix.FsconfigSetFlag(fs, k)
		}
		if err != nil {
			return -1, wire.Fail("option "+d+aside.FSLog(fs), err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, wire.Fail("create "+typ+aside.FSLog(fs), err)
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(attrs))
}

func (t Tree) bind(m *wire.Mount) error {
	if m.Sub != "" {
		if err := part(m); err != nil {
			return wire.Fail(m.Sub+" of the image", err)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(m.FD, &st); err != nil {
		return err
	}
	target, err := t.target(m, st.Mode&unix.S_IFMT != unix.S_IFDIR)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	prop := m.Propagation
	if prop == 0 {
		prop = unix.MS_PRIVATE
	}
	if err := attr(m.FD, 0, 0, prop, true); err != nil {
		return wire.Fail("set propagation", err)
	}
	if m.Set|m.Clear != 0 {
		err := attr(m.FD, m.Set, m.Clear, 0, m.AttrRec && m.Recursive)
		if err != nil {
			return wire.Fail("set attributes", err)
		}
	}
	return unix.MoveMount(m.FD, "", target, "", emptyBoth)
}

// part leaves of a mount what is at Sub. It can be cloned from where the mount
// is attached only; it is, for as long, out of the container's way.
func part(m *wire.Mount) error {
	const aside = "/sys"
	if err := unix.MoveMount(m.FD, "", unix.AT_FDCWD, aside, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return err
	}
	defer unix.Unmount(aside, unix.MNT_DETACH)
	at, err := Tree{m.FD}.openIn(m.Sub, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	fd, err := unix.OpenTree(at, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	unix.Close(m.FD)
	m.FD = fd
	return nil
}

// cgroup shows the container its own cgroups: the detached mounts of v1's
// hierarchies in a small tmpfs, or v2's tree.
func (t Tree) cgroup(m *wire.Mount) error {
	target, err := t.target(m, false)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	if len(m.Cgroup) == 0 { // v2 in a cgroup namespace of its own
		fd, err := newFS("cgroup2", "cgroup", nil, m.Set)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.MoveMount(fd, "", target, "", emptyBoth)
	}
	if len(m.Cgroup) == 1 && m.Cgroup[0].Key == "" {
		if err := attr(m.FDs[0], m.Set, 0, unix.MS_PRIVATE, false); err != nil {
			return err
		}
		return unix.MoveMount(m.FDs[0], "", target, "", emptyBoth)
	}
	fd, err := newFS("tmpfs", "tmpfs", []string{"mode=755"}, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.MoveMount(fd, "", target, "", emptyBoth); err != nil {
		return err
	}
	for i, kv := range m.Cgroup {
		if err := attr(m.FDs[i], m.Set, 0, unix.MS_PRIVATE, false); err != nil {
			return err
		}
		if err := unix.Mkdirat(fd, kv.Key, 0o755); err != nil {
			return err
		}
		if err := unix.MoveMount(m.FDs[i], "", fd, kv.Key, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return wire.Fail(kv.Key, err)
		}
		if strings.Contains(kv.Key, ",") {
			for _, name := range strings.Split(kv.Key, ",") {
				_ = unix.Symlinkat(kv.Key, fd, name)
			}
		}
	}
	if m.Set&unix.MOUNT_ATTR_RDONLY != 0 {
		return attr(fd, unix.MOUNT_ATTR_RDONLY, 0, 0, false)
	}
	return nil
}
