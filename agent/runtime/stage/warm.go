//go:build linux

package stage

import (
	"errors"

	"golang.org/x/sys/unix"

	"machine/agent/runtime/rootfs"
	"machine/agent/runtime/wire"
)

// Warm is Init for a process that was made before there was a container for
// it, in new mount, PID, IPC and UTS namespaces: it lets go of the host's tree
// and waits for a wire.Handover on its socket. It does not return.
func Warm(status, self int) {
	unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	proc, err := openProc()
	if err == nil {
		err = rootfs.Empty()
	}
	var p wire.Program
	if err == nil {
		err = receive(status, &p)
	}
	if err == nil && p.Clone&unix.CLONE_NEWNET != 0 {
		err = unix.Unshare(unix.CLONE_NEWNET)
	}
	if err == nil {
		err = initStage(&p, status, self, proc)
	}
	quit(status, err)
}

// receive takes the program and the descriptors that it speaks of.
func receive(status int, p *wire.Program) error {
	b := make([]byte, wire.MaxHandover*8)
	oob := make([]byte, unix.CmsgSpace(wire.MaxHandover*4))
	n, oobn, err := 0, 0, error(unix.EINTR)
	for err == unix.EINTR {
		n, oobn, _, _, err = unix.Recvmsg(status, b, oob, unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil || n == 0 {
		unix.Exit(ExitCode) // the shim is gone
	}
	var h wire.Handover
	if err := wire.Unmarshal(b[:n], &h); err != nil {
		return err
	}
	fds := wire.Rights(oob[:oobn])
	if len(fds) != 4+len(h.Joins)+len(h.Numbers) {
		return errors.New("not the descriptors that the order names")
	}
	order, stdio, joins, others := fds[0], fds[1:4], fds[4:4+len(h.Joins)], fds[4+len(h.Joins):]
	for i, fd := range stdio {
		if err := unix.Dup3(fd, i, 0); err != nil {
			return wire.Fail("set stdio", err)
		}
		unix.Close(fd)
	}
	for i, fd := range joins {
		if err := unix.Setns(fd, int(h.Joins[i])); err != nil {
			return wire.Fail("join a namespace", err)
		}
		unix.Close(fd)
	}
	text, err := ReadAll(order)
	unix.Close(order)
	if err == nil {
		err = wire.Unmarshal(text, p)
	}
	if err != nil {
		return err
	}
	at := make(map[int]int, len(others))
	for i, fd := range others {
		at[h.Numbers[i]] = fd
	}
	p.Renumber(at)
	return nil
}
