package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"machine/agent/fault"
	"machine/agent/model"
)

// Limits of one archive. They are far above what real images hold.
const (
	maxSparse  = 64 << 30  // logical size of all sparse entries
	maxEntries = 20 << 20  // entries in one archive
	reserve    = 64 << 20  // bytes left free on the disk, so that rm and stop still work
	checkEvery = 64 << 20  // bytes between looks at the free space
	bufSize    = 512 << 10 // of the copy buffer
)

// Owner is who gets what is unpacked.
type Owner struct{ UID, GID int }

// UnpackOptions choose how Unpack treats what is there and what comes.
type UnpackOptions struct {
	// NoOverwriteDirNonDir refuses to replace a directory by something else,
	// and something else by a directory.
	NoOverwriteDirNonDir bool
	// Owner, when set, owns all that is unpacked, instead of the archive's
	// numbers.
	Owner *Owner
	// IDs, when set, are the ids of the container that root is seen by: the
	// archive's numbers, and Owner's, are the container's. Numbers that the
	// container does not have are Invalid.
	IDs *model.IDMap
	// Root gives the directory itself the attributes that the archive has for
	// its root.
	Root bool
}

// Unpack unpacks the tar r, which may be compressed, into the directory dir
// below root. Symlinks in dir and on the way of entries are followed below
// root only. dir must exist: NotFound if it does not, Invalid if it is no
// directory; Invalid, too, for a broken or hostile archive. What was unpacked
// before an error stays.
func Unpack(ctx context.Context, root *os.File, dir string, r io.Reader, o UnpackOptions) error {
	plain, err := Decompress(r)
	if err != nil {
		return err
	}
	defer plain.Close()
	base := path.Clean("/" + dir)[1:]
	if base == "" {
		base = "."
	}
	fd, err := openIn(int(root.Fd()), base, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return wrap("open", dir, err)
	}
	unix.Close(fd)
	u := &unpacker{ctx: ctx, root: int(root.Fd()), base: base, o: o}
	defer u.close()
	return u.all(tar.NewReader(plain))
}

// An unpacker is one archive on its way to a directory.
type unpacker struct {
	ctx     context.Context
	root    int
	base    string // directory below root that entries are relative to
	o       UnpackOptions
	layer   *layerState // nil unless an image layer is unpacked
	buf     []byte
	lastDir string // the parent that lastFd is open on
	lastFd  int
	hasLast bool
	mtimes  []dirTime
	written int64
	sparse  int64 // logical bytes of sparse files
	entries int
}

type dirTime struct {
	name string
	at   time.Time
}

func (u *unpacker) close() { u.forget() }

// forget drops the cached parent: a directory went away.
func (u *unpacker) forget() {
	if u.hasLast {
		unix.Close(u.lastFd)
		u.hasLast = false
	}
}

func (u *unpacker) all(tr *tar.Reader) error {
	if err := u.room(); err != nil {
		return err
	}
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return badTar(err)
		}
		if u.entries++; u.entries > maxEntries {
			return fault.Invalid.Errorf("archive has more than %d entries", maxEntries)
		}
		if u.entries%256 == 0 && u.ctx.Err() != nil {
			return u.ctx.Err()
		}
		if err := u.entry(h, tr); err != nil {
			return err
		}
	}
	u.forget()
	for i := len(u.mtimes) - 1; i >= 0; i-- { // children first: setting one touches no parent
		d := u.mtimes[i]
		fd, err := openIn(u.root, d.name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			continue // replaced by a later entry
		}
		err = setTime(fd, "", d.at)
		unix.Close(fd)
		if err != nil {
			return wrap("set time of", d.name, err)
		}
	}
	return nil
}

// badTar blames the archive for an error of its reader, unless the source
// itself said what it is.
func badTar(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || fault.KindOf(err) != fault.Internal {
		return err
	}
	return fault.Invalid.Errorf("read archive: %w", err)
}

