//go:build linux

// Package fork makes processes in ways that the standard library cannot: in
// joined namespaces, from a sealed memory file, without a second
// thread that still holds the old namespaces.
package fork

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

// A Child is a process to be made.
type Child struct {
	Flags uint64 // CLONE_NEW*
	Join  []NS   // setns in the child, in order
	Stdio [3]int // become 0, 1, 2
	Keep  []int  // stay open over exec, with their numbers
	Exec  int    // the binary's descriptor
	Argv  []string
	Env   []string
	// Inner are namespaces that are to belong to a user namespace that is
	// joined: CLONE_NEW*. They are made by a second child, after Join, which
	// takes the place of the first.
	Inner  uint64
	UIDMap string // written by the parent before the child goes on
	GIDMap string
	Setsid bool
	// BecomeRoot sets user and group 0 after the namespaces were joined; it is
	// implied by UIDMap.
	BecomeRoot bool
}

// An NS is a descriptor for setns and the kinds of namespace.
type NS struct {
	FD    int
	Flags int
}

type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal     uint64
	stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// Start makes the process. It returns its pid, a close-on-exec pidfd, and
// after the child's exec succeeded, or the child's error with the step that
// failed.
//
// Namespaces that hold for children only (PID) are joined by the caller's
// thread before: call then from a goroutine that is locked to its thread and
// never unlocks.
func (c *Child) Start() (pid, pidfd int, err error) {
	argv, err := syscall.SlicePtrFromStrings(c.Argv)
	if err != nil {
		return 0, -1, err
	}
	envv, err := syscall.SlicePtrFromStrings(c.Env)
	if err != nil {
		return 0, -1, err
	}
	var sync, gate [2]int
	if err := unix.Pipe2(sync[:], unix.O_CLOEXEC); err != nil {
		return 0, -1, err
	}
	defer unix.Close(sync[0])
	gate = [2]int{-1, -1}
	if c.UIDMap != "" {
		if err := unix.Pipe2(gate[:], unix.O_CLOEXEC); err != nil {
			unix.Close(sync[1])
			return 0, -1, err
		}
		defer unix.Close(gate[0])
	}
	args := cloneArgs{flags: c.Flags, exitSignal: uint64(unix.SIGCHLD)}
	inner := cloneArgs{flags: c.Inner | unix.CLONE_PARENT} // the signal is the first's
	empty := [1]byte{}
	p, errno := c.clone(&args, &inner, &argv[0], &envv[0], &empty[0], sync[1], gate[0])
	unix.Close(sync[1])
	if errno != 0 {
		if gate[1] >= 0 {
			unix.Close(gate[1])
		}
		return 0, -1, step("clone", errno)
	}
	if gate[1] >= 0 {
		err = c.writeMaps(p)
		if err == nil {
			_, err = unix.Write(gate[1], []byte{1})
		}
		unix.Close(gate[1])
	}
	if err == nil && c.Inner != 0 {
		p, err = second(p, sync[0])
	}
	if err == nil {
		err = childError(sync[0])
	}
	if err == nil { // not reaped yet, so the number cannot be another's
		pidfd, err = unix.PidfdOpen(p, 0)
	}
	if err != nil {
		unix.Kill(p, unix.SIGKILL)
		reap(p)
		return 0, -1, err
	}
	return p, pidfd, nil
}

func reap(pid int) {
	var ws unix.WaitStatus
	for {
		if _, e := unix.Wait4(pid, &ws, 0, nil); e != unix.EINTR {
			return
		}
	}
}

// second takes over the child that the first one has made, which then ended.
func second(first, sync int) (pid int, err error) {
	var b [8]byte
	n, err := unix.Read(sync, b[:])
	for err == unix.EINTR {
		n, err = unix.Read(sync, b[:])
	}
	if n == 8 && b[0] == isPid {
		reap(first)
		return int(uint32(b[4]) | uint32(b[5])<<8 | uint32(b[6])<<16 | uint32(b[7])<<24), nil
	}
	return first, said(b[:n])
}

// isPid marks the message that holds the second child's pid.
const isPid = 255

var steps = [...]string{"", "", "join namespaces", "wait for id maps", "become root of the user namespace", "set stdio", "keep descriptors", "exec", "new session", "make namespaces"}

type forkError struct {
	what string
	errno
}
type errno = syscall.Errno

func (e *forkError) Error() string { return e.what + ": " + e.errno.Error() }
func (e *forkError) Unwrap() error { return e.errno }

func step(what string, e errno) error { return &forkError{what, e} }

