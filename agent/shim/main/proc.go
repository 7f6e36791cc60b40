//go:build linux

package main

import (
	"errors"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"machine/agent/logs/sink"
	"machine/agent/runtime/fork"
	"machine/agent/runtime/rootfs"
	"machine/agent/runtime/stage"
	"machine/agent/runtime/wire"
)

var errGone = errors.New("the container's set-up process died")

// create makes the container up to the point where only its program is
// missing.
func (s *shim) create(body []byte) (err error) {
	if err := wire.Unmarshal(body, &s.prog); err != nil {
		return err
	}
	p := &s.prog
	s.dir = p.Dir
	s.title(p.ID)
	p.Process.HasOOM = true // else it would be as the agent's, which is spared
	if err := s.openCgroup(); err != nil {
		return err
	}
	if err := s.openLog(); err != nil {
		return wire.Fail("open the log "+p.Log.Path, err)
	}
	theirs, err := s.stdio.open(s, &p.Process)
	if err != nil {
		return wire.Fail("make stdio", err)
	}
	defer theirs.close(s.null)
	pid, pidfd, status, err := s.fork(theirs)
	if err != nil {
		return err
	}
	score(pid, &p.Process)
	pr := &proc{pid: pid, pidfd: pidfd, status: status, state: wire.StateCreated}
	kind, text, fds, err := readStatus(status)
	if err == nil && kind == stage.Error {
		err = errors.New(text)
	} else if err == nil && kind != stage.Ready {
		err = errGone
	}
	if err != nil {
		wire.CloseAll(fds)
		unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		wait(pid)
		return err
	}
	if len(fds) == 1 {
		s.stdio.setTerminal(s, fds[0])
	}
	unix.SetNonblock(status, true)
	s.procs[0] = pr
	s.watch(pidfd, unix.EPOLLIN, func(uint32) { s.exited(pr) })
	// What the making needed is not needed any more.
	p.Root, p.Mounts, p.Devices, p.Masked, p.ReadonlyPaths, p.Sysctls, p.Process.Seccomp = wire.Root{}, nil, nil, nil, nil, nil, nil
	return nil
}

func (s *shim) openLog() (err error) {
	l := &s.prog.Log
	if l.Driver != "json-file" && l.Driver != "local" {
		return nil
	}
	s.log, err = sink.Open(sink.Config{JSON: l.Driver == "json-file", Path: l.Path, MaxSize: int64(l.MaxSize),
		MaxFiles: int(l.MaxFiles), Attrs: l.Attrs})
	if err == nil && l.Compress {
		s.log.Rotated = func(ino uint64) { s.broadcast(&wire.Message{Kind: wire.MsgLog, A: ino}) }
	}
	return err
}

// fork makes the process that will be the container's init. Namespaces that
// are joined by path are joined by a thread that ends afterwards, so that this
// process itself stays where it is.
//
// In a PID namespace that is joined (--pid container:X) the stage is seen by
// X's processes while it sets up. They cannot touch it unless X was given
// CAP_SYS_PTRACE. It cannot wait outside, as an exec does: before Linux 6.17 a
// procfs shows only its maker's own namespace.
func (s *shim) fork(io *theirs) (pid, pidfd, status int, err error) {
	p := &s.prog
	fds, err := rootfs.Detach(p)
	defer wire.CloseAll(fds)
	if err != nil {
		return 0, -1, -1, err
	}
	p.Process.Tasks = s.tasks
	order, err := memfile(wire.Marshal(p))
	if err != nil {
		return 0, -1, -1, err
	}
	defer unix.Close(order)
	joins, user, err := openJoins(p)
	defer func() {
		for _, j := range joins {
			unix.Close(j.FD)
		}
	}()
	if err != nil {
		return 0, -1, -1, err
	}
	keep := append(fds, s.tasks...)
	w := s.warm
	s.warm = nil
	if w.fits(p, joins, len(keep)) && w.hand(order, io.fds, joins, keep) == nil {
		return w.pid, w.pidfd, w.status, nil
	}
	w.end()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, -1, -1, err
	}
	defer unix.Close(pair[1])
	c := fork.Child{
		Flags: p.Clone &^ unix.CLONE_NEWCGROUP, Stdio: io.fds, Setsid: true,
		Keep: append(keep, order, pair[1], s.self), Exec: s.self,
		Argv: []string{"init", itoa(pair[1]), itoa(order), itoa(s.self)}, Env: childEnv,
		UIDMap: p.UIDMap, GIDMap: p.GIDMap,
	}
	onThread := joins
	if user {
		c.Join, c.BecomeRoot, onThread = joins, true, nil
		c.Flags, c.Inner = 0, c.Flags
	}
	raise(&p.Process)
	pid, pidfd, err = start(&c, onThread)
	if err != nil {
		unix.Close(pair[0])
		return 0, -1, -1, err
	}
	return pid, pidfd, pair[0], nil
}

