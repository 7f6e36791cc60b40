package archive

import (
	"archive/tar"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"machine/agent/fault"
	"machine/agent/model"
)

func sortStrings(s []string) { slices.Sort(s) }

// PackOptions choose the form of what Pack writes.
type PackOptions struct {
	// RebaseName replaces the first component of all names. Empty is the last
	// component of the path, as `docker cp` expects it: "etc/hosts" for /etc,
	// "./hosts" for "/etc/.", "/etc/hosts" for "/".
	RebaseName string
	// Flat names all relative to the path and leaves out the path itself:
	// `docker export` and image layers.
	Flat bool
	// Whiteouts turns overlayfs's marks of what is gone into those of image
	// layers.
	Whiteouts bool
	// Skip, when set, tells which paths (relative, no leading slash) to leave
	// out with all below them.
	Skip func(name string) bool
	// IDs, when set, are the ids of the container that root is seen by: the
	// tar holds the container's numbers.
	IDs *model.IDMap
}

// Pack writes a tar of path below root to w. A symlink as the last component
// is packed itself unless path ends with "/" or "/.". Sockets are left out; a
// file that shrinks meanwhile is padded with zeros, one that grows is cut.
// NotFound when there is no path.
func Pack(ctx context.Context, w io.Writer, root *os.File, name string, o PackOptions) error {
	p := &packer{ctx: ctx, tw: tar.NewWriter(w), o: o, buf: make([]byte, bufSize), seen: map[inode]string{}}
	if err := p.all(int(root.Fd()), name); err != nil {
		return err
	}
	return p.tw.Close()
}

type inode struct{ dev, ino uint64 }

type packer struct {
	ctx   context.Context
	tw    *tar.Writer
	o     PackOptions
	buf   []byte
	seen  map[inode]string // files with several names
	n     int
	depth int
}

func (p *packer) all(root int, name string) error {
	clean := path.Clean("/" + name)
	follow := strings.HasSuffix(name, "/") || strings.HasSuffix(name, "/.") || clean == "/"
	as := p.o.RebaseName
	if as == "" {
		if as = path.Base(clean); strings.HasSuffix(name, "/.") && clean != "/" {
			as = "."
		}
	}
	if follow {
		fd, err := openIn(root, clean[1:], unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return wrap("open", name, err)
		}
		defer unix.Close(fd)
		if p.o.Flat {
			return p.children(fd, "", "")
		}
		return p.dir(fd, as, "")
	}
	parent, err := openIn(root, path.Dir(clean)[1:], unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return wrap("open", name, err)
	}
	defer unix.Close(parent)
	if _, err := statAt(parent, path.Base(clean)); err != nil {
		return wrap("stat", name, err)
	}
	return p.entry(parent, path.Base(clean), as, "")
}

// join puts a name below another; "/" and "." stay in front, as they are.
func join(dir, base string) string {
	switch {
	case dir == "":
		return base
	case dir == "/":
		return "/" + base
	}
	return dir + "/" + base
}

// entry packs base in dir as as; rel is its path below the packed one.
func (p *packer) entry(dir int, base, as, rel string) error {
	if p.n++; p.n%256 == 0 && p.ctx.Err() != nil {
		return p.ctx.Err()
	}
	if p.o.Skip != nil && rel != "" && p.o.Skip(rel) {
		return nil
	}
	st, err := statAt(dir, base)
	if err != nil {
		if err == unix.ENOENT {
			return nil // went away meanwhile
		}
		return wrap("stat", as, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		fd, err := openAt(dir, base, unix.O_RDONLY|unix.O_DIRECTORY)
		if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
			return nil // replaced meanwhile
		}
		if err != nil {
			return wrap("open", as, err)
		}
		defer unix.Close(fd)
		return p.dir(fd, as, rel)
	case unix.S_IFSOCK:
		return nil
	case unix.S_IFREG:
		return wrap("pack", as, p.file(dir, base, as))
	case unix.S_IFCHR:
		if p.o.Whiteouts && st.Rdev == 0 {
			h := &tar.Header{Name: path.Join(path.Dir(as), whiteoutPrefix+path.Base(as)), Typeflag: tar.TypeReg, Format: tar.FormatPAX, ModTime: time.Unix(st.Mtim.Sec, 0)}
			return p.tw.WriteHeader(h)
		}
	}
	h := p.header(&st, as)
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		if h.Linkname, err = readlinkAt(dir, base); err != nil {
			return wrap("read link", as, err)
		}
	}
	p.linked(h, &st)
	return p.tw.WriteHeader(h)
}