func childError(fd int) error {
	var b [8]byte
	for {
		n, err := unix.Read(fd, b[:])
		if err == unix.EINTR {
			continue
		}
		return said(b[:n])
	}
}

// said reads a child's message of an error; nil when there is none.
func said(b []byte) error {
	if len(b) != 8 {
		return nil
	}
	s := int(b[0])
	if s >= len(steps) {
		s = 0
	}
	return step(steps[s], errno(uint32(b[4])|uint32(b[5])<<8|uint32(b[6])<<16))
}

// clone forks and, in the child, does all that is left to do with raw system
// calls only: the child shares no memory with us, but it has only this one
// thread, so it may neither allocate nor grow its stack nor be scheduled. That
// is why it is one long function.
//
//go:noinline
//go:norace
func (c *Child) clone(args, inner *cloneArgs, argv, envv **byte, empty *byte, sync, gate int) (int, errno) {
	var (
		r1    uintptr
		e     errno
		i, fd int
		b     [8]byte
		n     uint32
	)
	join, keep, stdio := c.Join, c.Keep, c.Stdio
	exec, setsid := c.Exec, c.Setsid
	beforeFork()
	r1, _, e = syscall.RawSyscall6(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0, 0, 0, 0)
	if e != 0 || r1 != 0 {
		afterFork()
		return int(r1), e
	}
	afterForkInChild()
	n = 2
	for i = 0; i < len(join); i++ {
		if _, _, e = syscall.RawSyscall(unix.SYS_SETNS, uintptr(join[i].FD), uintptr(join[i].Flags), 0); e != 0 {
			goto fail
		}
	}
	n = 3
	if gate >= 0 {
		r1, _, e = syscall.RawSyscall(unix.SYS_READ, uintptr(gate), uintptr(unsafe.Pointer(&b[0])), 1)
		if e != 0 || r1 != 1 {
			goto fail
		}
	}
	n = 4
	if gate >= 0 || c.BecomeRoot {
		if _, _, e = syscall.RawSyscall(unix.SYS_SETRESGID, 0, 0, 0); e != 0 {
			goto fail
		}
		if _, _, e = syscall.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0); e != 0 {
			goto fail
		}
	}
	n = 9
	if c.Inner != 0 {
		r1, _, e = syscall.RawSyscall6(unix.SYS_CLONE3, uintptr(unsafe.Pointer(inner)), unsafe.Sizeof(*inner), 0, 0, 0, 0)
		if e != 0 {
			goto fail
		}
		if r1 != 0 {
			n, e = isPid, errno(r1)
			goto fail // it is no failure, but it is told in the same way
		}
	}
	n = 8
	if setsid {
		if _, _, e = syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0); e != 0 {
			goto fail
		}
	}
	n = 5
	for i = 0; i < 3; i++ {
		fd = stdio[i]
		if _, _, e = syscall.RawSyscall(unix.SYS_DUP3, uintptr(fd), uintptr(i), 0); e != 0 {
			goto fail
		}
	}
	n = 6
	for i = 0; i < len(keep); i++ {
		if _, _, e = syscall.RawSyscall(unix.SYS_FCNTL, uintptr(keep[i]), unix.F_SETFD, 0); e != 0 {
			goto fail
		}
	}
	n = 7
	_, _, e = syscall.RawSyscall6(unix.SYS_EXECVEAT, uintptr(exec), uintptr(unsafe.Pointer(empty)),
		uintptr(unsafe.Pointer(argv)), uintptr(unsafe.Pointer(envv)), unix.AT_EMPTY_PATH, 0)
fail:
	b[0] = byte(n)
	b[4], b[5], b[6], b[7] = byte(e), byte(e>>8), byte(e>>16), byte(e>>24)
	syscall.RawSyscall(unix.SYS_WRITE, uintptr(sync), uintptr(unsafe.Pointer(&b[0])), 8)
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 253, 0, 0)
	}
}

func (c *Child) writeMaps(pid int) error {
	for _, m := range [2][2]string{{"uid_map", c.UIDMap}, {"gid_map", c.GIDMap}} {
		fd, err := unix.Open("/proc/"+itoa(pid)+"/"+m[0], unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			_, err = unix.Write(fd, []byte(m[1]))
			unix.Close(fd)
		}
		if err != nil {
			return &forkError{"write " + m[0], err.(errno)}
		}
	}
	return nil
}

func itoa(n int) string {
	var b [20]byte
	i := len(b)
	for {
		i--
		b[i] = byte('0' + n%10)
		if n /= 10; n == 0 {
			return string(b[i:])
		}
	}
}

