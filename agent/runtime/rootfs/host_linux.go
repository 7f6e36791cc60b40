package rootfs

import (
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"machine/agent/aside"
	"machine/agent/runtime/wire"
)

// Detach makes, with the host's rights and in the host's mount namespace, a
// detached mount of the root and of each bind of p, and notes the descriptors
// in p. It returns the descriptors, also after an error; the caller closes
// them after the stage has inherited them.
func Detach(p *wire.Program) (fds []int, err error) {
	if p.RootFD, err = rootOf(p, &p.Root); err != nil {
		return nil, wire.Fail("mount the root", err)
	}
	fds = append(fds, p.RootFD)
	for i := range p.Mounts {
		m := &p.Mounts[i]
		m.FD = -1
		switch m.Kind {
		case wire.MountBind:
			if len(m.Lower) > 0 {
				m.FD, err = rootOf(p, &wire.Root{Lower: m.Lower, Mapped: p.Root.Mapped})
			} else {
				m.FD, err = clone(m.Source, m.Recursive)
			}
			if err != nil {
				return fds, wire.Fail("bind mount "+m.Source, err)
			}
			fds = append(fds, m.FD)
		case wire.MountCgroup:
			for _, kv := range m.Cgroup {
				fd, err := clone(kv.Value, false)
				if err != nil {
					return fds, wire.Fail("bind mount "+kv.Value, err)
				}
				m.FDs = append(m.FDs, fd)
				fds = append(fds, fd)
			}
		}
	}
	if !p.Process.UserNS {
		return fds, nil
	}
	// A user namespace may not make nodes: bind the host's.
	for i := range p.Devices {
		d := &p.Devices[i]
		if d.FD, err = node(p, d); err != nil {
			return fds, wire.Fail("bind device "+d.Path, err)
		}
		fds = append(fds, d.FD)
	}
	return fds, nil
}

// rootOf mounts the overlay r, with mapped ids if it is to have them.
func rootOf(p *wire.Program, r *wire.Root) (fd int, err error) {
	if !r.Mapped {
		return Overlay(r)
	}
	ns, err := joinedUser(p)
	if err != nil {
		return -1, err
	}
	defer unix.Close(ns)
	dirs := append([]string{}, r.Lower...)
	if r.Upper != "" { // with Work in one mount, as overlayfs demands
		dirs = append(dirs, filepath.Dir(r.Upper))
	}
	err = aside.Mapped(ns, p.RootUID, p.RootGID, dirs, func() (err error) {
		fd, err = Overlay(r)
		return err
	})
	if err != nil {
		return -1, err
	}
	return fd, nil
}

func joinedUser(p *wire.Program) (int, error) {
	for _, j := range p.Join {
		if j.Type != unix.CLONE_NEWUSER {
			continue
		}
		fd, err := unix.Open(j.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, wire.Fail(j.Path, err)
		}
		defer unix.Close(fd)
		return UserNS(fd)
	}
	return -1, wire.Fail("no user namespace to join", unix.EINVAL)
}

// UserNS opens the user namespace that fd is, or that owns the namespace that
// fd is.
func UserNS(fd int) (int, error) {
	const nsGetNSType = 0xb703
	typ, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), nsGetNSType, 0)
	if e != 0 {
		return -1, e
	}
	if typ != unix.CLONE_NEWUSER {
		return aside.OwnerOf(fd)
	}
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
}

// node clones the host's node of a device, which mostly has the same path, or
// one that is made.
func node(p *wire.Program, d *wire.Device) (int, error) {
	kind := d.Kind()
	fd, err := clone(d.Path, false)
	if err == nil {
		var st unix.Stat_t
		if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT == kind && st.Rdev == unix.Mkdev(d.Major, d.Minor) {
			return fd, nil
		}
		unix.Close(fd)
	}
	fd = -1
	aside.Thread(func() {
		// Where nobody else sees it, on a file system that knows nodes.
		if err = unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return
		}
		if err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return
		}
		if err = unix.Mount("tmpfs", "/dev", "tmpfs", 0, "size=4k"); err != nil {
			return
		}
		if err = unix.Mknod("/dev/node", kind, int(unix.Mkdev(d.Major, d.Minor))); err != nil {
			return
		}
		if err = unix.Chmod("/dev/node", d.Mode&0o7777); err != nil {
			return
		}
		if err = unix.Chown("/dev/node", int(p.RootUID), int(p.RootGID)); err != nil {
			return
		}
		fd, err = clone("/dev/node", false)
	})
	return fd, err
}

