//go:build linux

package main

import (
	"errors"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"machine/agent/logs/sink"
	"machine/agent/runtime/stage"
	"machine/agent/runtime/wire"
)

// A shim is the whole program's state.
type shim struct {
	ep       int
	self     int    // the binary
	name     string // where the kernel reads our arguments
	dir      string // of the task
	conns    map[int]bool
	handlers map[int32]func(events uint32)
	procs    map[uint32]*proc
	execs    int // stages and programs of execs that live
	prog     wire.Program
	log      *sink.Log
	stdio    stdio
	null     int
	tasks    []int // descriptors of the cgroups' lists of processes
	oom      int   // the file that counts kills for memory; -1 for none
	oomFD    int   // what is ready when there was one
	oomSeen  int
	oomLooks int // how often to look at the count again
	buf      []byte
	warm     *warm
	shutdown bool
	recorded bool
}

// A proc is a process that we wait for: the container's init (0), or an exec.
type proc struct {
	id     uint32
	pid    int
	pidfd  int
	status int // the socket to its stage, -1 afterwards
	exited bool
	state  uint64
}

func run(control, self int, warm bool, name string) {
	s := &shim{self: self, name: name, conns: map[int]bool{}, handlers: map[int32]func(uint32){},
		procs: map[uint32]*proc{}, oom: -1, buf: make([]byte, 64<<10)}
	// What the agent inherited from who started it is not ours.
	unix.CloseRange(uint(self)+1, ^uint(0), 0)
	unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	var err error
	if s.ep, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		fatal("epoll: " + err.Error())
	}
	if s.null, err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		fatal("/dev/null: " + err.Error())
	}
	s.adopt(control)
	if warm {
		s.warm = s.warmUp()
	}
	s.loop()
}

// watch calls f for events on fd until forget.
func (s *shim) watch(fd int, events uint32, f func(events uint32)) {
	s.handlers[int32(fd)] = f
	ev := unix.EpollEvent{Events: events, Fd: int32(fd)}
	if err := unix.EpollCtl(s.ep, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		fatal("watch: " + err.Error())
	}
}

func (s *shim) rewatch(fd int, events uint32) {
	ev := unix.EpollEvent{Events: events, Fd: int32(fd)}
	unix.EpollCtl(s.ep, unix.EPOLL_CTL_MOD, fd, &ev)
}

// forget stops watching fd and closes it.
func (s *shim) forget(fd int) {
	if _, ok := s.handlers[int32(fd)]; ok {
		delete(s.handlers, int32(fd))
		unix.EpollCtl(s.ep, unix.EPOLL_CTL_DEL, fd, nil)
	}
	unix.Close(fd)
}

func (s *shim) loop() {
	events := make([]unix.EpollEvent, 32)
	for {
		wait := -1
		if s.oomLooks > 0 {
			wait = 10
		}
		n, err := unix.EpollWait(s.ep, events, wait)
		if err != nil && err != unix.EINTR {
			fatal("epoll_wait: " + err.Error())
		}
		for i := 0; i < n; i++ {
			if f := s.handlers[events[i].Fd]; f != nil {
				f(events[i].Events)
			}
		}
		if s.oomLooks > 0 {
			s.lookOOM()
		}
		if s.finished() {
			return
		}
	}
}

// finished says that nobody needs this process any more: the exit is on
// record, all output was taken, no exec runs; or the agent said so, or it
// went away before there was anything to hold.
func (s *shim) finished() bool {
	init := s.procs[0]
	if init == nil {
		return len(s.conns) == 0
	}
	if s.shutdown {
		return s.stdio.flushed()
	}
	return s.recorded && s.execs == 0 && s.stdio.flushed()
}

// place takes the task's files: the socket that a restarted agent connects to,
// and where this process's last words go.
func (s *shim) place(fds []int) error {
	if len(fds) != 2 || s.procs[0] != nil {
		wire.CloseAll(fds)
		return errors.New("not a fresh shim")
	}
	listen := fds[0]
	unix.SetNonblock(listen, true)
	s.watch(listen, unix.EPOLLIN, func(uint32) { s.accept(listen) })
	defer unix.Close(fds[1])
	return unix.Dup3(fds[1], 2, 0)
}

// title has ps show whose shim this is. The runtime's strings of arguments lie
// where the kernel reads them (proc_pid_cmdline(5)).
func (s *shim) title(id string) {
	b := unsafe.Slice(unsafe.StringData(s.name), len(s.name))
	n := copy(b, id)
	for i := range b[n:] {
		b[n+i] = ' '
	}
}

