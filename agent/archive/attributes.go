package archive

import (
	"archive/tar"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"machine/agent/fault"
)

// chmodPath changes the mode of what an O_PATH descriptor is open on.
func chmodPath(fd int, mode uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK || st.Mode&0o7777 == mode {
		return nil
	}
	return unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), mode)
}

// room refuses to fill the disk to the last byte: the engine needs some to
// record what it removes.
func (u *unpacker) room() error {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(u.root, &st) }); err != nil {
		return nil // not every file system can tell
	}
	if free := st.Bavail * uint64(st.Bsize); st.Blocks > 0 && free < reserve && st.Blocks*uint64(st.Bsize) > 4*reserve {
		return fault.Unavailable.Errorf("unpack: no space left on device: %d MiB free, %d kept in reserve; remove something first: %w", free>>20, reserve>>20, unix.ENOSPC)
	}
	return nil
}

func zero(b []byte) bool {
	if b[0] != 0 || b[len(b)-1] != 0 || b[len(b)/2] != 0 {
		return false
	}
	for len(b) >= 8 {
		if b[0]|b[1]|b[2]|b[3]|b[4]|b[5]|b[6]|b[7] != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func (u *unpacker) owner(h *tar.Header) (uid, gid int, err error) {
	uid, gid = h.Uid, h.Gid
	if u.o.Owner != nil {
		uid, gid = u.o.Owner.UID, u.o.Owner.GID
	}
	if u.o.IDs == nil {
		return uid, gid, nil
	}
	huid, hgid, ok := u.o.IDs.Host(uid, gid)
	if !ok {
		return 0, 0, fault.Invalid.Errorf("owner %d:%d is not among the %d ids of the container's user namespace", uid, gid, u.o.IDs.Size)
	}
	return huid, hgid, nil
}

// attributes sets owner, mode and extended attributes, in this order: chown
// clears set-user-id bits and capabilities.
func (u *unpacker) attributes(fd int, h *tar.Header) error {
	uid, gid, err := u.owner(h)
	if err != nil {
		return err
	}
	if uid < 0 || gid < 0 || int64(uid) > 1<<32-2 || int64(gid) > 1<<32-2 {
		return fault.Invalid.Errorf("owner %d:%d is out of range", uid, gid)
	}
	var st unix.Stat_t // most of what was just made is root's, with its mode: asking is cheaper than changing
	if err := retry(func() error { return unix.Fstat(fd, &st) }); err != nil {
		return err
	}
	other := int64(st.Uid) != int64(uid) || int64(st.Gid) != int64(gid)
	if other {
		if err := retry(func() error { return unix.Fchown(fd, uid, gid) }); err != nil {
			return err
		}
	}
	if mode := uint32(h.Mode & 0o7777); other || st.Mode&0o7777 != mode {
		if err := retry(func() error { return unix.Fchmod(fd, mode) }); err != nil {
			return err
		}
	}
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, xattrRecord)
		if !ok || !allowedXattr(name) {
			continue
		}
		err := retry(func() error { return unix.Fsetxattr(fd, name, []byte(v), 0) })
		if err == unix.ENOTSUP || err == unix.EPERM && strings.HasPrefix(name, "user.") {
			continue // the file system cannot keep it: Docker drops it, too
		}
		if err != nil {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return nil
}

// setTime sets the modification time of base in dir, or of dir itself when
// base is empty.
func setTime(dir int, base string, at time.Time) error {
	if at.IsZero() || at.Unix() < 0 {
		at = time.Unix(0, 0)
	}
	ts := []unix.Timespec{{Sec: at.Unix(), Nsec: int64(at.Nanosecond())}, {Sec: at.Unix(), Nsec: int64(at.Nanosecond())}}
	flags := unix.AT_SYMLINK_NOFOLLOW
	if base == "" {
		flags = unix.AT_EMPTY_PATH
	}
	return retry(func() error { return unix.UtimesNanoAt(dir, base, ts, flags) })
}
