//go:build linux

// Package aside runs code on threads of their own: with other ids, or with a
// mount namespace that nobody else sees. Such a thread ends with what it ran,
// and all that was special about it with it. It also makes the mounts that
// nobody else sees. It is a part of the shim, too, and so imports little.
package aside

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Thread runs f on a thread that ends with it. The main thread cannot end, and
// it is what /proc shows of the process: it is held while another does the
// work.
func Thread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		Thread(f)
		runtime.UnlockOSThread()
	}()
	<-done
}

// Private gives the calling thread, one of Thread's, a mount namespace that
// nobody else sees: a copy of the one it is in.
func Private() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
}

// noFixup is SECBIT_NO_SETUID_FIXUP of capabilities(7): capabilities stay when
// ids change.
const noFixup = 1 << 2

// As runs f on a thread that makes files as user and group uid and gid, and
// keeps its capabilities. A mount with mapped ids takes no new files of users
// whom its map does not have, and the host's root is none of them.
func As(uid, gid uint32, f func() error) (err error) {
	Thread(func() {
		if err = become(uid, gid); err == nil {
			err = f()
		}
	})
	return err
}

func become(uid, gid uint32) error {
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, noFixup, 0, 0, 0); err != nil {
		return fail("keep capabilities", err)
	}
	// These calls tell the old id, never an error: ask again.
	for call, id := range map[uintptr]uint32{unix.SYS_SETFSGID: gid, unix.SYS_SETFSUID: uid} {
		unix.RawSyscall(call, uintptr(id), 0, 0)
		if now, _, _ := unix.RawSyscall(call, uintptr(^uint32(0)), 0, 0); uint32(now) != id {
			return fail("take the ids of the container's root", unix.EPERM)
		}
	}
	return nil
}

// Mapped runs f on a thread that sees the directories dirs with mapped ids:
// the ids of the disk are taken for those of the user namespace. What f mounts
// from them, detached, keeps that when the thread is gone. uid and gid, with
// which f makes files, are the namespace's root. It needs Linux 5.12, for an
// overlay of such directories 5.19, and a file system that can do it
// (mount_setattr(2)); EINVAL without.
func Mapped(userns int, uid, gid uint32, dirs []string, f func() error) error {
	return As(uid, gid, func() error {
		if err := Private(); err != nil {
			return fail("mount namespace for mapped ids", err)
		}
		for _, d := range dirs {
			if err := cover(userns, d); err != nil {
				return fail("map the ids of "+d, err)
			}
		}
		return f()
	})
}

// cover mounts a directory on itself, with mapped ids.
func cover(userns int, dir string) error {
	fd, err := Clone(dir, false)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	a := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns)}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &a); err != nil {
		return err
	}
	return unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// OwnerOf opens the user namespace that owns the namespace of fd
// (ioctl_ns(2)). The caller closes it.
func OwnerOf(fd int) (int, error) {
	const nsGetUserns = 0xb701
	owner, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), nsGetUserns, 0)
	if e != 0 {
		return -1, e
	}
	unix.CloseOnExec(int(owner))
	return int(owner), nil
}

type failure struct {
	what string
	err  error
}

func fail(what string, err error) error { return &failure{what, err} }

func (f *failure) Error() string { return f.what + ": " + f.err.Error() }
func (f *failure) Unwrap() error { return f.err }
