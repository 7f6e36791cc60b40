// Package transfer copies files and folders between two computers over any
// pair of streams, in one pass without questions, or with questions so that
// only differences travel. The command line and the agent speak it to each
// other over SSH; two agents speak it through the command line, which only
// passes the bytes on.
//
// The far end is started as `machine-agent copy`. It says Magic, takes an
// [Order] as a frame, and is then a sender or a receiver:
//
//	plain:  sender  root (dir | file data* end)* done        receiver  ok
//	delta:  sender  root (dir | file)* done                  receiver  (want)* done
//	        sender  (file data|hole|keep|copy* end)* done    receiver  ok
//
// A frame is a byte for its kind, its length as 32 bits big endian, and that
// many bytes. A want carries the sums of the blocks that the receiver has.
// Either end may say fail with a text at any time.
//
// Names are never given to a shell. The receiver works below an [os.Root], so
// that neither hostile names nor links lead out of the folder that was named.
package transfer

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Magic is the first thing that the far end says.
const Magic = "machine-copy-1\n"

// An Order tells the far end what it is to do. Paths are the far end's.
type Order struct {
	Send      bool // else receive
	Path      string
	Recursive bool // folders, too
	Delta     bool // only differences
	// Direct lets two far ends meet without the near one: the receiver, with
	// Listen, says where it waits, and the sender goes to Direct.
	Listen bool     `json:",omitempty"`
	Direct *Meeting `json:",omitempty"`
}

// Stats tell what a copy moved.
type Stats struct {
	Files   int   // sent, wholly or in part
	Skipped int   // the same already
	Sent    int64 // bytes of files that travelled
	Kept    int64 // bytes that the receiver had already
}

// A Progress is told of every file as it begins, and of bytes that travelled.
// It may be nil.
type Progress func(name string, bytes int64)

const (
	maxFrame  = 8 << 20
	piece     = 256 << 10
	blockSize = 128 << 10
	hashSize  = 16
)

const (
	kindOrder = 'J'
	kindRoot  = 'R'
	kindDir   = 'D'
	kindFile  = 'F'
	kindData  = 'C'
	kindHole  = 'H'
	kindKeep  = 'K'
	kindEnd   = 'E'
	kindCopy  = 'c' // as keep, of any place in the old file
	kindWant  = 'W'
	kindSums  = 'w' // a want with the sums of delta.go
	kindDone  = 'X'
	kindOK    = 'O'
	kindFail  = '!'
)

// ErrPeer is under errors that say only that the other end went away.
var ErrPeer = errors.New("the other end of the copy went away")

// A RemoteError is what the other end said before it gave up.
type RemoteError struct{ Text string }

func (e *RemoteError) Error() string { return e.Text }

// wire reads and writes frames.
type wire struct {
	r   *bufio.Reader
	w   *bufio.Writer
	raw io.Writer // under w
	buf []byte
}

func newWire(r io.Reader, w io.Writer) *wire {
	return &wire{r: bufio.NewReaderSize(r, 512<<10), w: bufio.NewWriterSize(w, 512<<10), raw: w}
}

func (c *wire) send(kind byte, payload []byte) error {
	var head [5]byte
	head[0] = kind
	binary.BigEndian.PutUint32(head[1:], uint32(len(payload)))
	if _, err := c.w.Write(head[:]); err != nil {
		return peer(err)
	}
	_, err := c.w.Write(payload)
	return peer(err)
}

func (c *wire) sendInt(kind byte, n int64) error {
	return c.send(kind, binary.BigEndian.AppendUint64(nil, uint64(n)))
}

func (c *wire) flush() error { return peer(c.w.Flush()) }

// recv returns the next frame; its payload is good until the next call.
func (c *wire) recv() (byte, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return 0, nil, peer(err)
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("copy: a frame of %d bytes is too long", n)
	}
	if int(n) > cap(c.buf) {
		c.buf = make([]byte, max(int(n), piece))
	}
	payload := c.buf[:n]
	if _, err := io.ReadFull(c.r, payload); err != nil {
		return 0, nil, peer(err)
	}
	if head[0] == kindFail {
		return 0, nil, &RemoteError{string(payload)}
	}
	return head[0], payload, nil
}