func (s *shim) accept(listen int) {
	fd, _, err := unix.Accept4(listen, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if err != nil {
		return
	}
	// The directory is closed to others; this is for the day it is not.
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil || cred.Uid != 0 {
		unix.Close(fd)
		return
	}
	s.adopt(fd)
}

func (s *shim) adopt(fd int) {
	unix.SetNonblock(fd, true)
	s.conns[fd] = true
	s.watch(fd, unix.EPOLLIN, func(uint32) { s.receive(fd) })
}

func (s *shim) drop(fd int) {
	if s.conns[fd] {
		delete(s.conns, fd)
		s.forget(fd)
	}
}

func (s *shim) send(fd int, m *wire.Message, fds ...int) {
	if !s.conns[fd] {
		return
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(fd, wire.Marshal(m), oob, nil, unix.MSG_NOSIGNAL); err != nil {
		s.drop(fd) // it will see the end of the connection and ask again
	}
}

func (s *shim) broadcast(m *wire.Message) {
	for fd := range s.conns {
		s.send(fd, m)
	}
}

func (s *shim) receive(fd int) {
	oob := make([]byte, unix.CmsgSpace(8*4))
	buf := s.buf[:wire.MaxPacket] // what is decoded of it is copied
	n, oobn, flags, _, err := unix.Recvmsg(fd, buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err == unix.EAGAIN || err == unix.EINTR {
		return
	}
	if err != nil || n == 0 {
		s.drop(fd)
		return
	}
	fds := wire.Rights(oob[:oobn])
	var m wire.Message
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || wire.Unmarshal(buf[:n], &m) != nil {
		wire.CloseAll(fds)
		s.drop(fd)
		return
	}
	if m.BodyFD && len(fds) > 0 {
		last := fds[len(fds)-1]
		fds = fds[:len(fds)-1]
		m.Body, err = stage.ReadAll(last)
		unix.Close(last)
		if err != nil {
			m.Body = nil
		}
	}
	s.handle(fd, &m, fds)
}

func (s *shim) reply(fd int, seq uint32, err error) {
	m := wire.Message{Kind: wire.MsgReply, Seq: seq}
	if err != nil {
		m.Err = err.Error()
		if len(m.Err) > 8<<10 {
			m.Err = m.Err[:8<<10]
		}
	}
	s.send(fd, &m)
}

func (s *shim) handle(fd int, m *wire.Message, fds []int) {
	init := s.procs[0]
	switch m.Kind {
	case wire.MsgCreate:
		err := s.place(fds)
		if err == nil {
			err = s.create(m.Body)
		}
		if err != nil {
			s.reply(fd, m.Seq, err)
			s.shutdown = true
			s.procs[0] = &proc{} // let the loop end
			return
		}
		s.answer(fd, m.Seq)
	case wire.MsgHello:
		wire.CloseAll(fds)
		s.answer(fd, m.Seq)
	case wire.MsgStart:
		wire.CloseAll(fds)
		s.start(fd, m.Seq)
	case wire.MsgAttach:
		s.attach(m.Flags, fds)
		s.reply(fd, m.Seq, nil)
	case wire.MsgExec:
		s.exec(fd, m, fds)
	case wire.MsgResize:
		wire.CloseAll(fds)
		s.reply(fd, m.Seq, s.stdio.resize(uint32(m.A), uint32(m.B)))
	case wire.MsgRotated:
		wire.CloseAll(fds)
		if s.log != nil {
			s.log.Compressed(m.A, string(m.Body))
		}
	case wire.MsgShutdown:
		wire.CloseAll(fds)
		if init != nil && !init.exited && init.pidfd >= 0 {
			unix.PidfdSendSignal(init.pidfd, unix.SIGKILL, nil, 0)
			return // its exit comes first; the agent asks again
		}
		s.shutdown = true
		for c := range s.conns {
			s.drop(c)
		}
	default:
		wire.CloseAll(fds)
	}
}

// answer tells who the container's init is and how it is.
func (s *shim) answer(fd int, seq uint32) {
	m := wire.Message{Kind: wire.MsgReply, Seq: seq}
	p := s.procs[0]
	if p == nil {
		m.Err = "nothing was created"
		s.send(fd, &m)
		return
	}
	m.A, m.B = p.state, uint64(p.pid)
	if p.pidfd < 0 {
		s.send(fd, &m)
		return
	}
	s.send(fd, &m, p.pidfd)
}

func (s *shim) now() int64 { return time.Now().UnixNano() }

func itoa(n int) string { return strconv.Itoa(n) }
