package archive

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"machine/agent/fault"
)

// The whiteouts of image layers (image-spec, layer.md).
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
	opaqueXattr    = "trusted.overlay.opaque"
)

// A LayerInfo is what UnpackLayer learned of a layer.
type LayerInfo struct {
	Size int64 // bytes of all regular files and symlinks
	// Implied are directories that the tar has no entry for, parents first:
	// their owner and mode are the parent layer's to say.
	Implied []string
	// Moved are files that a later entry of the same tar replaced: number of
	// the file in the skeleton to its name in the folder of displaced ones.
	Moved map[int]string
}

// UnpackLayer unpacks the plain layer tar r into the empty directory diff in
// the form that overlayfs reads: whiteouts become character devices 0:0,
// opaque markers the attribute trusted.overlay.opaque. The skeleton (all of
// the tar but the content of its files) is written to skel, so that Assemble
// can give back the same tar to the byte; displaced is an empty directory for
// files that a later entry of the tar replaces. r is read to its end. Errors
// are Invalid when the tar is at fault.
func UnpackLayer(ctx context.Context, diff, displaced *os.File, r io.Reader, skel io.Writer) (LayerInfo, error) {
	enc, err := zstd.NewWriter(skel, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<18))
	if err != nil {
		return LayerInfo{}, err
	}
	defer enc.Close()
	rec := &recorder{r: r, w: bufio.NewWriterSize(enc, 64<<10)}
	ls := &layerState{rec: rec, displaced: int(displaced.Fd()), implied: map[string]int{".": 0}, files: map[string]int{}, moved: map[int]string{}}
	u := &unpacker{ctx: ctx, root: int(diff.Fd()), base: ".", layer: ls}
	defer u.close()
	if err := u.all(tar.NewReader(rec)); err != nil {
		return LayerInfo{}, err
	}
	// Some writers pad the archive: that, too, belongs to its digest.
	if _, err := io.Copy(io.Discard, rec); err != nil {
		return LayerInfo{}, badTar(err)
	}
	if err := rec.finish(); err != nil {
		return LayerInfo{}, fmt.Errorf("write layer skeleton: %w", err)
	}
	if err := enc.Close(); err != nil {
		return LayerInfo{}, fmt.Errorf("write layer skeleton: %w", err)
	}
	info := LayerInfo{Size: ls.size, Moved: ls.moved}
	for n := range ls.implied {
		info.Implied = append(info.Implied, n)
	}
	sortStrings(info.Implied)
	return info, nil
}

// layerState is what an unpacker keeps for layers only.
type layerState struct {
	rec       *recorder
	displaced int
	implied   map[string]int // directories made without an entry of their own
	files     map[string]int // path to number in the skeleton
	moved     map[int]string
	next      int // number of the next file
	nmoved    int
	ndirs     int
	size      int64
}

func (l *layerState) imply(name string) { l.implied[name] = len(l.implied) }

// begin says that the next size bytes read are the content of the file name.
func (l *layerState) begin(name string, size int64, sparse bool) error {
	if sparse { // its bytes in the tar are not those on disk: keep them
		return nil
	}
	l.files[name] = l.next
	l.next++
	return l.rec.file(name, size)
}

func (l *layerState) end() { l.rec.payload = false }

// displace moves what a later entry replaces out of the way: the tar cannot
// be given back without it.
func (l *layerState) displace(dir int, base, name string, isDir bool) error {
	to := strconv.Itoa(l.nmoved)
	l.nmoved++
	if err := retry(func() error { return unix.Renameat(dir, base, l.displaced, to) }); err != nil {
		return err
	}
	if n, ok := l.files[name]; ok {
		l.moved[n] = to
		delete(l.files, name)
	}
	if !isDir {
		return nil
	}
	if l.ndirs++; l.ndirs > 1000 {
		return fault.Invalid.Errorf("more than 1000 directories are replaced by later entries")
	}
	for f, n := range l.files {
		if rest, ok := strings.CutPrefix(f, name+"/"); ok {
			l.moved[n] = path.Join(to, rest)
			delete(l.files, f)
		}
	}
	for f := range l.implied {
		if f == name || strings.HasPrefix(f, name+"/") {
			delete(l.implied, f)
		}
	}
	return nil
}

