//go:build linux

package main

import (
	"errors"

	"golang.org/x/sys/unix"

	"machine/agent/runtime/rootfs"
	"machine/agent/runtime/wire"
)

// backlogMax is what a slow client may be behind, in bytes on disk, before it
// is cut off. It never slows the container.
const backlogMax = 1 << 30

// stdio is our side of the container's standard streams, and those who listen.
type stdio struct {
	in       int    // to the process's stdin; -1 when closed
	out      [2]int // from its stdout and stderr; the terminal is out[0]; -1 at the end
	tty      bool
	once     bool
	inputs   map[int]bool // clients' stdin
	pending  []byte       // input that the process has not taken yet
	clients  []*client
	spillDir string
}

// A client is one listener of one stream.
type client struct {
	stream int
	fd     int
	spill  int // an unlinked file with what the client has not taken; -1
	rd, wr int64
	ended  bool // close when all is taken
	armed  bool
}

// theirs are the process's ends.
type theirs struct{ fds [3]int }

func (t *theirs) close(null int) {
	for _, fd := range t.fds {
		if fd != null {
			unix.Close(fd)
		}
	}
}

func (io *stdio) open(s *shim, p *wire.Process) (*theirs, error) {
	io.in, io.out, io.tty, io.once = -1, [2]int{-1, -1}, p.TTY, s.prog.StdinOnce
	io.inputs = map[int]bool{}
	io.spillDir = s.dir
	if i := lastSlash(s.prog.Log.Path); i > 0 {
		io.spillDir = s.prog.Log.Path[:i]
	}
	t := &theirs{[3]int{s.null, s.null, s.null}}
	if p.TTY {
		return t, nil
	}
	for i := range 3 {
		if i == 0 && !p.Stdin {
			continue
		}
		var pp [2]int
		if err := unix.Pipe2(pp[:], unix.O_CLOEXEC); err != nil {
			t.close(s.null)
			return nil, err
		}
		if i == 0 {
			t.fds[0], io.in = pp[0], pp[1]
			s.own(pp[0])
			unix.SetNonblock(io.in, true)
			continue
		}
		t.fds[i], io.out[i-1] = pp[1], pp[0]
		s.own(pp[1])
		unix.SetNonblock(pp[0], true)
		unix.FcntlInt(uintptr(pp[0]), unix.F_SETPIPE_SZ, 256<<10)
		s.watch(pp[0], unix.EPOLLIN, func(uint32) { io.pump(s, i-1) })
	}
	return t, nil
}

// own gives a pipe to the container's root: in its user namespace nobody may
// pass on what belongs to the host's.
func (s *shim) own(fd int) {
	if s.prog.Process.UserNS {
		_ = unix.Fchown(fd, int(s.prog.RootUID), int(s.prog.RootGID))
	}
}

func lastSlash(p string) int {
	for i := len(p) - 1; i >= 0; i-- {
		if p[i] == '/' {
			return i
		}
	}
	return -1
}

// setTerminal takes the terminal's master.
func (io *stdio) setTerminal(s *shim, master int) {
	unix.SetNonblock(master, true)
	io.out[0] = master
	s.watch(master, unix.EPOLLIN, func(uint32) { io.pump(s, 0) })
	if s.prog.Process.Stdin {
		io.in, _ = unix.FcntlInt(uintptr(master), unix.F_DUPFD_CLOEXEC, 3)
	}
}

func (io *stdio) resize(rows, cols uint32) error {
	if !io.tty || io.out[0] < 0 {
		return errors.New("no terminal")
	}
	return rootfs.SetSize(io.out[0], rows, cols)
}

// pump moves one bufferful of output to the log and the clients. It reports
// whether there may be more.
func (io *stdio) pump(s *shim, stream int) bool {
	fd := io.out[stream]
	if fd < 0 {
		return false
	}
	n, err := unix.Read(fd, s.buf)
	if err == unix.EINTR {
		return true
	}
	if err == unix.EAGAIN {
		return false
	}
	if err != nil || n <= 0 { // a terminal without slaves says EIO
		io.eof(s, stream)
		return false
	}
	if s.log != nil {
		s.log.Write(stream, s.buf[:n], s.now())
	}
	for _, c := range io.clients {
		if c.stream == stream {
			c.write(s, s.buf[:n])
		}
	}
	io.sweep()
	return true
}

func (io *stdio) eof(s *shim, stream int) {
	s.forget(io.out[stream])
	io.out[stream] = -1
	if s.log != nil {
		s.log.End(stream, s.now())
	}
	for _, c := range io.clients {
		if c.stream == stream {
			c.end(s)
		}
	}
	io.sweep()
}

// end takes what the ended process has left in its streams. Something else
// may hold them open still (a process in the host's PID namespace): that is
// not waited for.
func (io *stdio) end(s *shim) {
	for i := range io.out {
		for io.pump(s, i) {
		}
		if io.out[i] >= 0 {
			io.eof(s, i)
		}
	}
	io.closeStdin(s)
	for fd := range io.inputs {
		delete(io.inputs, fd)
		s.forget(fd)
	}
}

func (io *stdio) flushed() bool { return len(io.clients) == 0 }

func (io *stdio) sweep() {
	live := io.clients[:0]
	for _, c := range io.clients {
		if c.fd >= 0 {
			live = append(live, c)
		}
	}
	io.clients = live
}

