package transfer

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"
)

// receiver writes a tree under a root that names cannot leave.
type receiver struct {
	*wire
	order Order
	tell  Progress
	stats Stats
	root  *os.Root
	base  string // the file's name in root, when a single file is sent; else empty
	dirs  []entry
	// The folder of the file before: most files follow one of the same.
	at   string
	here *os.Root
}

func receive(c *wire, o Order, tell Progress) (Stats, error) {
	if tell == nil {
		tell = func(string, int64) {}
	}
	r := &receiver{wire: c, order: o, tell: tell}
	err := r.run()
	r.leave()
	if r.root != nil {
		err = errors.Join(err, r.root.Close())
	}
	if err == nil {
		err = errors.Join(c.send(kindOK, nil), c.flush())
	}
	return r.stats, err
}

func (r *receiver) run() error {
	kind, payload, err := r.recv()
	if err != nil {
		return err
	}
	if kind != kindRoot || len(payload) < 2 {
		return strange(kind)
	}
	base := string(payload[1:])
	if base != filepath.Base(base) || base == string(filepath.Separator) {
		return fmt.Errorf("copy: the other end sends the name %q, which is not one", base)
	}
	if payload[0] == 1 && !r.order.Recursive {
		return errors.New("copy: the other end sends a folder, and was not asked for one")
	}
	if err := r.open(payload[0] == 1, base); err != nil {
		return err
	}
	if r.order.Delta {
		err = r.delta()
	} else {
		err = r.plain()
	}
	if err != nil {
		return err
	}
	return r.finishDirs()
}

// decode reads an entry. Where one file is sent there are no others: its root
// is the folder that the file is put into, and what is there is not the sender's.
func (r *receiver) decode(payload []byte) (entry, error) {
	e, err := decode(payload)
	if err == nil && r.base != "" && e.rel != "" {
		err = fmt.Errorf("copy: the other end sends %q, and was asked for one file", e.rel)
	}
	return e, err
}

// open finds the target as scp does: in a folder that is there, under its own
// name; else at the path itself.
func (r *receiver) open(isDir bool, base string) (err error) {
	target := r.order.Path
	if fi, err := os.Stat(target); err == nil && fi.IsDir() {
		if base != "." && base != ".." {
			target = filepath.Join(target, base)
		}
	}
	if isDir {
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		r.root, err = os.OpenRoot(target)
		return err
	}
	// A file that is a link stays one: what it points to is written.
	if real, err := filepath.EvalSymlinks(target); err == nil {
		target = real
	}
	r.base = filepath.Base(target)
	r.root, err = os.OpenRoot(filepath.Dir(target))
	return err
}

func (r *receiver) plain() error {
	for {
		kind, payload, err := r.recv()
		if err != nil {
			return err
		}
		if kind == kindDone {
			return nil
		}
		e, err := r.decode(payload)
		if err != nil {
			return err
		}
		switch kind {
		case kindDir:
			err = r.dir(e)
		case kindFile:
			err = r.file(e)
		default:
			err = strange(kind)
		}
		if err != nil {
			return err
		}
	}
}

// delta reads the list first. Then one goroutine asks for what differs while
// the other takes what comes: neither waits for the other's buffers.
func (r *receiver) delta() error {
	var files []entry
	rolls := false
	for {
		kind, payload, err := r.recv()
		if err != nil {
			return err
		}
		if kind == kindDone {
			rolls = string(payload) == rolling
			break
		}
		e, err := r.decode(payload)
		switch {
		case err != nil:
			return err
		case kind == kindDir:
			err = r.dir(e)
		case kind == kindFile:
			files = append(files, e)
		default:
			err = strange(kind)
		}
		if err != nil {
			return err
		}
	}
	var wg sync.WaitGroup
	var asked Stats
	var askErr error
	wg.Go(func() { asked, askErr = r.ask(files, rolls) })
	err := r.plain()
	// The sender ends only after all was asked. After an error it may not
	// read any more: the stream is closed under who asks.
	if cl, ok := r.raw.(io.Closer); ok && err != nil {
		_ = cl.Close()
	}
	wg.Wait()
	r.stats.Skipped += asked.Skipped
	r.stats.Kept += asked.Kept
	return errors.Join(err, askErr)
}

