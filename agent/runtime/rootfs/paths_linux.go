// Package rootfs puts a container's file tree together: the overlay, the
// mounts, the devices, the hidden paths. Its first half runs in the shim, with
// the host's rights, and makes detached mounts of what comes from the host; its
// second half runs in the container's new namespaces and puts everything into
// place. Nothing of it ever appears in the host's mount table.
//
// Every path inside the container is resolved by openat2 with RESOLVE_IN_ROOT
// against the root's descriptor, and acted on by descriptor.
package rootfs

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"machine/agent/runtime/wire"
)

// Magic numbers of file systems (statfs(2)).
const (
	procMagic  = 0x9fa0
	sysfsMagic = 0x62656572
	ptsMagic   = 0x1cd1
)

// A Tree is a container's root, by descriptor.
type Tree struct{ fd int }

// openIn opens a path of the container.
func (t Tree) openIn(path string, flags, resolve uint64) (int, error) {
	for {
		fd, err := unix.Openat2(t.fd, strings.TrimLeft(path, "/")+dotIfEmpty(path), &unix.OpenHow{
			Flags:   flags | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | resolve,
		})
		// EAGAIN: the kernel could not rule out a race with a rename.
		if err != unix.EAGAIN && err != unix.EINTR {
			return fd, err
		}
	}
}

func dotIfEmpty(path string) string {
	if strings.Trim(path, "/") == "" {
		return "."
	}
	return ""
}

// mkdirs opens the directory, made with all its parents when absent. Symbolic
// links on the way are followed inside the container.
func (t Tree) mkdirs(path string, mode uint32) (int, error) {
	fd, err := t.openIn(path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != unix.ENOENT {
		return fd, err
	}
	parent, base := split(path)
	dir, err := t.mkdirs(parent, 0o755)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	if base == "." || base == ".." || base == "" {
		return -1, unix.EINVAL
	}
	if err := unix.Mkdirat(dir, base, mode); err != nil && err != unix.EEXIST {
		return -1, err
	}
	return unix.Openat(dir, base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// mkfile opens the file, made empty with its parents when absent.
func (t Tree) mkfile(path string) (int, error) {
	fd, err := t.openIn(path, unix.O_PATH, 0)
	if err != unix.ENOENT {
		return fd, err
	}
	parent, base := split(path)
	dir, err := t.mkdirs(parent, 0o755)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	f, err := unix.Openat(dir, base, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_WRONLY, 0o644)
	if err != nil && err != unix.EEXIST {
		return -1, err
	}
	if err == nil {
		unix.Close(f)
	}
	return unix.Openat(dir, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

func split(path string) (dir, base string) {
	path = strings.TrimRight(path, "/")
	i := strings.LastIndexByte(path, '/')
	return path[:max(i, 0)], path[i+1:]
}

func isFS(fd int, magic int64) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && int64(st.Type) == magic
}

// procAllowed are the only paths in /proc that may be mounted over.
var procAllowed = []string{
	"/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/uptime",
	"/proc/loadavg", "/proc/slabinfo", "/proc/net/dev", "/proc/sys/kernel/ns_last_pid", "/proc/sys/crypto/fips_enabled",
}

// target opens the place for a mount and refuses places that would hide the
// container's own /proc and /sys from the checks that rest on them.
func (t Tree) target(m *wire.Mount, file bool) (int, error) {
	if m.Kind == wire.MountFS && (m.Type == "proc" || m.Type == "sysfs") {
		// A symbolic link here, planted by the image, would leave the real
		// /proc for the container to fill.
		fd, err := t.openIn(m.Dest, unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_NO_SYMLINKS)
		if err == unix.ENOENT {
			return t.mkdirs(m.Dest, 0o555)
		}
		if err == unix.ELOOP || err == unix.ENOTDIR {
			return -1, errors.New("the mount point must be a directory, not a symbolic link")
		}
		var st unix.Stat_t
		if err == nil && (unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR) {
			unix.Close(fd)
			return -1, errors.New("the mount point must be a directory, not a symbolic link")
		}
		return fd, err
	}
	var fd int
	var err error
	if file {
		fd, err = t.mkfile(m.Dest)
	} else {
		fd, err = t.mkdirs(m.Dest, 0o755)
	}
	if err != nil {
		return -1, err
	}
	if isFS(fd, procMagic) {
		for _, p := range procAllowed {
			if m.Dest == p {
				return fd, nil
			}
		}
		unix.Close(fd)
		return -1, errors.New("cannot be mounted because it is inside /proc")
	}
	return fd, nil
}
