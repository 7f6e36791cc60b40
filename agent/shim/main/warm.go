//go:build linux

package main

import (
	"golang.org/x/sys/unix"

	"machine/agent/runtime/fork"
	"machine/agent/runtime/wire"
)

// Most containers have these namespaces for themselves, and join or make no
// other than a network namespace: their stage can be made ahead.
const usual = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// A warm stage is a container's process before there is a container: it has
// taken the clone and the start of a Go program out of the way by the time
// that the first order comes.
type warm struct {
	pid, pidfd, status int
}

// warmUp makes the stage. Without one, the container's process is made when it
// is needed.
func (s *shim) warmUp() *warm {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(pair[1])
	c := fork.Child{Flags: usual, Stdio: [3]int{s.null, s.null, s.null}, Setsid: true, Keep: []int{pair[1], s.self}, Exec: s.self,
		Argv: []string{"warm", itoa(pair[1]), itoa(s.self)}, Env: childEnv}
	pid, pidfd, err := c.Start()
	if err != nil {
		unix.Close(pair[0])
		return nil
	}
	return &warm{pid, pidfd, pair[0]}
}

// fits tells whether the program can be run by a stage that was made ahead.
func (w *warm) fits(p *wire.Program, joins []fork.NS, fds int) bool {
	if w == nil || p.Clone&^(unix.CLONE_NEWCGROUP|unix.CLONE_NEWNET) != usual || p.UIDMap != "" || 4+len(joins)+fds > wire.MaxHandover {
		return false
	}
	for _, j := range joins {
		if j.Flags != unix.CLONE_NEWNET {
			return false
		}
	}
	return true
}

// hand gives the stage its order.
func (w *warm) hand(order int, stdio [3]int, joins []fork.NS, fds []int) error {
	h := wire.Handover{Numbers: fds}
	all := []int{order, stdio[0], stdio[1], stdio[2]}
	for _, j := range joins {
		h.Joins = append(h.Joins, j.Flags)
		all = append(all, j.FD)
	}
	return unix.Sendmsg(w.status, wire.Marshal(&h), unix.UnixRights(append(all, fds...)...), nil, unix.MSG_NOSIGNAL)
}

// end takes a stage back that was not used.
func (w *warm) end() {
	if w == nil {
		return
	}
	unix.PidfdSendSignal(w.pidfd, unix.SIGKILL, nil, 0)
	wait(w.pid)
	unix.Close(w.pidfd)
	unix.Close(w.status)
}
