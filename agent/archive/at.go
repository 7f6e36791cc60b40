// Package archive packs and unpacks tar archives of container and image file
// systems.
//
// Every path of an archive or of a container is resolved by the kernel below
// a root descriptor (openat2 with RESOLVE_IN_ROOT) and the last component is
// never followed; nothing is ever resolved as a string on the host. A hostile
// archive or a process that swaps directories for symlinks meanwhile can
// reach what is below the root, and nothing else.
package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"machine/agent/fault"
)

// inRoot are the rules of every path look-up.
const inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// retry repeats f while a signal (Go's preemption sends them) or a racing
// rename cut it short.
func retry(f func() error) error {
	for i := 0; ; i++ {
		err := f()
		if err == unix.EINTR || err == unix.EAGAIN && i < 1000 {
			continue
		}
		return err
	}
}

// openIn opens name below root; symlinks on the way stay below root.
func openIn(root int, name string, flags int) (fd int, err error) {
	if name == "" || name == "/" {
		name = "."
	}
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: inRoot}
	err = retry(func() (err error) {
		fd, err = unix.Openat2(root, name, &how)
		return err
	})
	return fd, err
}

// openAt opens the plain name base in dir; a symlink is not followed.
func openAt(dir int, base string, flags int) (fd int, err error) {
	err = retry(func() (err error) {
		fd, err = unix.Openat(dir, base, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		return err
	})
	return fd, err
}

// statAt is lstat of base in dir.
func statAt(dir int, base string) (st unix.Stat_t, err error) {
	err = retry(func() error { return unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW) })
	return st, err
}

// readlinkAt reads the symlink base in dir.
func readlinkAt(dir int, base string) (string, error) {
	for n := 256; n <= 1<<16; n *= 2 {
		buf := make([]byte, n)
		var got int
		err := retry(func() (err error) { got, err = unix.Readlinkat(dir, base, buf); return err })
		if err != nil {
			return "", err
		}
		if got < n {
			return string(buf[:got]), nil
		}
	}
	return "", unix.ENAMETOOLONG
}

// writeAll writes b to fd, however often it is cut short.
func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// removeAt removes base in dir with all that is below it.
func removeAt(dir int, base string) error {
	err := retry(func() error { return unix.Unlinkat(dir, base, 0) })
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	fd, err := openAt(dir, base, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	for {
		names, rerr := f.Readdirnames(512)
		for _, n := range names {
			if err := removeAt(fd, n); err != nil {
				f.Close()
				return err
			}
		}
		if len(names) == 0 || rerr != nil {
			break
		}
	}
	f.Close()
	return retry(func() error { return unix.Unlinkat(dir, base, unix.AT_REMOVEDIR) })
}

// mkdirIn makes the directory name below root with its parents, 0755, and
// returns a descriptor of it. made is called for each that it made.
func mkdirIn(root int, name string, made func(name string)) (int, error) {
	flags := unix.O_RDONLY | unix.O_DIRECTORY
	fd, err := openIn(root, name, flags)
	if err != unix.ENOENT || name == "." || name == "" || name == "/" {
		return fd, err
	}
	parent, err := mkdirIn(root, path.Dir(name), made)
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	err = retry(func() error { return unix.Mkdirat(parent, path.Base(name), 0o755) })
	if err != nil && err != unix.EEXIST {
		return -1, err
	}
	if err == nil {
		// The umask cut the mode. By now a container may have put a link there,
		// which must not be followed.
		if fd, err := openAt(parent, path.Base(name), unix.O_PATH|unix.O_DIRECTORY); err == nil {
			chmodPath(fd, 0o755)
			unix.Close(fd)
		}
		if made != nil {
			made(name)
		}
	}
	return openIn(root, name, flags)
}

// clean makes the entry name relative; one that leads out is refused.
func clean(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", fault.Invalid.Errorf("archive entry %q: the name holds a NUL byte", name)
	}
	if len(name) >= unix.PathMax {
		return "", fault.Invalid.Errorf("archive entry %q...: the name is longer than %d bytes", name[:64], unix.PathMax-1)
	}
	p := path.Clean(strings.TrimLeft(name, "/"))
	if p == ".." || strings.HasPrefix(p, "../") {
		return "", fault.Invalid.Errorf("archive entry %q leads out of the destination", name)
	}
	return p, nil
}