// whiteout handles the entries that say what is gone. done is true when name
// was one.
func (u *unpacker) whiteout(name string) (done bool, err error) {
	base := path.Base(name)
	for p := path.Dir(name); p != "."; p = path.Dir(p) {
		if strings.HasPrefix(path.Base(p), whiteoutMeta) {
			return true, nil // below aufs's own bookkeeping
		}
	}
	if !strings.HasPrefix(base, whiteoutPrefix) {
		return false, nil
	}
	if strings.HasPrefix(base, whiteoutMeta) && base != whiteoutOpaque {
		return true, nil
	}
	gone := base[len(whiteoutPrefix):]
	if gone == "" || gone == "." || gone == ".." {
		return true, fault.Invalid.Errorf("archive entry %q: a whiteout of nothing", name)
	}
	dir, err := u.parent(name)
	if err != nil {
		return true, err
	}
	if base == whiteoutOpaque {
		err = retry(func() error { return unix.Fsetxattr(dir, opaqueXattr, []byte("y"), 0) })
		return true, wrap("mark opaque", path.Dir(name), err)
	}
	err = retry(func() error { return unix.Mknodat(dir, gone, unix.S_IFCHR, 0) })
	if err == unix.EEXIST { // the same layer has a file of the name: that is what is seen
		err = nil
	}
	return true, wrap("white out", name, err)
}

// A recorder passes a tar on and writes its skeleton: records of
//
//	'R' length bytes        raw bytes of the tar
//	'F' size length path    content of a file, to be read from the layer
//	'E'                     end
//
// with lengths as uvarint.
type recorder struct {
	r       io.Reader
	w       *bufio.Writer
	payload bool
	pend    []byte
	err     error
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if n > 0 && !r.payload {
		r.pend = append(r.pend, p[:n]...)
		if len(r.pend) >= 64<<10 {
			r.flush()
		}
	}
	if r.err != nil {
		return n, r.err
	}
	return n, err
}

func (r *recorder) flush() {
	if len(r.pend) == 0 || r.err != nil {
		return
	}
	var b [binary.MaxVarintLen64 + 1]byte
	b[0] = 'R'
	n := 1 + binary.PutUvarint(b[1:], uint64(len(r.pend)))
	if _, r.err = r.w.Write(b[:n]); r.err == nil {
		_, r.err = r.w.Write(r.pend)
	}
	r.pend = r.pend[:0]
}

func (r *recorder) file(name string, size int64) error {
	r.flush()
	b := []byte{'F'}
	b = binary.AppendUvarint(b, uint64(size))
	b = binary.AppendUvarint(b, uint64(len(name)))
	b = append(b, name...)
	if r.err == nil {
		_, r.err = r.w.Write(b)
	}
	r.payload = true
	return r.err
}

func (r *recorder) finish() error {
	r.flush()
	if r.err == nil {
		r.err = r.w.WriteByte('E')
	}
	if r.err == nil {
		r.err = r.w.Flush()
	}
	return r.err
}

// Assemble writes the tar that UnpackLayer read, to the byte, from its
// skeleton and the layer's files. A file that has changed shows as another
// digest: the caller checks it; one of another size is an error.
func Assemble(ctx context.Context, w io.Writer, diff, displaced *os.File, skel io.Reader, moved map[int]string) error {
	dec, err := zstd.NewReader(skel, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return err
	}
	defer dec.Close()
	a := &assembler{w: w, diff: int(diff.Fd()), displaced: int(displaced.Fd()), r: bufio.NewReaderSize(dec, 64<<10), moved: moved, buf: make([]byte, bufSize)}
	defer a.close()
	for ctx.Err() == nil {
		more, err := a.record()
		if err != nil {
			return fmt.Errorf("layer skeleton: %w", err)
		}
		if !more {
			return nil
		}
	}
	return ctx.Err()
}