// linked turns h into a hard link when the file was packed under another name.
func (p *packer) linked(h *tar.Header, st *unix.Stat_t) bool {
	if st.Nlink < 2 || st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return false
	}
	key := inode{uint64(st.Dev), st.Ino}
	if first, ok := p.seen[key]; ok {
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		return true
	}
	p.seen[key] = h.Name
	return false
}

func (p *packer) file(dir int, base, as string) error {
	// Not blocking: it may have become a pipe.
	fd, err := openAt(dir, base, unix.O_RDONLY|unix.O_NONBLOCK)
	if err == unix.ENOENT || err == unix.ELOOP || err == unix.ENXIO {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	h := p.header(&st, as)
	link := p.linked(h, &st)
	if err := p.addXattrs(h, fd); err != nil {
		return err
	}
	if link {
		// dockerd and containerd set a link's owner when they unpack it, which
		// clears the file's capabilities: so these come once more.
		maps.DeleteFunc(h.PAXRecords, func(k, _ string) bool { return k != xattrRecord+capXattr })
		return p.tw.WriteHeader(h)
	}
	if err := p.tw.WriteHeader(h); err != nil {
		return err
	}
	n, err := copyFd(p.tw, fd, st.Size, p.buf)
	if err != nil {
		return err
	}
	if n < st.Size {
		clear(p.buf)
		for n < st.Size {
			m, err := p.tw.Write(p.buf[:min(int64(len(p.buf)), st.Size-n)])
			if err != nil {
				return err
			}
			n += int64(m)
		}
	}
	return p.ctx.Err()
}

func (p *packer) addXattrs(h *tar.Header, fd int) error {
	return xattrsOf(fd, func(n string, v []byte) {
		if p.o.IDs != nil && n == capXattr {
			v = ownCaps(v, p.o.IDs.UID)
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrRecord+n] = string(v)
	})
}

const (
	capXattr    = "security.capability"
	xattrRecord = "SCHILY.xattr." // of PAX
)

// ownCaps turns the capabilities of a file that hold for the user namespace of
// root (version 3, linux/capability.h) into those of a file that knows none.
func ownCaps(v []byte, root uint32) []byte {
	if len(v) != 24 || v[3] != 3 || binary.LittleEndian.Uint32(v[20:]) != root {
		return v
	}
	v = slices.Clone(v[:20])
	v[3] = 2
	return v
}

func (p *packer) dir(fd int, as, rel string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return wrap("stat", as, err)
	}
	h := p.header(&st, as)
	if !strings.HasSuffix(h.Name, "/") {
		h.Name += "/"
	}
	if err := p.addXattrs(h, fd); err != nil {
		return wrap("pack", as, err)
	}
	if err := p.tw.WriteHeader(h); err != nil {
		return wrap("pack", as, err)
	}
	return p.children(fd, as, rel)
}

// maxNesting bounds the directories below each other that are packed: each
// holds a descriptor, and a container may nest without end.
const maxNesting = 1000

