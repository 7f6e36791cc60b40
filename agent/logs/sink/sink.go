// Package sink writes a container's output to its log. It is linked into the
// shim, so it imports next to nothing.
//
// # Formats
//
// json-file is Docker's: one JSON object per line,
//
//	{"log":"text\n","stream":"stdout","attrs":{...},"time":"RFC 3339"}
//
// A line longer than 16 KiB is split into several records, of which only the
// last ends with a newline in "log".
//
// local is ours: length, flags (1: stderr, 2: partial), nanoseconds, text,
// length again, with 32- and 64-bit numbers little-endian; both lengths count
// the text only, so that a reader can walk from either end.
//
// Rotated files are PATH.1 (newest) to PATH.(n-1), with .gz appended once they
// are compressed.
package sink

import (
	"bytes"
	"encoding/binary"
	"strconv"

	"golang.org/x/sys/unix"
)

// MaxLine is the longest text of one record, in bytes.
const MaxLine = 16 << 10

// LocalOverhead is the size of a local record around its text.
const LocalOverhead = 4 + 1 + 8 + 4

// The flags of a local record.
const (
	FlagStderr  = 1
	FlagPartial = 2
)

// A Config says where and how to write.
type Config struct {
	JSON     bool // else local
	Path     string
	MaxSize  int64 // 0: never rotated
	MaxFiles int   // at least 1
	Attrs    []byte
}

// A Log is an open log file. It is not for use by several goroutines.
type Log struct {
	cfg     Config
	fd      int
	size    int64
	buf     []byte
	streams [2]line
	mid     [2][]byte // what stands between text and time of a record
	stamp   []byte    // stampOf in text
	stampOf int64
	// Rotated is called with the inode of a file that was just moved to
	// PATH.1, when not nil.
	Rotated func(inode uint64)
}

// line is the unfinished line of a stream.
type line struct {
	part []byte
	at   int64 // of the first part of a long line
	long bool
}

// Open opens the log for appending. A torn last record of an earlier writer is
// closed with a newline, so that it spoils no other.
func Open(cfg Config) (*Log, error) {
	l := &Log{cfg: cfg, fd: -1}
	if cfg.MaxFiles < 1 {
		l.cfg.MaxFiles = 1
	}
	for i, s := range [2]string{"stdout", "stderr"} {
		l.mid[i] = append(l.mid[i], `","stream":"`+s+`",`...)
		if len(cfg.Attrs) > 0 {
			l.mid[i] = append(append(append(l.mid[i], `"attrs":`...), cfg.Attrs...), ',')
		}
		l.mid[i] = append(l.mid[i], `"time":"`...)
	}
	if err := l.open(0); err != nil {
		return nil, err
	}
	if cfg.JSON && l.size > 0 {
		var last [1]byte
		if n, _ := unix.Pread(l.fd, last[:], l.size-1); n == 1 && last[0] != '\n' {
			l.buf = append(l.buf, '\n')
		}
	}
	return l, nil
}

func (l *Log) open(flags int) error {
	fd, err := unix.Open(l.cfg.Path, unix.O_RDWR|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC|flags, 0o640)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return err
	}
	l.fd, l.size = fd, st.Size
	return nil
}

// Write records what a stream (0 stdout, 1 stderr) put out at the time now, in
// nanoseconds of the epoch. What is no full line waits for its rest.
func (l *Log) Write(stream int, p []byte, now int64) {
	s := &l.streams[stream]
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		room := MaxLine - len(s.part)
		switch {
		case i >= 0 && i <= room:
			l.record(stream, s, p[:i], true, now)
			p = p[i+1:]
		case len(p) >= room:
			l.record(stream, s, p[:room], false, now)
			p = p[room:]
		default:
			s.part = append(s.part, p...)
			p = nil
		}
	}
	l.Flush()
}

// End records the unfinished line of a stream that has ended.
func (l *Log) End(stream int, now int64) {
	if s := &l.streams[stream]; len(s.part) > 0 {
		l.record(stream, s, nil, false, now)
	}
	l.Flush()
}

func (l *Log) record(stream int, s *line, text []byte, end bool, now int64) {
	if len(s.part) > 0 {
		text = append(s.part, text...)
		s.part = text[:0]
	}
	if s.long {
		now = s.at
	}
	if s.long = !end; s.long {
		s.at = now
	}
	if l.cfg.MaxSize > 0 && l.size+int64(len(l.buf)) >= l.cfg.MaxSize {
		l.Flush()
		l.rotate()
	}
	b := l.buf
	if l.cfg.JSON {
		b = AppendJSON(append(b, `{"log":"`...), text)
		if end {
			b = append(b, `\n`...)
		}
		if l.stampOf != now || l.stamp == nil { // all lines of one read have one time
			l.stamp, l.stampOf = appendTime(l.stamp[:0], now), now
		}
		b = append(append(b, l.mid[stream]...), l.stamp...)
		b = append(b, '"', '}', '\n')
	} else {
		flags := byte(stream)
		if !end {
			flags |= FlagPartial
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(len(text)))
		b = binary.LittleEndian.AppendUint64(append(b, flags), uint64(now))
		b = binary.LittleEndian.AppendUint32(append(b, text...), uint32(len(text)))
	}
	l.buf = b
	if len(l.buf) >= 256<<10 {
		l.Flush()
	}
}

// Flush writes what is gathered. A full or broken disk must not stop the
// container: what it does not take is dropped.
func (l *Log) Flush() {
	b := l.buf
	for len(b) > 0 {
		n, err := unix.Write(l.fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			break
		}
		l.size += int64(n)
		b = b[n:]
	}
	l.buf = l.buf[:0]
	if cap(l.buf) > 1<<20 {
		l.buf = nil
	}
}

func (l *Log) rotate() {
	old := l.fd
	if l.cfg.MaxFiles < 2 {
		if l.open(unix.O_TRUNC) == nil {
			unix.Close(old)
		}
		return
	}
	for i := l.cfg.MaxFiles - 1; i > 1; i-- {
		for _, ext := range [2]string{"", ".gz"} {
			from, to := l.name(i-1)+ext, l.name(i)+ext
			if unix.Rename(from, to) == nil {
				// The same place in the other form is out of date.
				unix.Unlink(l.name(i) + other(ext))
			}
		}
	}
	unix.Unlink(l.name(1) + ".gz")
	if unix.Rename(l.cfg.Path, l.name(1)) != nil {
		return // go on in the old file
	}
	if l.open(0) != nil {
		l.fd = old
		return
	}
	var st unix.Stat_t
	if unix.Fstat(old, &st) == nil && l.Rotated != nil {
		l.Rotated(st.Ino)
	}
	unix.Close(old)
}

func other(ext string) string {
	if ext == "" {
		return ".gz"
	}
	return ""
}

func (l *Log) name(i int) string { return l.cfg.Path + "." + strconv.Itoa(i) }

// Compressed puts a gzipped copy in the place of the rotated file with the
// given inode. The copy is unlinked when that file is gone.
func (l *Log) Compressed(inode uint64, copy string) {
	for i := 1; i < l.cfg.MaxFiles; i++ {
		var st unix.Stat_t
		if unix.Stat(l.name(i), &st) == nil && st.Ino == inode {
			if unix.Rename(copy, l.name(i)+".gz") == nil {
				unix.Unlink(l.name(i))
			}
			return
		}
	}
	unix.Unlink(copy)
}

// Close writes what is left and closes the file.
func (l *Log) Close() {
	l.Flush()
	unix.Close(l.fd)
}