// parent returns a descriptor of the directory that the entry goes to. It
// stays owned by u.
func (u *unpacker) parent(name string) (int, error) {
	dir := path.Dir(path.Join(u.base, name))
	if u.hasLast && u.lastDir == dir {
		return u.lastFd, nil
	}
	var made func(string)
	if u.layer != nil {
		made = u.layer.imply
	}
	fd, err := mkdirIn(u.root, dir, made)
	if err != nil {
		if err == unix.ENOENT { // a dangling symlink on the way
			err = unix.ENOTDIR
		}
		return -1, wrap("open parent of", name, err)
	}
	u.forget()
	u.lastDir, u.lastFd, u.hasLast = dir, fd, true
	return fd, nil
}

func (u *unpacker) entry(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	if name == "." {
		return u.rootEntry(h)
	}
	if u.layer != nil {
		if done, err := u.whiteout(name); done || err != nil {
			return err
		}
	}
	dir, err := u.parent(name)
	if err != nil {
		return err
	}
	base := path.Base(name)
	switch h.Typeflag {
	case tar.TypeDir:
		err = u.directory(dir, base, name, h)
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		err = u.file(dir, base, name, h, r)
	case tar.TypeLink:
		err = u.link(dir, base, name, h)
	case tar.TypeSymlink:
		err = u.make(dir, base, name, h, func() error { return unix.Symlinkat(h.Linkname, dir, base) })
		if u.layer != nil {
			u.layer.size += int64(len(h.Linkname))
		}
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		err = u.make(dir, base, name, h, func() error { return mknod(dir, base, h) })
	default:
		return fault.Invalid.Errorf("archive entry %q: unknown type %q", h.Name, h.Typeflag)
	}
	if err != nil {
		return wrap("unpack", h.Name, err)
	}
	return nil
}

func mknod(dir int, base string, h *tar.Header) error {
	mode := uint32(h.Mode & 0o7777)
	dev := uint64(0)
	switch h.Typeflag {
	case tar.TypeChar:
		mode |= unix.S_IFCHR
		dev = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	case tar.TypeBlock:
		mode |= unix.S_IFBLK
		dev = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	default:
		mode |= unix.S_IFIFO
	}
	return unix.Mknodat(dir, base, mode, int(dev))
}

