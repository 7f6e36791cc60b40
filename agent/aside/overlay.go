//go:build linux

package aside

import (
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// An Overlay is a mount of overlayfs to be made.
type Overlay struct {
	Lower       []string // the uppermost first
	Upper, Work string   // in one mount; none: it is read-only
	Mapped      bool     // the caller is run by Mapped
}

// Mount makes a detached mount of the overlay, or of its only directory when
// there is nothing to lay over: no table of mounts shows it, and it is gone
// with its last descriptor. The descriptor it returns is as one of O_PATH; the
// caller closes it.
func (o *Overlay) Mount() (int, error) {
	if len(o.Lower) == 1 && o.Upper == "" {
		fd, err := Clone(o.Lower[0], false)
		if err != nil {
			return -1, fail(o.Lower[0], err)
		}
		return fd, nil
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fail("fsopen overlay", err)
	}
	defer unix.Close(fs)
	for i, l := range o.Lower {
		err := setLayer(fs, "lowerdir+", l)
		if i == 0 && (err == unix.EINVAL || err == unix.EOPNOTSUPP) { // before 6.5 it takes no descriptors at all
			return o.oldMount()
		}
		if err != nil {
			return -1, fail("layer "+l, err)
		}
	}
	if o.Upper != "" {
		if err := setLayer(fs, "upperdir", o.Upper); err != nil {
			return -1, fail("upperdir "+o.Upper, err)
		}
		if err := setLayer(fs, "workdir", o.Work); err != nil {
			return -1, fail("workdir "+o.Work, err)
		}
	}
	// The index and its checks cost file handles and gain nothing here.
	_ = unix.FsconfigSetString(fs, "index", "off")
	// Some distributions switch these on; what they leave in the upper
	// directory is no part of the image format: diff and commit would lie.
	_ = unix.FsconfigSetString(fs, "metacopy", "off")
	_ = unix.FsconfigSetString(fs, "redirect_dir", "off")
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fail("create overlay"+FSLog(fs), err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fail("fsmount overlay", err)
	}
	return fd, nil
}

// setLayer hands a directory over by descriptor where the kernel takes it
// (6.13), else by path. A kernel of before 6.5 takes any path, and its log then
// tells of every mount that failed; descriptors it refuses.
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

// oldMount is for kernels without "lowerdir+": an option of fsconfig holds 256
// bytes there, some 16 layers. mount(2) takes a page, which 125 layers fit into
// when they are named from their common folder. It is done by a thread with a
// mount namespace of its own, which ends with its goroutine: nobody ever sees
// the mount that the detached one is cloned from.
func (o *Overlay) oldMount() (fd int, err error) {
	base := filepath.Dir(o.Lower[0])
	data := o.options(base)
	if up := filepath.Dir(base); len(o.options(up)) < len(data) { // LAYERS/NAME/diff
		base, data = up, o.options(up)
	}
	if len(data) >= unix.Getpagesize() {
		return -1, fail(strconv.Itoa(len(o.Lower))+" layers", unix.E2BIG)
	}
	if o.Mapped { // on a thread of its own already, which sees what others do not
		return mountOld(base, data)
	}
	Thread(func() { fd, err = mountOld(base, data) })
	return fd, err
}

// options are those of mount(2), with paths from base.
func (o *Overlay) options(base string) string {
	rel := func(p string) string {
		if q, ok := strings.CutPrefix(p, base+"/"); ok {
			return q
		}
		return p
	}
	names := make([]string, len(o.Lower))
	for i, l := range o.Lower {
		names[i] = rel(l)
	}
	data := "index=off,metacopy=off,redirect_dir=off,lowerdir=" + strings.Join(names, ":")
	if o.Upper != "" {
		data += ",upperdir=" + rel(o.Upper) + ",workdir=" + rel(o.Work)
	}
	return data
}

func mountOld(base, data string) (int, error) {
	if err := Private(); err != nil {
		return -1, fail("mount namespace for the overlay", err)
	}
	if err := unix.Chdir(base); err != nil {
		return -1, fail(base, err)
	}
	if err := unix.Mount("overlay", base, "overlay", 0, data); err != nil {
		return -1, fail("mount overlay", err)
	}
	return Clone(base, false)
}

// Clone makes a detached mount of what is at path; with all below it when
// recursive.
func Clone(path string, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.OpenTree(unix.AT_FDCWD, path, flags)
}

// FSLog reads what the kernel says of a failed fsconfig.
func FSLog(fs int) string {
	var b [512]byte
	n, err := unix.Read(fs, b[:])
	if err != nil || n <= 0 {
		return ""
	}
	return " (" + strings.TrimSpace(string(b[:n])) + ")"
}