// ask wants each file that is not the same in size and time. rolls says that
// the sender finds blocks wherever they are.
func (r *receiver) ask(files []entry, rolls bool) (stats Stats, err error) {
	for i, e := range files {
		name := r.name(e)
		fi, err := r.root.Stat(name)
		if err == nil && fi.Mode().IsRegular() && fi.Size() == e.size && fi.ModTime().Unix() == e.time.Unix() {
			stats.Skipped++
			stats.Kept += e.size
			continue
		}
		want, kind := binary.AppendUvarint(nil, uint64(i)), byte(kindWant)
		if err == nil && fi.Mode().IsRegular() && fi.Size() > 0 {
			if want, kind, err = r.hashes(want, name, e.size, rolls); err != nil {
				return stats, err
			}
		}
		err = r.send(kind, want)
		if len(want) > 4096 && err == nil {
			err = r.flush() // it has to read long: let the sender begin
		}
		if err != nil {
			return stats, err
		}
	}
	return stats, errors.Join(r.send(kindDone, nil), r.flush())
}

// hashes appends those of the blocks that are there, as many as the new file
// can use and a frame holds. It returns the kind of frame that they are for.
func (r *receiver) hashes(want []byte, name string, size int64, rolls bool) ([]byte, byte, error) {
	f, err := r.root.Open(name)
	if err != nil {
		return want, kindWant, nil // not readable: all of it is sent
	}
	defer func() { _ = f.Close() }()
	if fi, err := f.Stat(); rolls && err == nil && fi.Size() > 0 {
		if sums, err := r.sums(want, f, fi.Size()); err == nil {
			return sums, kindSums, nil
		}
		return want, kindWant, nil // it changes while we read
	}
	buf := make([]byte, blockSize)
	for off := int64(0); off < size && len(want) < maxFrame-64; off += blockSize {
		n, err := io.ReadFull(f, buf)
		if n > 0 {
			sum := blockSum(buf[:n])
			want = append(want, sum[:]...)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return nil, 0, err
		}
	}
	return want, kindWant, nil
}

func (r *receiver) name(e entry) string {
	if e.rel == "" {
		return r.base
	}
	return filepath.FromSlash(e.rel)
}

func (r *receiver) dir(e entry) error {
	if r.base != "" {
		return strange(kindDir)
	}
	r.dirs = append(r.dirs, e)
	if e.rel == "" {
		return nil
	}
	err := r.root.Mkdir(filepath.FromSlash(e.rel), e.mode.Perm()|0o700)
	if errors.Is(err, fs.ErrExist) {
		fi, serr := r.root.Stat(filepath.FromSlash(e.rel))
		if serr == nil && fi.IsDir() {
			return nil
		}
	}
	return err
}

// finishDirs gives the folders their modes and times, the inner ones first.
func (r *receiver) finishDirs() error {
	r.leave()
	for i := len(r.dirs) - 1; i >= 0; i-- {
		name := filepath.FromSlash(path.Join(".", r.dirs[i].rel))
		if err := r.root.Chmod(name, r.dirs[i].mode.Perm()); err != nil {
			return err
		}
		_ = r.root.Chtimes(name, r.dirs[i].time, r.dirs[i].time)
	}
	return nil
}

func (r *receiver) leave() {
	if r.here != nil && r.here != r.root {
		_ = r.here.Close()
	}
	r.here = nil
}

// enter opens the folder of name, and returns the last part of name.
func (r *receiver) enter(name string) (string, error) {
	dir, last := filepath.Split(name)
	if r.here != nil && dir == r.at {
		return last, nil
	}
	r.leave()
	r.at, r.here = dir, r.root
	if dir != "" {
		here, err := r.root.OpenRoot(dir)
		if err != nil {
			r.here = nil
			return "", err
		}
		r.here = here
	}
	return last, nil
}

