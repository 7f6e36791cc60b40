package rootfs

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"

	"machine/agent/runtime/wire"
)

var devLinks = [][2]string{
	{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
	{"/proc/self/fd/2", "stderr"}, {"/proc/kcore", "core"}, {"pts/ptmx", "ptmx"},
}

// devices makes the nodes and the customary links in /dev.
func (t Tree) devices(p *wire.Program) error {
	if len(p.Devices) == 0 {
		return nil
	}
	for i := range p.Devices {
		if err := t.device(&p.Devices[i], p.Process.UserNS); err != nil {
			return wire.Fail("device "+p.Devices[i].Path, err)
		}
	}
	dev, err := t.mkdirs("/dev", 0o755)
	if err != nil {
		return wire.Fail("/dev", err)
	}
	defer unix.Close(dev)
	for _, l := range devLinks {
		if l[1] == "ptmx" {
			_ = unix.Unlinkat(dev, "ptmx", 0)
		}
		if err := unix.Symlinkat(l[0], dev, l[1]); err != nil && err != unix.EEXIST {
			return wire.Fail("link /dev/"+l[1], err)
		}
	}
	return nil
}

func (t Tree) device(d *wire.Device, bind bool) error {
	if bind {
		target, err := t.mkfile(d.Path)
		if err != nil {
			return err
		}
		defer unix.Close(target)
		return unix.MoveMount(d.FD, "", target, "", emptyBoth)
	}
	parent, base := split(d.Path)
	dir, err := t.mkdirs(parent, 0o755)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	typ := d.Kind()
	// The umask, which is this process's alone, would cut the mode. Setting it
	// afterwards would take a name that a neighbour may have made a link by then.
	old := unix.Umask(0)
	err = unix.Mknodat(dir, base, typ|d.Mode&0o7777, int(unix.Mkdev(d.Major, d.Minor)))
	unix.Umask(old)
	if err == unix.EEXIST {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != typ || st.Rdev != unix.Mkdev(d.Major, d.Minor) {
			return errors.New("something else is in its place")
		}
		return nil
	}
	if err != nil {
		return err
	}
	if d.UID|d.GID != 0 {
		return unix.Fchownat(dir, base, int(d.UID), int(d.GID), unix.AT_SYMLINK_NOFOLLOW)
	}
	return nil
}

// console opens a new terminal of the container's own devpts and binds its
// slave to /dev/console.
func (t Tree) console() (master, slave int, err error) {
	if master, slave, err = openPTY(t); err != nil {
		return -1, -1, err
	}
	bound, err := unix.OpenTree(slave, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.O_CLOEXEC)
	if err != nil {
		return master, slave, wire.Fail("clone the terminal", err)
	}
	defer unix.Close(bound)
	dev, err := t.mkdirs("/dev", 0o755)
	if err != nil {
		return master, slave, err
	}
	defer unix.Close(dev)
	f, err := unix.Openat(dev, "console", unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_PATH, 0o600)
	if err == nil { // O_PATH does not create
		unix.Close(f)
	} else if f, err = unix.Openat(dev, "console", unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_WRONLY, 0o600); err == nil {
		unix.Close(f)
	} else {
		return master, slave, wire.Fail("/dev/console", err)
	}
	at, err := unix.Openat(dev, "console", unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return master, slave, err
	}
	defer unix.Close(at)
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil || st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return master, slave, errors.New("/dev/console is a symbolic link")
	}
	return master, slave, unix.MoveMount(bound, "", at, "", emptyBoth)
}

// OpenPTY opens a new terminal of the devpts at /dev/pts below the process's
// root. The slave is got from the master, never by name.
func OpenPTY() (master, slave int, err error) {
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, err
	}
	defer unix.Close(root)
	return openPTY(Tree{root})
}

func openPTY(t Tree) (master, slave int, err error) {
	master, err = t.openIn("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return -1, -1, wire.Fail("/dev/pts/ptmx", err)
	}
	if !isFS(master, ptsMagic) {
		unix.Close(master)
		return -1, -1, errors.New("/dev/pts is not a devpts")
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		unix.Close(master)
		return -1, -1, wire.Fail("unlock the terminal", err)
	}
	s, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if e != 0 {
		unix.Close(master)
		return -1, -1, wire.Fail("open the terminal's slave", e)
	}
	return master, int(s), nil
}

// SetSize sets a terminal's size.
func SetSize(fd int, rows, cols uint32) error {
	ws := unix.Winsize{Row: uint16(rows), Col: uint16(cols)}
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCSWINSZ, uintptr(unsafe.Pointer(&ws)))
	if e != 0 {
		return e
	}
	return nil
}

// hide covers the masked paths and makes the read-only ones so. What is not
// there needs no cover.
func (t Tree) hide(p *wire.Program) error {
	for _, path := range p.ReadonlyPaths {
		if err := t.readonly(path); err != nil {
			return wire.Fail("make "+path+" read-only", err)
		}
	}
	if len(p.Masked) == 0 {
		return nil
	}
	var m masks
	defer m.close()
	for _, path := range p.Masked {
		if err := t.mask(path, &m); err != nil {
			return wire.Fail("mask "+path, err)
		}
	}
	return nil
}

func (t Tree) readonly(path string) error {
	fd, err := t.openIn(path, unix.O_PATH, 0)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	tree, err := unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.AT_RECURSIVE|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := attr(tree, unix.MOUNT_ATTR_RDONLY, 0, 0, true); err != nil {
		return err
	}
	return unix.MoveMount(tree, "", fd, "", emptyBoth)
}

// masks are what masked paths are covered with, made once and cloned.
type masks struct {
	null, dir         int
	haveNull, haveDir bool
}

func (m *masks) close() {
	if m.haveNull {
		unix.Close(m.null)
	}
	if m.haveDir {
		unix.Close(m.dir)
	}
}

func (t Tree) mask(path string, m *masks) error {
	fd, err := t.openIn(path, unix.O_PATH, 0)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return m.maskDir(fd)
	}
	if err := m.openNull(); err != nil {
		return err
	}
	cover, err := unix.OpenTree(m.null, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(cover)
	return unix.MoveMount(cover, "", fd, "", emptyBoth)
}

// openNull opens the host's /dev/null, which is still our root's, and not the
// container's, which the image or a neighbour may have made a link to a file
// that the mask should hide.
func (m *masks) openNull() error {
	if m.haveNull {
		return nil
	}
	fd, err := unix.Open("/dev/null", unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		unix.Close(fd)
		return errors.New("/dev/null is not the null device")
	}
	m.null, m.haveNull = fd, true
	return nil
}

func (m *masks) maskDir(fd int) error {
	if !m.haveDir {
		d, err := newFS("tmpfs", "tmpfs", []string{"mode=755", "nr_blocks=1", "nr_inodes=1"}, unix.MOUNT_ATTR_RDONLY)
		if err != nil {
			return err
		}
		if err := unix.MoveMount(d, "", fd, "", emptyBoth); err != nil {
			unix.Close(d)
			return err
		}
		m.dir, m.haveDir = d, true
		return nil
	}
	cover, err := unix.OpenTree(m.dir, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(cover)
	return unix.MoveMount(cover, "", fd, "", emptyBoth)
}