// rootEntry is the destination itself: only a layer sets its attributes.
func (u *unpacker) rootEntry(h *tar.Header) error {
	if u.layer == nil && !u.o.Root || h.Typeflag != tar.TypeDir {
		return nil
	}
	fd, err := openIn(u.root, u.base, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if u.layer != nil {
		delete(u.layer.implied, ".")
	}
	if err := u.attributes(fd, h); err != nil {
		return wrap("unpack", h.Name, err)
	}
	u.mtimes = append(u.mtimes, dirTime{u.base, h.ModTime})
	return nil
}

// clear makes base free for a new entry that is no directory.
func (u *unpacker) clear(dir int, base, name string) error {
	st, err := statAt(dir, base)
	if err != nil {
		if err == unix.ENOENT {
			return nil
		}
		return err
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if isDir && u.o.NoOverwriteDirNonDir {
		return fault.Invalid.Errorf("cannot overwrite directory %q with non-directory", name)
	}
	if isDir {
		u.forget0(dir)
	}
	if u.layer != nil {
		return u.layer.displace(dir, base, name, isDir)
	}
	return removeAt(dir, base)
}

// forget0 drops the cached parent unless it is dir, which is in use.
func (u *unpacker) forget0(dir int) {
	if u.hasLast && u.lastFd != dir {
		u.forget()
	}
}

// create runs f, which makes base, and clears what is in its way.
func (u *unpacker) create(dir int, base, name string, f func() error) error {
	for range 8 { // a container may put something there meanwhile
		err := retry(f)
		if err != unix.EEXIST {
			return err
		}
		if err := u.clear(dir, base, name); err != nil {
			return err
		}
	}
	return unix.EEXIST
}

// make is for entries that cannot be opened: symlinks, devices, pipes.
func (u *unpacker) make(dir int, base, name string, h *tar.Header, f func() error) error {
	if err := u.create(dir, base, name, f); err != nil {
		return err
	}
	uid, gid, err := u.owner(h)
	if err != nil {
		return err
	}
	if err := retry(func() error { return unix.Fchownat(dir, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW) }); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		// mknod obeys the umask. Between it and here base may have become a
		// symlink, so the mode is set through a descriptor that refuses one.
		fd, err := openAt(dir, base, unix.O_PATH)
		if err != nil {
			return err
		}
		err = chmodPath(fd, uint32(h.Mode&0o7777))
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return setTime(dir, base, h.ModTime)
}

func (u *unpacker) link(dir int, base, name string, h *tar.Header) error {
	target, err := clean(h.Linkname)
	if err != nil {
		return fault.Invalid.Errorf("hard link %q: %w", h.Name, err)
	}
	if target == "." {
		return fault.Invalid.Errorf("hard link to the archive's root")
	}
	if target == name {
		return fault.Invalid.Errorf("hard link to itself")
	}
	tdir, err := openIn(u.root, path.Dir(path.Join(u.base, target)), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("target %q: %w", h.Linkname, err)
	}
	defer unix.Close(tdir)
	// No flags: a symlink is linked itself, never what it points to. Mode and
	// owner are the target's already: setting them again could reach a file
	// that the archive does not own.
	err = u.create(dir, base, name, func() error { return unix.Linkat(tdir, path.Base(target), dir, base, 0) })
	if err != nil {
		return fmt.Errorf("target %q: %w", h.Linkname, err)
	}
	return nil
}

func (u *unpacker) directory(dir int, base, name string, h *tar.Header) error {
	var fd int
	for try := 0; ; try++ {
		err := retry(func() error { return unix.Mkdirat(dir, base, 0o700) })
		if err != nil && err != unix.EEXIST {
			return err
		}
		fd, err = openAt(dir, base, unix.O_RDONLY|unix.O_DIRECTORY)
		if err == nil {
			break
		}
		if err != unix.ENOTDIR && err != unix.ELOOP || try > 8 {
			return err
		}
		if u.o.NoOverwriteDirNonDir {
			return fault.Invalid.Errorf("cannot overwrite non-directory %q with directory", name)
		}
		if err := u.clear(dir, base, name); err != nil {
			return err
		}
	}
	defer unix.Close(fd)
	full := path.Join(u.base, name)
	if u.layer != nil {
		delete(u.layer.implied, full)
	}
	if err := u.attributes(fd, h); err != nil {
		return err
	}
	u.mtimes = append(u.mtimes, dirTime{full, h.ModTime})
	return nil
}

func (u *unpacker) file(dir int, base, name string, h *tar.Header, r io.Reader) error {
	sparse := isSparse(h)
	if sparse {
		if h.Size > maxSparse-u.sparse {
			return fault.Invalid.Errorf("sparse files have more than %d bytes", int64(maxSparse))
		}
		u.sparse += h.Size
	}
	var fd int
	err := u.create(dir, base, name, func() (err error) {
		fd, err = unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, uint32(h.Mode&0o777))
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if u.layer != nil {
		if err := u.layer.begin(path.Join(u.base, name), h.Size, sparse); err != nil {
			return err
		}
	}
	if err := u.copy(fd, r, h.Size); err != nil {
		return err
	}
	if u.layer != nil {
		u.layer.end()
		u.layer.size += h.Size
	}
	if err := u.attributes(fd, h); err != nil {
		return err
	}
	return setTime(fd, "", h.ModTime)
}

func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// copy writes size bytes of r to fd; stretches of zeros become holes.
func (u *unpacker) copy(fd int, r io.Reader, size int64) error {
	if u.buf == nil {
		u.buf = make([]byte, bufSize)
	}
	var off int64
	hole := false
	for off < size {
		n, err := io.ReadFull(r, u.buf[:min(size-off, bufSize)])
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return badTar(err)
		}
		b := u.buf[:n]
		if n >= 64<<10 && zero(b) {
			hole = true
			if _, err := unix.Seek(fd, int64(n), io.SeekCurrent); err != nil {
				return err
			}
		} else {
			hole = false
			if err := writeAll(fd, b); err != nil {
				return err
			}
			if u.written += int64(n); u.written >= checkEvery {
				u.written = 0
				if err := u.room(); err != nil {
					return err
				}
			}
		}
		off += int64(n)
		if u.ctx.Err() != nil {
			return u.ctx.Err()
		}
	}
	if hole {
		return retry(func() error { return unix.Ftruncate(fd, size) })
	}
	return nil
}