func clone(path string, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.O_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.OpenTree(unix.AT_FDCWD, path, flags)
}

// Overlay makes a detached mount of the overlay that r describes, or of its
// only directory when there is nothing to lay over. It needs a kernel of 5.2
// or newer.
func Overlay(r *wire.Root) (int, error) {
	if len(r.Lower) == 1 && r.Upper == "" {
		fd, err := clone(r.Lower[0], false)
		if err != nil {
			return -1, wire.Fail(r.Lower[0], err)
		}
		return fd, nil
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, wire.Fail("fsopen overlay", err)
	}
	defer unix.Close(fs)
	set := func(key, path string) error {
		err := setLayer(fs, key, path)
		if err != nil {
			return wire.Fail(key+" "+path, err)
		}
		return nil
	}
	for i, l := range r.Lower {
		err := setLayer(fs, "lowerdir+", l)
		if i == 0 && (err == unix.EINVAL || err == unix.EOPNOTSUPP) { // before 6.5 it takes no descriptors at all
			return oldOverlay(r)
		}
		if err != nil {
			return -1, wire.Fail("layer "+l, err)
		}
	}
	if r.Upper != "" {
		if err := set("upperdir", r.Upper); err != nil {
			return -1, err
		}
		if err := set("workdir", r.Work); err != nil {
			return -1, err
		}
	}
	// The index and its checks cost file handles and gain nothing here.
	_ = unix.FsconfigSetString(fs, "index", "off")
	// Some distributions switch these on; what they leave in the upper
	// directory is no part of the image format: diff and commit would lie.
	_ = unix.FsconfigSetString(fs, "metacopy", "off")
	_ = unix.FsconfigSetString(fs, "redirect_dir", "off")
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, wire.Fail("create overlay"+fsLog(fs), err)
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
}

// setLayer hands a directory over by descriptor where the kernel takes it
// (6.13), else by path.
func setLayer(fs int, key, path string) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err = unix.FsconfigSetFd(fs, key, fd); err != unix.EINVAL {
		return err
	}
	if len(path) > 200 {
		path = "/proc/self/fd/" + strconv.Itoa(fd)
	}
	return unix.FsconfigSetString(fs, key, path)
}

// oldOverlay is for kernels without "lowerdir+": an option of fsconfig holds
// 256 bytes there, some 16 layers. mount(2) takes a page, which 125 layers
// fit into when they are named from their common folder. It is done by a
// thread with a mount namespace of its own, which ends with its goroutine:
// nobody ever sees the mount that the detached one is cloned from.
func oldOverlay(r *wire.Root) (int, error) {
	base := filepath.Dir(r.Lower[0])
	data := oldOptions(r, base)
	if up := filepath.Dir(base); len(oldOptions(r, up)) < len(data) { // LAYERS/NAME/diff
		base, data = up, oldOptions(r, up)
	}
	if len(data) >= unix.Getpagesize() {
		return -1, wire.Fail(strconv.Itoa(len(r.Lower))+" layers", unix.E2BIG)
	}
	var fd int
	var err error
	if r.Mapped { // on a thread of its own already, which sees what others do not
		return mountAside(base, data)
	}
	aside.Thread(func() { fd, err = mountAside(base, data) })
	return fd, err
}

func oldOptions(r *wire.Root, base string) string {
	rel := func(p string) string {
		if q, ok := strings.CutPrefix(p, base+"/"); ok {
			return q
		}
		return p
	}
	names := make([]string, len(r.Lower))
	for i, l := range r.Lower {
		names[i] = rel(l)
	}
	data := "index=off,metacopy=off,redirect_dir=off,lowerdir=" + strings.Join(names, ":")
	if r.Upper != "" {
		data += ",upperdir=" + rel(r.Upper) + ",workdir=" + rel(r.Work)
	}
	return data
}

func mountAside(base, data string) (int, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return -1, wire.Fail("mount namespace for the overlay", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return -1, wire.Fail("mount namespace for the overlay", err)
	}
	if err := unix.Chdir(base); err != nil {
		return -1, wire.Fail(base, err)
	}
	if err := unix.Mount("overlay", base, "overlay", 0, data); err != nil {
		return -1, wire.Fail("mount overlay", err)
	}
	return clone(base, false)
}

// fsLog reads what the kernel says of a failed fsconfig.
func fsLog(fs int) string {
	var b [512]byte
	n, err := unix.Read(fs, b[:])
	if err != nil || n <= 0 {
		return ""
	}
	return " (" + strings.TrimSpace(string(b[:n])) + ")"
}