func (p *packer) children(fd int, as, rel string) error {
	if p.depth++; p.depth > maxNesting {
		return fault.Invalid.Errorf("pack %.100q...: directories nest deeper than %d", as, maxNesting)
	}
	defer func() { p.depth-- }()
	if p.o.Whiteouts && isOpaque(fd) {
		h := &tar.Header{Name: join(as, whiteoutOpaque), Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		if err := p.tw.WriteHeader(h); err != nil {
			return err
		}
	}
	names, err := list(fd)
	if err != nil {
		return wrap("list", as, err)
	}
	for _, n := range names {
		if err := p.entry(fd, n, join(as, n), join(rel, n)); err != nil {
			return err
		}
	}
	return nil
}

func isOpaque(fd int) bool {
	b := make([]byte, 4)
	n, err := unix.Fgetxattr(fd, opaqueXattr, b)
	return err == nil && n == 1 && b[0] == 'y'
}

// list reads the names in an open directory, sorted, without moving fd's own
// offset.
func list(fd int) ([]string, error) {
	dup, err := openAt(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(dup), "directory")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	return names, nil
}

func (p *packer) header(st *unix.Stat_t, name string) *tar.Header {
	h := &tar.Header{
		Name: name, Format: tar.FormatPAX, Mode: int64(st.Mode & 0o7777),
		Uid: int(st.Uid), Gid: int(st.Gid), ModTime: time.Unix(st.Mtim.Sec, 0),
	}
	if p.o.IDs != nil {
		h.Uid, h.Gid = p.o.IDs.Inside(h.Uid, h.Gid)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		h.Typeflag = tar.TypeReg
		h.Size = st.Size
	}
	return h
}

// Stat describes name below root: the last component itself, when it is a
// symlink, with the path that it leads to below root as LinkTarget. A
// trailing "/" or "/." asks for the directory behind it. NotFound when there
// is nothing.
func Stat(root *os.File, name string) (model.PathStat, error) {
	var s model.PathStat
	clean := path.Clean("/" + name)
	flags := unix.O_PATH | unix.O_NOFOLLOW
	if strings.HasSuffix(name, "/") || strings.HasSuffix(name, "/.") {
		flags = unix.O_PATH | unix.O_DIRECTORY
	}
	fd, err := openIn(int(root.Fd()), clean[1:], flags)
	if err != nil {
		if err == unix.ENOENT {
			return s, fault.NotFound.Errorf("no such file or directory: %s", name)
		}
		return s, wrap("stat", name, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return s, wrap("stat", name, err)
	}
	s = model.PathStat{Name: path.Base(clean), Size: st.Size, Mode: goMode(st.Mode), Mtime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec)}
	if s.Mode&fs.ModeSymlink != 0 {
		if s.LinkTarget, err = Resolve(root, clean); err != nil {
			return s, err
		}
	}
	return s, nil
}

// Resolve gives the path, absolute below root, that name leads to when all
// its symlinks are followed below root. What does not exist is kept as it is
// written. It only tells: to open, use descriptors.
func Resolve(root *os.File, name string) (string, error) {
	todo := strings.Split(strings.Trim(path.Clean("/"+name), "/"), "/")
	at := "/"
	for links := 0; len(todo) > 0; {
		c := todo[0]
		todo = todo[1:]
		switch c {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		target, err := linkBelow(int(root.Fd()), at, c)
		if err != nil { // no symlink, or nothing
			at = path.Join(at, c)
			continue
		}
		if links++; links > 255 {
			return "", fault.Invalid.Errorf("resolve %q: %w", name, unix.ELOOP)
		}
		if strings.HasPrefix(target, "/") {
			at = "/"
		}
		todo = append(strings.Split(target, "/"), todo...)
		if len(todo) > 4*unix.PathMax {
			return "", fault.Invalid.Errorf("resolve %q: %w", name, unix.ENAMETOOLONG)
		}
	}
	return at, nil
}

func linkBelow(root int, dir, base string) (string, error) {
	fd, err := openIn(root, path.Clean(dir)[1:], unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	t, err := readlinkAt(fd, base)
	if err != nil {
		return "", fmt.Errorf("read link: %w", err)
	}
	return t, nil
}