// fail tells the other end why, unless it knows.
func (c *wire) fail(err error) error {
	var remote *RemoteError
	if err != nil && !errors.As(err, &remote) && !errors.Is(err, ErrPeer) {
		_ = c.send(kindFail, []byte(err.Error()))
		_ = c.flush()
	}
	return err
}

func peer(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrPeer, err)
}

func strange(kind byte) error { return fmt.Errorf("copy: a frame of kind %q has no place here", kind) }

// An entry is one file or folder, under the root.
type entry struct {
	rel  string // with slashes; empty for the root itself
	mode fs.FileMode
	time time.Time
	size int64
}

func (e entry) encode() []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(e.mode.Perm()|e.mode&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)))
	b = binary.BigEndian.AppendUint64(b, uint64(e.time.UnixNano()))
	b = binary.BigEndian.AppendUint64(b, uint64(e.size))
	return append(b, e.rel...)
}

func decode(b []byte) (entry, error) {
	if len(b) < 20 {
		return entry{}, errors.New("copy: an entry is too short")
	}
	e := entry{mode: fs.FileMode(binary.BigEndian.Uint32(b)), time: time.Unix(0, int64(binary.BigEndian.Uint64(b[4:]))),
		size: int64(binary.BigEndian.Uint64(b[12:])), rel: string(b[20:])}
	if e.rel != "" && (!filepath.IsLocal(filepath.FromSlash(e.rel)) || e.rel != filepath.ToSlash(filepath.Clean(filepath.FromSlash(e.rel))) ||
		strings.ContainsRune(e.rel, 0) || filepath.Separator != '/' && strings.ContainsAny(e.rel, `\:`)) {
		// A sender that names other places wants to write there (CVE-2019-6111).
		return entry{}, fmt.Errorf("copy: the other end sends the name %q, which is not one", e.rel)
	}
	return e, nil
}

// Main is `machine-agent copy`: the far end, on the given streams. It returns
// the exit code.
func Main(in io.Reader, out, errs io.Writer) int {
	if _, err := io.WriteString(out, Magic); err != nil {
		return 1
	}
	c := newWire(in, out)
	err := func() error {
		kind, payload, err := c.recv()
		if err != nil {
			return err
		}
		var o Order
		if kind != kindOrder {
			return strange(kind)
		}
		if err := json.Unmarshal(payload, &o); err != nil {
			return err
		}
		if rest, ok := strings.CutPrefix(o.Path, "~/"); ok {
			if home, err := os.UserHomeDir(); err == nil {
				o.Path = filepath.Join(home, rest)
			}
		}
		var conn net.Conn
		switch {
		case o.Listen:
			conn, err = listen(c)
		case o.Direct != nil:
			conn, err = connect(*o.Direct)
		}
		if err != nil {
			return c.fail(err)
		}
		if conn != nil {
			defer func() { _ = conn.Close() }()
			c = newWire(conn, conn)
		}
		if o.Send {
			_, err = send(c, o, nil)
		} else {
			_, err = receive(c, o, nil)
		}
		return c.fail(err)
	}()
	if err != nil {
		fmt.Fprintln(errs, err)
		return 1
	}
	return 0
}

// Greet waits for a far end's Magic, past what a login shell may print before
// it, and gives it its order. What it says afterwards is read from the reader
// that is returned.
func Greet(r io.Reader, w io.Writer, o Order) (io.Reader, error) {
	br := bufio.NewReaderSize(r, 512<<10)
	for range 1000 {
		line, err := br.ReadString('\n')
		if err != nil {
			return nil, peer(err)
		}
		if !strings.HasSuffix(line, Magic) {
			continue
		}
		data, err := json.Marshal(o)
		if err != nil {
			return nil, err
		}
		c := newWire(br, w)
		return br, errors.Join(c.send(kindOrder, data), c.flush())
	}
	return nil, errors.New("the host's shell prints too much")
}

// Send is the near end that sends; r and w lead to a receiver.
func Send(r io.Reader, w io.Writer, o Order, p Progress) (Stats, error) {
	c := newWire(r, w)
	s, err := send(c, o, p)
	return s, c.fail(err)
}

// Receive is the near end that receives; r and w lead to a sender.
func Receive(r io.Reader, w io.Writer, o Order, p Progress) (Stats, error) {
	c := newWire(r, w)
	s, err := receive(c, o, p)
	return s, c.fail(err)
}
