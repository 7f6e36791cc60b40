// Package stream is the wire under attach, exec and logs: taking over an HTTP
// connection, and Docker's framing of several outputs on one stream.
package stream

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"machine/agent/fault"
)

// Content types of the two kinds of stream.
const (
	Raw         = "application/vnd.docker.raw-stream"
	Multiplexed = "application/vnd.docker.multiplexed-stream"
)

// The streams of a frame's first byte.
const (
	Stdout byte = 1
	Stderr byte = 2
	System byte = 3 // an error of the engine: clients stop with its text
)

// A Conn is a connection taken over from HTTP. Reads may return bytes that
// came with the request.
type Conn struct {
	net.Conn
	r io.Reader
}

// Read reads what the client sends.
func (c *Conn) Read(p []byte) (int, error) { return c.r.Read(p) }

// CloseWrite tells the client that there is no more output.
func (c *Conn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

// HungUp waits until the client has closed its end for reading too, which a
// client that only has no more input does not do, and reports that. False
// says that the Conn was closed, or that it is one of TCP, where both look the
// same. Nobody may read at the same time.
func (c *Conn) HungUp() bool {
	u, ok := c.Conn.(*net.UnixConn)
	if !ok {
		return false
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return false
	}
	var hung bool
	err = raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd)}} // POLLHUP is always reported
		n, err := unix.Poll(p, 0)
		hung = err == nil && n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
		return hung
	})
	return err == nil && hung
}

// Hijack takes over the connection of a request and answers it: 101 to a
// client that asked for an upgrade, 200 to one that did not. The caller
// closes the Conn.
func Hijack(w http.ResponseWriter, r *http.Request, contentType string) (*Conn, error) {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, fault.Invalid.Errorf("this connection cannot be taken over: use HTTP/1.1: %w", err)
	}
	head := "HTTP/1.1 200 OK\r\nContent-Type: " + contentType + "\r\n\r\n"
	if r.Header.Get("Upgrade") != "" {
		head = "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + contentType + "\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
	}
	if _, err := io.WriteString(conn, head); err != nil {
		conn.Close()
		return nil, err
	}
	if strings.HasPrefix(r.UserAgent(), "docker-sdk-python") {
		awaitRead(conn)
	}
	c := &Conn{Conn: conn, r: conn}
	if n := buf.Reader.Buffered(); n > 0 {
		c.r = io.MultiReader(io.LimitReader(buf.Reader, int64(n)), conn)
	}
	return c, nil
}

// awaitRead waits, not for long, until a unix socket's peer has read what was
// sent. docker-py reads the head of an answer by a buffered reader, which it
// then drops with all that came in the same read: an engine that is quick
// would have its first output lost.
func awaitRead(c net.Conn) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return
	}
	for range 200 {
		unread := 0
		raw.Control(func(fd uintptr) { unread, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
		if unread == 0 {
			return
		}
		time.Sleep(250 * time.Microsecond)
	}
}

// A Mux writes frames of several streams to one writer. Its writers may be
// used by several goroutines.
type Mux struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

// NewMux frames onto w.
func NewMux(w io.Writer) *Mux { return &Mux{w: w} }

// Frame writes one frame.
func (m *Mux) Frame(stream byte, p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.buf = append(m.buf[:0], stream, 0, 0, 0)
	m.buf = binary.BigEndian.AppendUint32(m.buf, uint32(len(p)))
	m.buf = append(m.buf, p...)
	_, err := m.w.Write(m.buf)
	return err
}

// Writer returns a writer that frames for one stream.
func (m *Mux) Writer(stream byte) io.Writer { return muxWriter{m, stream} }

type muxWriter struct {
	m      *Mux
	stream byte
}

func (w muxWriter) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := w.m.Frame(w.stream, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// ErrDetached ends the reading of an input in which the detach keys came.
var ErrDetached = errors.New("detached")

// DetachReader passes input on until the detach keys come; then it returns
// ErrDetached. Keys that turn out to be no detach are passed on late.
type DetachReader struct {
	r    io.Reader
	keys []byte
	held int // how many keys have matched
	out  []byte
	done bool // the keys came
}

// NewDetachReader watches r for keys; none means that it never detaches.
func NewDetachReader(r io.Reader, keys []byte) *DetachReader { return &DetachReader{r: r, keys: keys} }

// Read reads input.
func (d *DetachReader) Read(p []byte) (int, error) {
	if len(d.keys) == 0 {
		return d.r.Read(p)
	}
	for {
		if len(d.out) > 0 {
			n := copy(p, d.out)
			d.out = d.out[n:]
			return n, nil
		}
		if d.done {
			return 0, ErrDetached
		}
		buf := make([]byte, len(p))
		n, err := d.r.Read(buf)
		for _, b := range buf[:n] {
			if b == d.keys[d.held] {
				if d.held++; d.held == len(d.keys) {
					d.done = true
					break
				}
				continue
			}
			d.out = append(d.out, d.keys[:d.held]...)
			d.held = 0
			if b == d.keys[0] {
				d.held = 1
			} else {
				d.out = append(d.out, b)
			}
		}
		if err != nil && len(d.out) == 0 && !d.done {
			return 0, err
		}
	}
}

// ParseKeys reads "ctrl-p,ctrl-q" or "a"; empty is Docker's default.
func ParseKeys(s string) ([]byte, error) {
	if s == "" {
		return []byte{16, 17}, nil
	}
	var out []byte
	for _, k := range splitKeys(s) {
		switch {
		case len(k) == 1:
			out = append(out, k[0])
		case len(k) == 6 && k[:5] == "ctrl-" && k[5] >= 'a' && k[5] <= 'z':
			out = append(out, k[5]-'a'+1)
		case len(k) == 6 && k[:5] == "ctrl-" && ctrlSign(k[5]) != 0:
			out = append(out, ctrlSign(k[5])-1)
		default:
			return nil, fault.Invalid.Errorf("unknown character: %s", k)
		}
	}
	return out, nil
}

// ctrlSign returns the code of a ctrl- sign plus one; 0 for none.
func ctrlSign(b byte) byte {
	switch b {
	case '@':
		return 0 + 1
	case '[':
		return 27 + 1
	case '\\':
		return 28 + 1
	case ']':
		return 29 + 1
	case '^':
		return 30 + 1
	case '_':
		return 31 + 1
	}
	return 0
}

func splitKeys(s string) []string {
	var out []string
	start := 0
	for i := 0; i <= len(s); i++ {
		if i == len(s) || s[i] == ',' {
			out = append(out, s[start:i])
			start = i + 1
		}
	}
	return out
}
