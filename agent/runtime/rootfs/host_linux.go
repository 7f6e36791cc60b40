package rootfs

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"machine/agent/runtime/wire"
)

// Detach makes, with the host's rights and in the host's mount namespace, a
// detached mount of the root and of each bind of p, and notes the descriptors
// in p. It returns the descriptors, also after an error; the caller closes
// them after the stage has inherited them.
func Detach(p *wire.Program) (fds []int, err error) {
	if p.RootFD, err = Overlay(&p.Root); err != nil {
		return nil, wire.Fail("mount the root", err)
	}
	fds = append(fds, p.RootFD)
	for i := range p.Mounts {
		m := &p.Mounts[i]
		m.FD = -1
		switch m.Kind {
		case wire.MountBind:
			if m.FD, err = clone(m.Source, m.Recursive); err != nil {
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
		if d.FD, err = clone(d.Path, false); err != nil {
			return fds, wire.Fail("bind device "+d.Path, err)
		}
		fds = append(fds, d.FD)
	}
	return fds, nil
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
// or newer; up to 6.4 the layers' paths must fit into one option, for which
// they are named by descriptor.
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
		if i == 0 && err == unix.EINVAL {
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

// oldOverlay is for kernels without "lowerdir+". A mount option of fsconfig
// holds 256 bytes there, which is some 16 layers by descriptor.
func oldOverlay(r *wire.Root) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	var names []string
	for _, l := range r.Lower {
		fd, err := unix.Open(l, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, wire.Fail("layer "+l, err)
		}
		defer unix.Close(fd)
		names = append(names, "/proc/self/fd/"+strconv.Itoa(fd))
	}
	if err := unix.FsconfigSetString(fs, "lowerdir", strings.Join(names, ":")); err != nil {
		return -1, wire.Fail(strconv.Itoa(len(names))+" layers", err)
	}
	if r.Upper != "" {
		if err := unix.FsconfigSetString(fs, "upperdir", r.Upper); err != nil {
			return -1, wire.Fail("upperdir "+r.Upper, err)
		}
		if err := unix.FsconfigSetString(fs, "workdir", r.Work); err != nil {
			return -1, wire.Fail("workdir "+r.Work, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, wire.Fail("create overlay"+fsLog(fs), err)
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
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