// attach adds a client. Its descriptors come in the order stdin, stdout,
// stderr, as far as flags names them.
func (s *shim) attach(flags uint32, fds []int) {
	io := &s.stdio
	take := func(flag uint32) int {
		if flags&flag == 0 || len(fds) == 0 {
			return -1
		}
		fd := fds[0]
		fds = fds[1:]
		unix.SetNonblock(fd, true)
		return fd
	}
	in, out, err := take(wire.AttachIn), take(wire.AttachOut), take(wire.AttachErr)
	wire.CloseAll(fds)
	for i, fd := range [2]int{out, err} {
		if fd < 0 {
			continue
		}
		if io.out[i] < 0 {
			unix.Close(fd)
			continue
		}
		unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, 1<<20)
		c := &client{stream: i, fd: fd, spill: -1}
		io.clients = append(io.clients, c)
		s.watch(fd, 0, func(ev uint32) { c.event(s, ev) })
	}
	if in < 0 {
		return
	}
	if io.in < 0 {
		unix.Close(in)
		return
	}
	io.inputs[in] = true
	events := uint32(unix.EPOLLIN)
	if len(io.pending) > 0 {
		events = 0
	}
	s.watch(in, events, func(uint32) { io.input(s, in) })
}

// input moves a client's input to the process. While the process does not
// take it, no client is read.
func (io *stdio) input(s *shim, fd int) {
	if len(io.pending) > 0 {
		return
	}
	n, err := unix.Read(fd, s.buf)
	if err == unix.EAGAIN || err == unix.EINTR {
		return
	}
	if err != nil || n <= 0 {
		delete(io.inputs, fd)
		s.forget(fd)
		if io.once && !io.tty {
			io.closeStdin(s)
		}
		return
	}
	io.feed(s, s.buf[:n])
}

func (io *stdio) feed(s *shim, b []byte) {
	for len(b) > 0 && io.in >= 0 {
		n, err := unix.Write(io.in, b)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN {
			io.pending = append([]byte(nil), b...)
			io.pause(s, true)
			if s.handlers[int32(io.in)] == nil {
				s.watch(io.in, unix.EPOLLOUT, func(uint32) { io.resume(s) })
			}
			return
		}
		if err != nil {
			io.closeStdin(s)
			return
		}
		b = b[n:]
	}
}

func (io *stdio) resume(s *shim) {
	b := io.pending
	io.pending = nil
	io.feed(s, b)
	if len(io.pending) > 0 || io.in < 0 {
		return
	}
	delete(s.handlers, int32(io.in))
	unix.EpollCtl(s.ep, unix.EPOLL_CTL_DEL, io.in, nil)
	io.pause(s, false)
}

func (io *stdio) pause(s *shim, stop bool) {
	events := uint32(unix.EPOLLIN)
	if stop {
		events = 0
	}
	for fd := range io.inputs {
		s.rewatch(fd, events)
	}
}

func (io *stdio) closeStdin(s *shim) {
	if io.in < 0 {
		return
	}
	s.forget(io.in)
	io.in, io.pending = -1, nil
	for fd := range io.inputs {
		delete(io.inputs, fd)
		s.forget(fd)
	}
}

// write hands output to the client without ever waiting for it: what does not
// fit its pipe goes to a file.
func (c *client) write(s *shim, b []byte) {
	if c.fd < 0 {
		return
	}
	for c.spill < 0 && len(b) > 0 {
		n, err := unix.Write(c.fd, b)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN {
			break
		}
		if err != nil {
			c.drop(s)
			return
		}
		b = b[n:]
	}
	if len(b) == 0 {
		return
	}
	if c.spill < 0 {
		fd, err := unix.Open(s.stdio.spillDir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			c.drop(s)
			return
		}
		c.spill, c.rd, c.wr = fd, 0, 0
	}
	n, err := unix.Pwrite(c.spill, b, c.wr)
	if err != nil || n != len(b) || c.wr-c.rd > backlogMax {
		c.drop(s)
		return
	}
	c.wr += int64(n)
	c.arm(s, unix.EPOLLOUT)
}

func (c *client) arm(s *shim, events uint32) {
	if (events != 0) != c.armed {
		c.armed = events != 0
		s.rewatch(c.fd, events)
	}
}

// event is called when the client takes more, or has gone.
func (c *client) event(s *shim, ev uint32) {
	if ev&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		c.drop(s)
		s.stdio.sweep()
		return
	}
	for c.spill >= 0 {
		n, err := unix.Pread(c.spill, s.buf[:min(int64(len(s.buf)), max(c.wr-c.rd, 0))], c.rd)
		if err != nil || n == 0 {
			break
		}
		n, err = unix.Write(c.fd, s.buf[:n])
		if err == unix.EAGAIN || err == unix.EINTR {
			return
		}
		if err != nil {
			c.drop(s)
			s.stdio.sweep()
			return
		}
		if c.rd += int64(n); c.rd == c.wr {
			unix.Close(c.spill)
			c.spill = -1
		}
	}
	c.arm(s, 0)
	if c.ended {
		c.drop(s)
		s.stdio.sweep()
	}
}

// end closes the client's stream once it has taken everything.
func (c *client) end(s *shim) {
	if c.spill < 0 {
		c.drop(s)
		return
	}
	c.ended = true
}

func (c *client) drop(s *shim) {
	if c.fd < 0 {
		return
	}
	s.forget(c.fd)
	c.fd = -1
	if c.spill >= 0 {
		unix.Close(c.spill)
		c.spill = -1
	}
}
