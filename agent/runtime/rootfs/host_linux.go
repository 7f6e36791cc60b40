package rootfs

import (
	"path/filepath"

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
				m.FD, err = aside.Clone(m.Source, m.Recursive)
			}
			if err != nil {
				return fds, wire.Fail("bind mount "+m.Source, err)
			}
			fds = append(fds, m.FD)
		case wire.MountCgroup:
			for _, kv := range m.Cgroup {
				fd, err := aside.Clone(kv.Value, false)
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
	o := aside.Overlay{Lower: r.Lower, Upper: r.Upper, Work: r.Work, Mapped: r.Mapped}
	if !r.Mapped {
		return o.Mount()
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
		fd, err = o.Mount()
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
	fd, err := aside.Clone(d.Path, false)
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
		if err = aside.Private(); err != nil {
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
		fd, err = aside.Clone("/dev/node", false)
	})
	return fd, err
}