// file takes one file's content. The old file stays until the new one is whole.
func (r *receiver) file(e entry) (err error) {
	name := r.name(e)
	if name == "" {
		return errors.New("copy: a file has no name")
	}
	r.tell(name, 0)
	r.stats.Files++
	last, err := r.enter(name)
	if err != nil {
		return err
	}
	fi, statErr := r.here.Stat(last)
	if statErr == nil && !fi.Mode().IsRegular() && !fi.IsDir() {
		return r.device(last)
	}
	var old *os.File
	if statErr == nil && r.order.Delta {
		if old, err = r.here.Open(last); err != nil {
			old = nil
		} else {
			defer func() { _ = old.Close() }()
		}
	}
	var raw [6]byte
	_, _ = rand.Read(raw[:])
	tmp := ".scp-" + hex.EncodeToString(raw[:])
	f, err := r.here.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, e.mode.Perm()&0o700|0o600)
	if err != nil {
		return err
	}
	err = r.content(f, old)
	if err == nil {
		err = f.Chmod(e.mode.Perm())
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = r.here.Chtimes(tmp, e.time, e.time)
	}
	if err == nil {
		err = r.here.Rename(tmp, last)
	}
	if err != nil {
		_ = r.here.Remove(tmp)
	}
	return err
}

// device writes into what is no file, and stays what it is.
func (r *receiver) device(last string) error {
	f, err := r.here.OpenFile(last, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for {
		kind, payload, err := r.recv()
		switch {
		case err != nil:
		case kind == kindEnd:
			return f.Close()
		case kind == kindData:
			_, err = f.Write(payload)
		case kind == kindHole && len(payload) == 8:
			_, err = io.CopyN(f, zeros{}, int64(binary.BigEndian.Uint64(payload)))
		default:
			err = strange(kind)
		}
		if err != nil {
			return errors.Join(err, f.Close())
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func (r *receiver) content(f, old *os.File) error {
	var off int64
	for {
		kind, payload, err := r.recv()
		if err != nil {
			return err
		}
		switch {
		case kind == kindEnd:
			// A hole at the end is only a length.
			if pos, _ := f.Seek(0, io.SeekEnd); pos < off {
				return f.Truncate(off)
			}
			return nil
		case kind == kindData:
			if _, err := f.WriteAt(payload, off); err != nil {
				return err
			}
			off += int64(len(payload))
			r.stats.Sent += int64(len(payload))
			r.tell("", int64(len(payload)))
		case kind == kindHole && len(payload) == 8:
			off += int64(binary.BigEndian.Uint64(payload))
		case kind == kindKeep && len(payload) == 8 && old != nil:
			if off, err = r.keep(f, old, off, off, int64(binary.BigEndian.Uint64(payload))); err != nil {
				return err
			}
		case kind == kindCopy && len(payload) == 16 && old != nil:
			from := int64(binary.BigEndian.Uint64(payload))
			if off, err = r.keep(f, old, off, from, int64(binary.BigEndian.Uint64(payload[8:]))); err != nil {
				return err
			}
		default:
			return strange(kind)
		}
		if off < 0 {
			return errors.New("copy: a file is too long")
		}
	}
}

// keep copies n bytes of the old file, and returns where the next ones go.
func (r *receiver) keep(f, old *os.File, off, from, n int64) (int64, error) {
	if from < 0 || n < 0 || off+n < off {
		return off, errors.New("copy: the other end counts with what no file has")
	}
	got, err := io.Copy(io.NewOffsetWriter(f, off), io.NewSectionReader(old, from, n))
	if err == nil && got != n {
		err = fmt.Errorf("copy: %s has become shorter meanwhile: try again", old.Name())
	}
	r.stats.Kept += got
	return off + got, err
}