type assembler struct {
	w               io.Writer
	diff, displaced int
	r               *bufio.Reader
	moved           map[int]string
	n               int
	buf             []byte
	dirName         string
	dirFd           int
	hasDir          bool
}

func (a *assembler) close() {
	if a.hasDir {
		unix.Close(a.dirFd)
		a.hasDir = false
	}
}

func (a *assembler) record() (more bool, err error) {
	t, err := a.r.ReadByte()
	if err != nil {
		return false, unexpected(err)
	}
	if t == 'E' {
		return false, nil
	}
	size, err := binary.ReadUvarint(a.r)
	if err != nil {
		return false, unexpected(err)
	}
	switch t {
	case 'R':
		_, err := io.CopyN(a.w, a.r, int64(size))
		return true, unexpected(err)
	case 'F':
		n, err := binary.ReadUvarint(a.r)
		if err != nil || n > unix.PathMax {
			return false, fmt.Errorf("bad path length: %w", unexpected(err))
		}
		name := make([]byte, n)
		if _, err := io.ReadFull(a.r, name); err != nil {
			return false, unexpected(err)
		}
		return true, a.file(string(name), int64(size))
	}
	return false, fmt.Errorf("unknown record %q", t)
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (a *assembler) open(name string) (int, error) {
	if to, ok := a.moved[a.n]; ok {
		return openIn(a.displaced, to, unix.O_RDONLY|unix.O_NOFOLLOW)
	}
	dir := path.Dir(name)
	if !a.hasDir || a.dirName != dir {
		fd, err := openIn(a.diff, dir, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return -1, err
		}
		a.close()
		a.dirName, a.dirFd, a.hasDir = dir, fd, true
	}
	return openAt(a.dirFd, path.Base(name), unix.O_RDONLY)
}

func (a *assembler) file(name string, size int64) error {
	fd, err := a.open(name)
	if err != nil {
		return fmt.Errorf("open %q: %w", name, err)
	}
	a.n++
	defer unix.Close(fd)
	n, err := copyFd(a.w, fd, size, a.buf)
	if err != nil {
		return fmt.Errorf("read %q: %w", name, err)
	}
	if n != size {
		return fmt.Errorf("file %q has %d bytes instead of %d: the layer was changed on disk", name, n, size)
	}
	return nil
}

// copyFd copies at most size bytes from fd.
func copyFd(w io.Writer, fd int, size int64, buf []byte) (done int64, err error) {
	for done < size {
		n, err := unix.Read(fd, buf[:min(int64(len(buf)), size-done)])
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil {
			return done, err
		}
		if n == 0 {
			break
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return done, err
		}
		done += int64(n)
	}
	return done, nil
}

// CopyAttributes gives the directory name of to the owner, mode, extended
// attributes and time of the same directory in the first of from that has it:
// a layer's tar may leave out directories that only lead to its files.
// Nothing is done when none of from has it.
func CopyAttributes(to *os.File, name string, from []*os.File) error {
	dst, err := openIn(int(to.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return wrap("open", name, err)
	}
	defer unix.Close(dst)
	for _, f := range from {
		src, err := openIn(int(f.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			continue
		}
		err = copyAttributes(dst, src)
		unix.Close(src)
		return wrap("copy attributes of", name, err)
	}
	return nil
}

func copyAttributes(dst, src int) error {
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return err
	}
	if err := unix.Fchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(dst, st.Mode&0o7777); err != nil {
		return err
	}
	err := xattrsOf(src, func(n string, v []byte) { unix.Fsetxattr(dst, n, v, 0) })
	if err != nil {
		return err
	}
	ts := []unix.Timespec{{Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec}, {Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec}}
	return unix.UtimesNanoAt(dst, "", ts, unix.AT_EMPTY_PATH)
}
