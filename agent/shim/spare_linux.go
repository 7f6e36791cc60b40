package shim

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"machine/agent/fault"
)

// spawned is a shim's process that holds no container yet. It ends when the
// connection does.
type spawned struct {
	pid  int
	conn int
}

// end takes a process back that was never used.
func (p spawned) end() {
	unix.Close(p.conn)
	reap(p.pid)
}

// alive tells whether the process still holds its end of the connection.
func (p spawned) alive() bool {
	fds := []unix.PollFd{{Fd: int32(p.conn)}}
	_, err := unix.Poll(fds, 0)
	return err == nil && fds[0].Revents == 0
}

// fork starts a shim's process in a session of its own, so that no signal to
// the agent's group reaches it. Until it is given a container its last words
// are the agent's.
func (s *Shim) fork() (spawned, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return spawned{}, fault.Internal.Errorf("make the shim's connection: %w", err)
	}
	defer unix.Close(pair[1])
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(pair[0])
		return spawned{}, fault.Internal.Errorf("open %s: %w", os.DevNull, err)
	}
	defer unix.Close(null)
	warm := "0"
	if s.warm {
		warm = "1"
	}
	pid, err := syscall.ForkExec(s.binary.Name(), []string{"shim", "3", "4", warm, fmt.Sprintf("%-64s", "spare")}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"GOMAXPROCS=1", "GOGC=50"},
		Files: []uintptr{uintptr(null), uintptr(null), 2, uintptr(pair[1]), s.binary.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		unix.Close(pair[0])
		return spawned{}, fault.Internal.Errorf("start the shim: %w", err)
	}
	return spawned{pid, pair[0]}, nil
}
