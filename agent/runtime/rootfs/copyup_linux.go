package rootfs

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// copyUp copies the tree below from into to, by descriptor, without following
// links; it is for the small trees that images have under tmpfs mounts.
func copyUp(from, to int) error {
	src, err := unix.Openat(from, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	dst, err := unix.Openat(to, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	return copyDir(src, dst, 0)
}

func copyDir(src, dst, depth int) error {
	if depth > 256 {
		return errors.New("nested too deeply")
	}
	var buf [8192]byte
	for {
		n, err := unix.ReadDirent(src, buf[:])
		if err != nil || n == 0 {
			return err
		}
		for off := 0; off < n; {
			d := (*unix.Dirent)(unsafe.Pointer(&buf[off]))
			name := unix.ByteSliceToString(buf[off+int(unsafe.Offsetof(d.Name)) : off+int(d.Reclen)])
			off += int(d.Reclen)
			if name == "." || name == ".." {
				continue
			}
			if err := copyEntry(src, dst, name, depth); err != nil {
				return err
			}
		}
	}
}

func copyEntry(src, dst int, name string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		var b [unix.PathMax]byte
		n, err := unix.Readlinkat(src, name, b[:])
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(string(b[:n]), dst, name); err != nil {
			return err
		}
		return unix.Fchownat(dst, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
	case unix.S_IFDIR:
		if err := unix.Mkdirat(dst, name, 0o700); err != nil {
			return err
		}
		return withBoth(src, dst, name, unix.O_RDONLY|unix.O_DIRECTORY, unix.O_RDONLY|unix.O_DIRECTORY, &st,
			func(s, d int) error { return copyDir(s, d, depth+1) })
	case unix.S_IFREG:
		return withBoth(src, dst, name, unix.O_RDONLY, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, &st, copyFile)
	}
	if err := unix.Mknodat(dst, name, st.Mode, int(st.Rdev)); err != nil {
		return err
	}
	return unix.Fchownat(dst, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
}

func withBoth(src, dst int, name string, sf, df int, st *unix.Stat_t, f func(s, d int) error) error {
	s, err := unix.Openat(src, name, sf|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	d, err := unix.Openat(dst, name, df|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(d)
	if err := f(s, d); err != nil {
		return err
	}
	if err := unix.Fchown(d, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return unix.Fchmod(d, st.Mode&0o7777)
}

func copyFile(s, d int) error {
	var buf [32 << 10]byte
	for {
		n, err := unix.Read(s, buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return err
		}
		for b := buf[:n]; len(b) > 0; {
			w, err := unix.Write(d, b)
			if err != nil {
				return err
			}
			b = b[w:]
		}
	}
}