// openJoins opens the namespaces to join. A user namespace is the last, since
// the right to join the others is lost with it; it may be named by a namespace
// that it owns.
func openJoins(p *wire.Program) (list []fork.NS, user bool, err error) {
	last := -1
	for _, j := range p.Join {
		fd, err := unix.Open(j.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return list, false, wire.Fail("join namespace "+j.Path, err)
		}
		if j.Type != unix.CLONE_NEWUSER {
			list = append(list, fork.NS{FD: fd, Flags: int(j.Type)})
			continue
		}
		last, err = rootfs.UserNS(fd)
		unix.Close(fd)
		if err != nil {
			return list, false, wire.Fail("user namespace of "+j.Path, err)
		}
	}
	if last >= 0 {
		list = append(list, fork.NS{FD: last, Flags: unix.CLONE_NEWUSER})
	}
	return list, last >= 0, nil
}

var childEnv = []string{"GOMAXPROCS=1", "GOGC=off"}

// start forks; with namespaces to join, on a thread that is thrown away.
func start(c *fork.Child, ns []fork.NS) (pid, pidfd int, err error) {
	if len(ns) == 0 {
		return c.Start()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		for _, n := range ns {
			if err = unix.Setns(n.FD, n.Flags); err != nil {
				err = wire.Fail("join a namespace", err)
				return
			}
		}
		pid, pidfd, err = c.Start()
	}()
	<-done
	return pid, pidfd, err
}

// score sets a stage's oom_score_adj where its user namespace's root has no right
// to.
func score(pid int, p *wire.Process) {
	if p.UserNS {
		_ = stage.WriteFile("/proc/"+itoa(pid)+"/oom_score_adj", itoa(p.OOMScoreAdj))
	}
}

// raise lets the stages of a user namespace have the limits that they are to
// set: they inherit ours, and have no right to more.
func raise(p *wire.Process) {
	if !p.UserNS {
		return
	}
	for _, r := range p.Rlimits {
		var now unix.Rlimit
		if unix.Prlimit(0, int(r.Resource), nil, &now) == nil && r.Hard > now.Max {
			now.Max = r.Hard
			_ = unix.Prlimit(0, int(r.Resource), &now, nil)
		}
	}
}

// memfile puts b into a sealed memory file.
func memfile(b []byte) (int, error) {
	fd, err := unix.MemfdCreate("order", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, err
	}
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err != nil {
			unix.Close(fd)
			return -1, err
		}
		b = b[n:]
	}
	unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	return fd, nil
}

// readStatus takes one message of a stage. kind 0 is the end of the
// connection: its process has become the program, or died.
func readStatus(fd int) (kind byte, text string, fds []int, err error) {
	b := make([]byte, 4<<10)
	oob := make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := unix.Recvmsg(fd, b, oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return 0, "", nil, err
		}
		return b[0], string(b[1:n]), wire.Rights(oob[:oobn]), nil
	}
}

