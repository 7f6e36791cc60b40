// Package logs reads what shims have written of containers' output (formats:
// package sink): from the end or the beginning, by time, across rotated and
// compressed files, and on while it is being written.
package logs

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"machine/agent/fault"
	"machine/agent/model"
)

// errStop ends a reading without error.
var errStop = errors.New("stop")

// reader is one reading.
type reader struct {
	ctx    context.Context
	cfg    model.LogConfig
	opt    model.LogOptions
	emit   func(*model.LogRecord) error
	decode decoder
}

// Read calls f with the records of the log that c describes, oldest first,
// and returns f's error if it gives one. With o.Follow it goes on until done
// is closed and all was read, or ctx ends; a nil done never closes. A record
// that is torn or damaged is skipped. A log that does not exist is empty. The
// driver "none" is NotImplemented.
func Read(ctx context.Context, c model.LogConfig, o model.LogOptions, done <-chan struct{}, f func(*model.LogRecord) error) error {
	r := &reader{ctx: ctx, cfg: c, opt: o, emit: f}
	switch c.Driver {
	case "json-file", "":
		r.decode = &jsonDecoder{}
	case "local":
		r.decode = localDecoder{}
	default:
		return fault.NotImplemented.Errorf("configured logging driver does not support reading")
	}
	var w *watcher
	if o.Follow {
		var err error
		if w, err = newWatcher(c.Path); err != nil {
			return err
		}
		defer w.close()
	}
	err := r.read(w, done)
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

func (r *reader) read(w *watcher, done <-chan struct{}) error {
	files, err := r.open()
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if r.opt.Tail >= 0 {
		if files, err = r.tail(files); err != nil {
			return err
		}
	}
	var last *scanner
	for i, f := range files {
		s := newScanner(f, r.decode)
		if err := r.drain(s); err != nil {
			return err
		}
		if i == len(files)-1 {
			last = s
		}
	}
	if w == nil {
		return nil
	}
	return r.follow(w, last, done)
}

// drain emits all whole records that the scanner has now.
func (r *reader) drain(s *scanner) error {
	var rec model.LogRecord
	for n := 0; ; n++ {
		if n&255 == 0 && r.ctx.Err() != nil {
			return r.ctx.Err()
		}
		ok, err := s.next(&rec)
		if err != nil {
			return fault.Internal.Errorf("read log %s: %w", r.cfg.Path, err)
		}
		if !ok {
			return nil
		}
		if !r.opt.Since.IsZero() && rec.Time.Before(r.opt.Since) {
			continue
		}
		if !r.opt.Until.IsZero() && rec.Time.After(r.opt.Until) {
			return errStop
		}
		if err := r.emit(&rec); err != nil {
			return err
		}
	}
}

// open opens the log's files, oldest first, as they are at one moment: when
// a rotation came in between it begins again.
func (r *reader) open() (files []*os.File, err error) {
	for range 20 {
		current, err := os.Open(r.cfg.Path)
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, fault.Internal.Errorf("open log: %w", err)
		}
		files = []*os.File{current}
		for i := 1; i < max(r.cfg.MaxFiles, 1); i++ {
			f, err := r.rotated(i)
			if err != nil {
				break
			}
			files = append(files, f)
		}
		if inode(r.cfg.Path) == inodeOf(current) {
			break
		}
		for _, f := range files {
			f.Close()
		}
		files = nil
	}
	for i, j := 0, len(files)-1; i < j; i, j = i+1, j-1 {
		files[i], files[j] = files[j], files[i]
	}
	return files, nil
}

// rotated opens the i-th rotated file; one that is compressed is unpacked to
// a file without a name.
func (r *reader) rotated(i int) (*os.File, error) {
	path := r.cfg.Path + "." + strconv.Itoa(i)
	f, err := os.Open(path)
	if !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	z, err := os.Open(path + ".gz")
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return unpack(z)
}

const unpackedMax = 4 << 30 // a gzipped log is ours, but let no bomb fill the disk

func unpack(z *os.File) (*os.File, error) {
	g, err := gzip.NewReader(z)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(os.TempDir(), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "unpacked log")
	// A torn end gives what could be unpacked.
	if _, err := io.Copy(f, io.LimitReader(g, unpackedMax)); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		f.Close()
		return nil, err
	}
	_, err = f.Seek(0, io.SeekStart)
	return f, err
}

func inode(path string) uint64 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Ino
}

func inodeOf(f *os.File) uint64 {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return 0
	}
	return st.Ino
}

// tail closes the files that the last records are not in and positions the
// first of the others.
func (r *reader) tail(files []*os.File) ([]*os.File, error) {
	left := r.opt.Tail
	for i := len(files) - 1; i >= 0; i-- {
		at, n, err := r.decode.back(files[i], left)
		if err != nil {
			return files, fault.Internal.Errorf("read log %s: %w", r.cfg.Path, err)
		}
		if _, err := files[i].Seek(at, io.SeekStart); err != nil {
			return files, fault.Internal.Errorf("read log %s: %w", r.cfg.Path, err)
		}
		if left -= n; left <= 0 {
			for _, f := range files[:i] {
				f.Close()
			}
			return files[i:], nil
		}
	}
	return files, nil
}

// until is closed when the bound of a following reading has passed.
func until(o model.LogOptions) (<-chan time.Time, func() bool) {
	if o.Until.IsZero() {
		return nil, func() bool { return true }
	}
	t := time.NewTimer(time.Until(o.Until))
	return t.C, t.Stop
}