// An Exec is a program that a prepared thread becomes, or has a child become.
type Exec struct {
	path       *byte
	argv, envv []*byte
	clearMask  bool
	session    bool
	fd         int
}

// UseFD has Become run the binary that fd holds, instead of the path.
func (x *Exec) UseFD(fd int) { x.fd = fd }

// NewExec prepares the arguments, so that nothing is allocated later.
func NewExec(path string, argv, env []string) (*Exec, error) {
	p, err := syscall.BytePtrFromString(path)
	if err != nil {
		return nil, err
	}
	a, err := syscall.SlicePtrFromStrings(argv)
	if err != nil {
		return nil, err
	}
	e, err := syscall.SlicePtrFromStrings(env)
	return &Exec{path: p, argv: a, envv: e}, err
}

// Child clones a sibling (its parent is our parent) of the calling thread's
// credentials, filter and pid namespace for children, and has it run the
// program. It returns the pid once the program runs. It uses the plain clone
// call, the one that seccomp profiles let through.
// The program leads a session of its own, whose controlling terminal is its
// stdin if that is a terminal.
func (x *Exec) Child() (int, error) {
	x.session = true
	return x.start(unix.CLONE_PARENT)
}

// Run has a child run the program, with a clear signal mask and in its own
// process group, and returns its pid once the program runs.
func (x *Exec) Run() (int, error) {
	x.clearMask = true
	return x.start(0)
}

func (x *Exec) start(flags uintptr) (int, error) {
	var sync [2]int
	if err := unix.Pipe2(sync[:], unix.O_CLOEXEC); err != nil {
		return 0, err
	}
	defer unix.Close(sync[0])
	pid, e := x.clone(sync[1], flags)
	unix.Close(sync[1])
	if e != 0 {
		return 0, step("clone", e)
	}
	return pid, childError(sync[0])
}

//go:noinline
//go:norace
func (x *Exec) clone(sync int, flags uintptr) (int, errno) {
	var (
		r1   uintptr
		e    errno
		b    [8]byte
		pgrp int32
		ttou = uint64(1) << (unix.SIGTTOU - 1)
	)
	path, argv, envv := x.path, &x.argv[0], &x.envv[0]
	flags |= uintptr(unix.SIGCHLD)
	mask, clear, session := uint64(0), x.clearMask, x.session
	beforeFork()
	r1, _, e = syscall.RawSyscall6(unix.SYS_CLONE, flags, 0, 0, 0, 0, 0)
	if e != 0 || r1 != 0 {
		afterFork()
		return int(r1), e
	}
	afterForkInChild()
	if session {
		syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0)
		syscall.RawSyscall(unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	}
	if clear {
		// A process group of its own, in the foreground if there is a terminal.
		syscall.RawSyscall(unix.SYS_SETPGID, 0, 0, 0)
		r1, _, _ = syscall.RawSyscall(unix.SYS_GETPID, 0, 0, 0)
		pgrp = int32(r1)
		// Not in the foreground yet: the call below would stop it (tcsetpgrp(3)).
		syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, 0, uintptr(unsafe.Pointer(&ttou)), 0, 8, 0, 0) // SIG_BLOCK
		syscall.RawSyscall(unix.SYS_IOCTL, 0, unix.TIOCSPGRP, uintptr(unsafe.Pointer(&pgrp)))
		syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, 2, uintptr(unsafe.Pointer(&mask)), 0, 8, 0, 0) // SIG_SETMASK
	}
	_, _, e = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(path)),
		uintptr(unsafe.Pointer(argv)), uintptr(unsafe.Pointer(envv)))
	b[0] = 7
	b[4], b[5], b[6] = byte(e), byte(e>>8), byte(e>>16)
	syscall.RawSyscall(unix.SYS_WRITE, uintptr(sync), uintptr(unsafe.Pointer(&b[0])), 8)
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 253, 0, 0)
	}
}

// Become replaces the process by the program. It returns only with an error.
func (x *Exec) Become() error {
	if x.fd > 0 {
		empty := [1]byte{}
		_, _, e := syscall.RawSyscall6(unix.SYS_EXECVEAT, uintptr(x.fd), uintptr(unsafe.Pointer(&empty)),
			uintptr(unsafe.Pointer(&x.argv[0])), uintptr(unsafe.Pointer(&x.envv[0])), unix.AT_EMPTY_PATH, 0)
		return e
	}
	_, _, e := syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(x.path)),
		uintptr(unsafe.Pointer(&x.argv[0])), uintptr(unsafe.Pointer(&x.envv[0])))
	return e
}