func wait(pid int) (code int, ok bool) {
	var ws unix.WaitStatus
	for {
		got, err := unix.Wait4(pid, &ws, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || got != pid {
			return 0, false
		}
		if ws.Signaled() {
			return 128 + int(ws.Signal()), true
		}
		return ws.ExitStatus(), true
	}
}

// start lets init run its program. The answer comes when the exec has closed
// the stage's socket or the stage said why not.
func (s *shim) start(conn int, seq uint32) {
	p := s.procs[0]
	if p == nil || p.state != wire.StateCreated || p.status < 0 {
		s.reply(conn, seq, errors.New("not in the state created"))
		return
	}
	unix.Write(p.status, []byte{stage.Start})
	p.state = wire.StateRunning
	s.watch(p.status, unix.EPOLLIN, func(uint32) {
		kind, text, fds, err := readStatus(p.status)
		if err == unix.EAGAIN {
			return
		}
		wire.CloseAll(fds)
		s.forget(p.status)
		p.status = -1
		if err == nil && kind == stage.Error {
			err = errors.New(text)
		}
		s.reply(conn, seq, err)
	})
}

// exited books the end of a process.
func (s *shim) exited(p *proc) {
	code, ok := wait(p.pid)
	if !ok {
		code = 255
	}
	s.forget(p.pidfd)
	p.pidfd, p.exited, p.state = -1, true, wire.StateExited
	m := wire.Message{Kind: wire.MsgExit, Proc: p.id, A: uint64(code), B: uint64(s.now())}
	if p.id != 0 {
		delete(s.procs, p.id)
		s.execs--
		s.broadcast(&m)
		return
	}
	s.stdio.end(s)
	if s.log != nil {
		s.log.Close()
	}
	rec := wire.ExitRecord{Status: uint32(code), At: m.B}
	if s.oom >= 0 {
		kills, _ := s.oomKills()
		rec.OOM = kills > 0
		s.unwatchOOM()
	}
	if rec.OOM {
		m.Flags = wire.ExitOOM
	}
	// On disk before anybody is told.
	if err := s.record(&rec); err != nil {
		unix.Write(2, []byte("shim: write exit record: "+err.Error()+"\n"))
	}
	s.recorded = true
	s.broadcast(&m)
}

func (s *shim) record(rec *wire.ExitRecord) error {
	tmp := s.dir + "/" + wire.ExitName + ".tmp"
	fd, err := unix.Open(tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, wire.Marshal(rec))
	unix.Close(fd)
	if err != nil {
		return err
	}
	return unix.Rename(tmp, s.dir+"/"+wire.ExitName)
}

// exec runs one more process in the container. The descriptors are the
// client's own pipes: this process has no part in their traffic.
func (s *shim) exec(conn int, m *wire.Message, fds []int) {
	defer wire.CloseAll(fds)
	init := s.procs[0]
	var p wire.Process
	err := wire.Unmarshal(m.Body, &p)
	if err == nil && (init == nil || init.exited || init.state != wire.StateRunning) {
		err = errors.New("the container is not running")
	}
	if err == nil && s.procs[m.Proc] != nil {
		err = errors.New("the exec's number is taken")
	}
	var pr *proc
	if err == nil {
		pr, err = s.forkExec(m, &p, fds)
	}
	if err != nil {
		s.reply(conn, m.Seq, err)
		return
	}
	stagePid, stagePidfd := pr.pid, pr.pidfd
	pr.pid, pr.pidfd = 0, -1
	master := -1
	s.execs++
	s.procs[m.Proc] = pr
	s.watch(stagePidfd, unix.EPOLLIN, func(uint32) {
		wait(stagePid)
		s.forget(stagePidfd)
	})
	s.watch(pr.status, unix.EPOLLIN, func(uint32) {
		kind, text, got, err := readStatus(pr.status)
		if err == unix.EAGAIN {
			return
		}
		if err == nil && kind == stage.Ready && len(got) == 1 {
			master = got[0]
			return
		}
		wire.CloseAll(got)
		if kind == stage.Pid && err == nil {
			err = s.adoptExec(conn, m.Seq, pr, text, master)
		} else if kind == stage.Error {
			err = errors.New(text)
		} else if err == nil {
			err = errGone
		}
		if master >= 0 {
			unix.Close(master)
		}
		s.forget(pr.status)
		pr.status = -1
		if err != nil {
			s.execs--
			delete(s.procs, m.Proc)
			s.reply(conn, m.Seq, err)
		}
	})
}

func (s *shim) forkExec(m *wire.Message, p *wire.Process, fds []int) (*proc, error) {
	init := s.procs[0]
	inner := s.innerCgroup(init.pid)
	p.Tasks = s.tasks
	if inner >= 0 {
		defer unix.Close(inner)
		p.Tasks = []int{inner}
	}
	if !p.HasOOM {
		p.HasOOM, p.OOMScoreAdj = true, s.prog.Process.OOMScoreAdj
	}
	order, err := memfile(wire.Marshal(p))
	if err != nil {
		return nil, err
	}
	defer unix.Close(order)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(pair[1])
	io := [3]int{s.null, s.null, s.null}
	for i := range io {
		if m.Flags>>i&1 == 1 && len(fds) > 0 && !p.TTY {
			io[i], fds = fds[0], fds[1:]
			s.own(io[i])
		}
	}
	c := fork.Child{
		Stdio: io, Setsid: true, Exec: s.self,
		Keep: append([]int{order, pair[1], init.pidfd, s.self}, p.Tasks...), Env: childEnv,
	}
	joined := "0"
	if p.UserNS {
		joined, c.BecomeRoot = "1", true
		c.Join = []fork.NS{{FD: init.pidfd, Flags: unix.CLONE_NEWUSER |
			unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP}}
	}
	c.Argv = []string{"exec", itoa(pair[1]), itoa(order), itoa(init.pidfd), itoa(s.self), joined}
	raise(p)
	pid, pidfd, err := c.Start()
	if err != nil {
		unix.Close(pair[0])
		return nil, err
	}
	score(pid, p)
	unix.SetNonblock(pair[0], true)
	return &proc{id: m.Proc, pid: pid, pidfd: pidfd, status: pair[0], state: wire.StateRunning}, nil
}

// adoptExec takes over an exec's process from its stage: it is our child.
func (s *shim) adoptExec(conn int, seq uint32, p *proc, pid string, master int) (err error) {
	if p.pid, err = strconv.Atoi(pid); err != nil {
		return err
	}
	if p.pidfd, err = unix.PidfdOpen(p.pid, 0); err != nil {
		return wire.Fail("pidfd_open", err)
	}
	// The number came from a process that has one foot in the container: it
	// must be our child, or a kill of the exec would hit another.
	if err := unix.Waitid(unix.P_PID, p.pid, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
		unix.Close(p.pidfd)
		return wire.Fail("the exec's process is not ours", err)
	}
	s.watch(p.pidfd, unix.EPOLLIN, func(uint32) { s.exited(p) })
	m := wire.Message{Kind: wire.MsgReply, Seq: seq, B: uint64(p.pid)}
	if master >= 0 {
		s.send(conn, &m, p.pidfd, master)
	} else {
		s.send(conn, &m, p.pidfd)
	}
	return nil
}
