package container

import (
	"context"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"machine/agent/fault"
)

// Owner is who files are given to.
type Owner struct{ UID, GID int }

const (
	maxOwner   = 1<<31 - 1
	maxOwnerDB = 4 << 20 // of /etc/passwd and /etc/group
)

// owner is the container's user as its own /etc/passwd and /etc/group have
// it; nil when none is set. Invalid when there is no such user.
func (c *Container) owner(ctx context.Context) (*Owner, error) {
	spec := c.rec.Load().Config.User
	if spec == "" {
		return nil, nil
	}
	return ownerOf(spec, func(path string) (string, error) {
		p, err := c.at(ctx, path)
		if err != nil {
			return "", err
		}
		defer p.done()
		return readBelow(p.root, p.inside)
	})
}

// readBelow reads a file below root: links on the way stay there, and what is
// no regular file counts as none. A file that is not there is empty.
func readBelow(root *os.File, path string) (string, error) {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := -1, unix.EINTR
	for err == unix.EINTR || err == unix.EAGAIN {
		var e error
		fd, e = unix.Openat2(int(root.Fd()), path, &how)
		err, _ = e.(unix.Errno)
	}
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return "", nil
	}
	if err != 0 {
		return "", fault.Invalid.Errorf("open %s of the container: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return "", err
	}
	b, rerr := io.ReadAll(io.LimitReader(f, maxOwnerDB))
	return string(b), rerr
}

// ownerOf resolves user[:group], names or numbers, with the text of passwd(5)
// and group(5) files.
func ownerOf(spec string, read func(path string) (string, error)) (*Owner, error) {
	name, group, hasGroup := strings.Cut(spec, ":")
	o := &Owner{}
	number, err := strconv.Atoi(name)
	isNumber := err == nil && number >= 0 && number <= maxOwner
	text, err := read("/etc/passwd")
	if err != nil {
		return nil, err
	}
	found := false
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 4 || f[0] != name && !(isNumber && f[2] == name) {
			continue
		}
		uid, err1 := strconv.Atoi(f[2])
		gid, err2 := strconv.Atoi(f[3])
		if err1 == nil && err2 == nil && uid >= 0 && gid >= 0 && uid <= maxOwner && gid <= maxOwner {
			o.UID, o.GID, found = uid, gid, true
			break
		}
	}
	if !found && !isNumber {
		return nil, fault.Invalid.Errorf("unable to find user %s: no matching entries in the container's passwd file", name)
	}
	if !found {
		o.UID = number
	}
	if !hasGroup || group == "" {
		return o, nil
	}
	if o.GID, err = strconv.Atoi(group); err == nil && o.GID >= 0 && o.GID <= maxOwner {
		return o, nil
	}
	if text, err = read("/etc/group"); err != nil {
		return nil, err
	}
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 3 || f[0] != group {
			continue
		}
		if gid, err := strconv.Atoi(f[2]); err == nil && gid >= 0 && gid <= maxOwner {
			o.GID = gid
			return o, nil
		}
	}
	return nil, fault.Invalid.Errorf("unable to find group %s: no matching entries in the container's group file", group)
}