// kind classes a system error about an archive's or a container's path: what
// only the request's path can cause is the request's fault.
func kind(err error) fault.Kind {
	var e syscall.Errno
	if !errors.As(err, &e) {
		return fault.KindOf(err)
	}
	switch e {
	case unix.ENOENT:
		return fault.NotFound
	case unix.ENOTDIR, unix.EISDIR, unix.ELOOP, unix.ENAMETOOLONG, unix.EINVAL, unix.EEXIST, unix.ENOTEMPTY, unix.EXDEV:
		return fault.Invalid
	case unix.EROFS, unix.EACCES, unix.EPERM:
		return fault.Forbidden
	case unix.ENOSPC, unix.EDQUOT:
		return fault.Unavailable
	}
	return fault.Internal
}

// wrap says what was done to which path.
func wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return kind(err).Errorf("%s %q: %w", op, name, err)
}

// goMode is the FileMode of a stat mode.
func goMode(m uint32) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	switch m & unix.S_IFMT {
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	case unix.S_IFBLK:
		mode |= fs.ModeDevice
	case unix.S_IFCHR:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFIFO:
		mode |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		mode |= fs.ModeSocket
	}
	if m&unix.S_ISUID != 0 {
		mode |= fs.ModeSetuid
	}
	if m&unix.S_ISGID != 0 {
		mode |= fs.ModeSetgid
	}
	if m&unix.S_ISVTX != 0 {
		mode |= fs.ModeSticky
	}
	return mode
}

// allowedXattr tells which extended attributes travel in archives. What the
// overlay itself reads (trusted.overlay.*, user.overlay.*) must never come
// from outside: a redirect would show another layer's files.
func allowedXattr(name string) bool {
	if strings.HasPrefix(name, "user.") {
		return !strings.HasPrefix(name, "user.overlay.")
	}
	switch name {
	case "security.capability", "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	return false
}

// xattrsOf reads the attributes that travel from an open file. File systems
// without attributes have none.
func xattrsOf(fd int, each func(name string, value []byte)) error {
	return xattrs(
		func(b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		func(n string, b []byte) (int, error) { return unix.Fgetxattr(fd, n, b) }, each)
}

func xattrs(list func([]byte) (int, error), get func(string, []byte) (int, error), each func(string, []byte)) error {
	n, err := list(nil)
	if err != nil || n == 0 {
		if err == unix.ENOTSUP || err == unix.EBADF {
			err = nil
		}
		return err
	}
	buf := make([]byte, n+256)
	if n, err = list(buf); err != nil {
		return err
	}
	for _, name := range strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if !allowedXattr(name) {
			continue
		}
		v := make([]byte, 1024)
		m, err := get(name, v)
		if err == unix.ERANGE {
			v = make([]byte, 1<<16)
			m, err = get(name, v)
		}
		if err == unix.ENODATA || err == unix.ENOTSUP {
			continue
		}
		if err != nil {
			return fmt.Errorf("read attribute %s: %w", name, err)
		}
		each(name, v[:m])
	}
	return nil
}

// RemoveChildren removes all that is below dir, which is the host's, however
// deep it is nested: a container may nest deeper than there are descriptors,
// so what is deep is moved up first.
func RemoveChildren(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	r := &remover{top: int(f.Fd())}
	for r.moved = true; r.moved; {
		r.moved = false
		if err := r.children(r.top, 0); err != nil {
			return err
		}
	}
	return nil
}

type remover struct {
	top   int
	moved bool
	n     int
}

const removeDepth = 128

func (r *remover) children(fd, depth int) error {
	names, err := list(fd)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := r.one(fd, n, depth); err != nil && err != unix.ENOENT {
			return err
		}
	}
	return nil
}

func (r *remover) one(dir int, base string, depth int) error {
	err := retry(func() error { return unix.Unlinkat(dir, base, 0) })
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	if depth >= removeDepth {
		r.n++
		r.moved = true
		return retry(func() error { return unix.Renameat(dir, base, r.top, fmt.Sprintf("deep-%d-%d", os.Getpid(), r.n)) })
	}
	fd, err := openAt(dir, base, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	err = r.children(fd, depth+1)
	unix.Close(fd)
	if err != nil {
		return err
	}
	return retry(func() error { return unix.Unlinkat(dir, base, unix.AT_REMOVEDIR) })
}
