package shim

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"machine/agent/fault"
	"machine/agent/runtime/wire"
)

// errLost says that the shim's end of the connection is gone.
var errLost = fault.Unavailable.Errorf("the container's shim has ended")

// A client is a connection to a shim.
type client struct {
	conn *net.UnixConn

	mu      sync.Mutex
	seq     uint32
	pending map[uint32]chan reply
	lost    bool
	done    chan struct{} // closed when the reader has ended
}

type reply struct {
	msg wire.Message
	fds []int
}

// newClient takes over a connected SOCK_SEQPACKET descriptor.
func newClient(fd int) (*client, error) {
	f := os.NewFile(uintptr(fd), "shim")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fault.Internal.Errorf("shim connection: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fault.Internal.Errorf("shim connection: not a unix socket")
	}
	return &client{conn: u, pending: map[uint32]chan reply{}, done: make(chan struct{})}, nil
}

// read dispatches messages until the connection ends. event gets what is no
// reply; it must not call back into the client's call.
func (c *client) read(event func(*wire.Message)) {
	defer close(c.done)
	buf := make([]byte, wire.MaxPacket)
	oob := make([]byte, unix.CmsgSpace(4*4))
	for {
		n, oobn, _, _, err := c.conn.ReadMsgUnix(buf, oob)
		if err != nil || n == 0 {
			break
		}
		fds := wire.Rights(oob[:oobn])
		var m wire.Message
		if wire.Unmarshal(buf[:n], &m) != nil {
			wire.CloseAll(fds)
			break
		}
		if m.Kind != wire.MsgReply {
			wire.CloseAll(fds)
			event(&m)
			continue
		}
		c.mu.Lock()
		ch := c.pending[m.Seq]
		delete(c.pending, m.Seq)
		c.mu.Unlock()
		if ch == nil {
			wire.CloseAll(fds)
			continue
		}
		ch <- reply{m, fds}
	}
	c.mu.Lock()
	c.lost = true
	for seq, ch := range c.pending {
		delete(c.pending, seq)
		close(ch)
	}
	c.mu.Unlock()
	c.conn.Close()
}

// post sends a message that has no answer.
func (c *client) post(m *wire.Message, fds ...int) error {
	if len(m.Body) > wire.InlineBody {
		fd, err := bodyFile(m.Body)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		m.Body, m.BodyFD = nil, true
		fds = append(fds[:len(fds):len(fds)], fd)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := c.conn.WriteMsgUnix(wire.Marshal(m), oob, nil); err != nil {
		if errors.Is(err, net.ErrClosed) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
			return errLost
		}
		return fault.Internal.Errorf("send to the shim: %w", err)
	}
	return nil
}

func bodyFile(b []byte) (int, error) {
	fd, err := unix.MemfdCreate("body", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, fault.Internal.Errorf("memory file for a message: %w", err)
	}
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err != nil {
			unix.Close(fd)
			return -1, fault.Internal.Errorf("memory file for a message: %w", err)
		}
		b = b[n:]
	}
	return fd, nil
}

// call sends m and waits for the answer. The caller closes the answer's
// descriptors. An answer that carries an error's text is returned with text
// and without error.
func (c *client) call(ctx context.Context, m *wire.Message, fds ...int) (reply, error) {
	ch := make(chan reply, 1)
	c.mu.Lock()
	if c.lost {
		c.mu.Unlock()
		return reply{}, errLost
	}
	c.seq++
	m.Seq = c.seq
	c.pending[m.Seq] = ch
	c.mu.Unlock()
	seq := m.Seq
	if err := c.post(m, fds...); err != nil {
		c.forget(seq, ch)
		return reply{}, err
	}
	select {
	case r, ok := <-ch:
		if !ok {
			return reply{}, errLost
		}
		return r, nil
	case <-ctx.Done():
		c.forget(seq, ch)
		return reply{}, fault.Unavailable.Errorf("waiting for the shim: %w", ctx.Err())
	}
}

// forget gives up on an answer; one that came in the meantime is released.
func (c *client) forget(seq uint32, ch chan reply) {
	c.mu.Lock()
	delete(c.pending, seq)
	c.mu.Unlock()
	select {
	case r, ok := <-ch:
		if ok {
			wire.CloseAll(r.fds)
		}
	default:
	}
}
