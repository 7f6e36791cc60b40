package logs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"time"

	"machine/agent/logs/sink"
	"machine/agent/model"
)

// A decoder knows one format.
type decoder interface {
	// record takes the first record of b. n is its length, 0 when b holds no
	// whole record, and ok is false when those n bytes are to be skipped.
	record(b []byte, rec *model.LogRecord) (n int, ok bool)
	// back finds where the last max records of f begin, and how many there are.
	back(f *os.File, max int) (at int64, n int, err error)
}

const (
	bufferSize = 256 << 10
	recordMax  = 4 << 20 // longer ones are not ours
)

// A scanner reads records from a file, at its own offset.
type scanner struct {
	f    *os.File
	dec  decoder
	buf  []byte
	a, b int // buf[a:b] is read and not taken
	skip bool
}

func newScanner(f *os.File, dec decoder) *scanner { return &scanner{f: f, dec: dec} }

// next gives the next whole record; false means that there is none now.
func (s *scanner) next(rec *model.LogRecord) (bool, error) {
	for {
		for s.a < s.b {
			n, ok := s.dec.record(s.buf[s.a:s.b], rec)
			if n == 0 {
				break
			}
			s.a += n
			if ok && !s.skip {
				return true, nil
			}
			s.skip = false
		}
		more, err := s.fill()
		if err != nil || !more {
			return false, err
		}
	}
}

func (s *scanner) fill() (bool, error) {
	if s.buf == nil {
		s.buf = make([]byte, bufferSize)
	}
	if s.a > 0 {
		copy(s.buf, s.buf[s.a:s.b])
		s.a, s.b = 0, s.b-s.a
	}
	if s.b == len(s.buf) {
		if len(s.buf) >= recordMax {
			s.b, s.skip = 0, true // to the next record's beginning
		} else {
			s.buf = append(s.buf, make([]byte, len(s.buf))...)
		}
	}
	n, err := s.f.Read(s.buf[s.b:])
	s.b += n
	if n > 0 {
		return true, nil
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return false, err
}

// truncated says that the file is shorter than what was read of it.
func (s *scanner) truncated() bool {
	st, err := s.f.Stat()
	if err != nil {
		return false
	}
	at, err := s.f.Seek(0, io.SeekCurrent)
	return err == nil && st.Size() < at
}

func (s *scanner) restart() {
	_, _ = s.f.Seek(0, io.SeekStart)
	s.a, s.b, s.skip = 0, 0, false
}

// back for lines: count newlines from the end.
func linesBack(f *os.File, max int) (int64, int, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	size := st.Size()
	buf := make([]byte, 64<<10)
	// The newlines that end the records; what is after the last one is torn.
	seen := 0
	for end := size; end > 0; {
		n := min(int64(len(buf)), end)
		if _, err := f.ReadAt(buf[:n], end-n); err != nil && err != io.EOF {
			return 0, 0, err
		}
		for i := n; i > 0; {
			j := bytes.LastIndexByte(buf[:i], '\n')
			if j < 0 {
				break
			}
			if seen == max {
				return end - n + int64(j) + 1, max, nil
			}
			seen++
			i = int64(j)
		}
		end -= n
	}
	return 0, seen, nil
}

// localDecoder reads our own format.
type localDecoder struct{}

func (localDecoder) record(b []byte, rec *model.LogRecord) (int, bool) {
	if len(b) < sink.LocalOverhead {
		return 0, false
	}
	n := int64(binary.LittleEndian.Uint32(b))
	if n > sink.MaxLine {
		return 1, false // damaged: look for the next record byte by byte
	}
	total := int(n) + sink.LocalOverhead
	if len(b) < total {
		return 0, false
	}
	if int64(binary.LittleEndian.Uint32(b[total-4:])) != n {
		return 1, false
	}
	flags := b[4]
	rec.Stream = "stdout"
	if flags&sink.FlagStderr != 0 {
		rec.Stream = "stderr"
	}
	rec.Time = time.Unix(0, int64(binary.LittleEndian.Uint64(b[5:]))).UTC()
	rec.Partial = flags&sink.FlagPartial != 0
	rec.Attrs = nil
	rec.Line = b[13 : total-4]
	if !rec.Partial {
		// The length that follows is not needed any more: its first byte
		// makes room for the newline.
		b[total-4] = '\n'
		rec.Line = b[13 : total-3]
	}
	return total, true
}

func (localDecoder) back(f *os.File, max int) (int64, int, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	at, n := st.Size(), 0
	var b [4]byte
	for n < max && at >= sink.LocalOverhead {
		if _, err := f.ReadAt(b[:], at-4); err != nil {
			return 0, 0, err
		}
		size := int64(binary.LittleEndian.Uint32(b[:])) + sink.LocalOverhead
		if size > sink.MaxLine+sink.LocalOverhead || size > at {
			return 0, n, nil // torn: read from the start
		}
		at -= size
		n++
	}
	return at, n, nil
}
