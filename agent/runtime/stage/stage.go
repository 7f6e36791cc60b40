//go:build linux

// Package stage is what a container's process does between its birth and the
// program that it runs: it builds the file tree, joins namespaces, looks up
// its user, drops what it must not have, and becomes the program. It is a part
// of the shim's binary and talks to the shim over one socket.
//
// Everything here concerns one thread, to which the caller has locked the
// goroutine: the others of the Go runtime never see the container and end with
// the exec.
package stage

import (
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"machine/agent/runtime/fork"
	"machine/agent/runtime/rootfs"
	"machine/agent/runtime/wire"
)

// The first byte of what a stage tells the shim; end of file without an Error
// says that the program runs.
const (
	Ready    = 'R' // with the terminal's master, if any
	Error    = 'E' // and the text
	Pid      = 'P' // and the pid in decimal: of an exec's program
	Start    = 'S' // from the shim: go on
	ExitCode = 125
)

// Init makes the container and becomes its program. status is the socket,
// order the memory file with the Program, self the binary. It does not return.
func Init(status, order, self int) {
	unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	var p wire.Program
	b, err := ReadAll(order)
	unix.Close(order)
	if err == nil {
		err = wire.Unmarshal(b, &p)
	}
	proc := -1
	if err == nil {
		proc, err = openProc()
	}
	if err == nil {
		err = initStage(&p, status, self, proc)
	}
	quit(status, err)
}

func quit(status int, err error) {
	unix.Write(status, append([]byte{Error}, err.Error()...))
	unix.Exit(ExitCode)
}

func initStage(p *wire.Program, status, self, proc int) error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return wire.Fail("become undumpable", err)
	}
	if err := hostProc(&p.Process, proc); err != nil {
		return err
	}
	if p.Clone&unix.CLONE_NEWCGROUP != 0 {
		// The namespace's root is the cgroup that we are in when it is made.
		if err := joinCgroups(&p.Process); err != nil {
			return err
		}
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return wire.Fail("make a cgroup namespace", err)
		}
	}
	if err := names(p); err != nil {
		return err
	}
	master, slave, err := rootfs.Build(p)
	if err != nil {
		return err
	}
	if err := terminal(&p.Process, slave, true); err != nil {
		return err
	}
	if err := awaitStart(status, master); err != nil {
		return err
	}
	x, err := become(&p.Process, self, status)
	if err != nil {
		return err
	}
	resetSignals()
	return wire.Fail("exec "+x.path, x.exec.Become())
}

// awaitStart tells the shim that all is ready and waits for its word, while
// another thread waits for the kernel to let go of the old root.
func awaitStart(status, master int) error {
	left := make(chan error, 1)
	go func() { left <- rootfs.Leave() }()
	runtime.Gosched()
	var oob []byte
	if master >= 0 {
		oob = unix.UnixRights(master)
	}
	if err := unix.Sendmsg(status, []byte{Ready}, oob, nil, 0); err != nil {
		return wire.Fail("report", err)
	}
	if master >= 0 {
		unix.Close(master)
	}
	var b [1]byte
	for {
		n, err := unix.Read(status, b[:])
		if err == unix.EINTR {
			continue
		}
		if n != 1 || b[0] != Start {
			unix.Exit(ExitCode) // the shim is gone
		}
		return <-left
	}
}

// openProc opens the host's own /proc.
func openProc() (int, error) {
	fd, err := unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, wire.Fail("open the host's /proc", err)
	}
	return fd, nil
}

// hostProc does what needs the host's own /proc, and closes it.
func hostProc(p *wire.Process, proc int) error {
	defer unix.Close(proc)
	if p.HasOOM {
		err := writeAt(proc, "self/oom_score_adj", strconv.Itoa(p.OOMScoreAdj))
		// Lowering it needs a capability that a nested engine lacks.
		if err != nil && err != unix.EACCES && err != unix.EPERM {
			return wire.Fail("set oom_score_adj", err)
		}
	}
	if p.AppArmor != "" && p.AppArmor != "unconfined" {
		err := writeAt(proc, "thread-self/attr/apparmor/exec", "exec "+p.AppArmor)
		if err == unix.ENOENT || err == unix.EINVAL {
			err = writeAt(proc, "thread-self/attr/exec", "exec "+p.AppArmor)
		}
		if err != nil {
			return wire.Fail("apply AppArmor profile "+p.AppArmor, err)
		}
	}
	return nil
}

// WriteFile writes data to an existing file in one write.
func WriteFile(path, data string) error { return writeAt(unix.AT_FDCWD, path, data) }

func writeAt(dir int, path, data string) error {
	fd, err := unix.Openat(dir, path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(data))
	return err
}

// names sets host name, domain name and sysctls, the latter through a procfs
// of our own that nothing in the container can redirect.
func names(p *wire.Program) error {
	if p.Hostname != "" {
		if err := unix.Sethostname([]byte(p.Hostname)); err != nil {
			return wire.Fail("set host name", err)
		}
	}
	if p.Domainname != "" {
		if err := unix.Setdomainname([]byte(p.Domainname)); err != nil {
			return wire.Fail("set domain name", err)
		}
	}
	if len(p.Sysctls) == 0 {
		return nil
	}
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return wire.Fail("open a procfs", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return wire.Fail("make a procfs", err)
	}
	proc, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return wire.Fail("make a procfs", err)
	}
	defer unix.Close(proc)
	for _, kv := range p.Sysctls {
		if err := sysctl(proc, kv.Key, kv.Value); err != nil {
			return wire.Fail("set sysctl "+kv.Key, err)
		}
	}
	return nil
}

func sysctl(proc int, key, value string) error {
	path := "sys/" + strings.ReplaceAll(key, ".", "/")
	fd, err := unix.Openat2(proc, path, &unix.OpenHow{Flags: unix.O_WRONLY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(value))
	return err
}

// terminal makes the slave our stdio and, if control is set, our controlling
// terminal. An exec's program takes control of it itself: it would be hung up
// when this process ends.
func terminal(p *wire.Process, slave int, control bool) error {
	if slave < 0 {
		return nil
	}
	if p.Rows != 0 || p.Cols != 0 {
		_ = rootfs.SetSize(slave, p.Rows, p.Cols)
	}
	if control {
		if err := unix.IoctlSetInt(slave, unix.TIOCSCTTY, 0); err != nil {
			return wire.Fail("take the terminal", err)
		}
	}
	for i := range 3 {
		if err := unix.Dup3(slave, i, 0); err != nil {
			return wire.Fail("take the terminal", err)
		}
	}
	return unix.Close(slave)
}

// ReadAll reads a memory file from its start.
func ReadAll(fd int) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Size > 64<<20 {
		return nil, wire.ErrShort
	}
	b := make([]byte, st.Size)
	for off := 0; off < len(b); {
		n, err := unix.Pread(fd, b[off:], int64(off))
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return nil, wire.ErrShort
		}
		off += n
	}
	return b, nil
}

// Exec joins the container whose init pidfd holds and has a new process of it
// run the program. joined says that the others than those of mounts and
// processes were joined already (which a user namespace forces to be done before
// this binary was started). It does not return.
//
// Until its last step this process stays outside the container's PID
// namespace: nothing in there can see it, trace it or look into its /proc,
// whatever capabilities it has.
func Exec(status, order, pidfd, self int, joined bool) {
	unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	var p wire.Process
	b, err := ReadAll(order)
	unix.Close(order)
	if err == nil {
		err = wire.Unmarshal(b, &p)
	}
	say := func(m []byte) { unix.Write(status, m) }
	if err == nil {
		say, err = teller(status)
	}
	var pid int
	if err == nil {
		pid, err = execStage(&p, status, pidfd, self, joined)
	}
	if err != nil {
		say(append([]byte{Error}, err.Error()...))
		unix.Exit(ExitCode)
	}
	say(append([]byte{Pid}, strconv.Itoa(pid)...))
	unix.Exit(0)
}

// teller starts a thread that alone will have the socket to the shim once this
// one has closed its own: what this one then clones, in reach of the container,
// has it not even for the moment until its exec. It must be called before the
// PID namespace is joined, since threads are not born across. The function
// sends one message.
func teller(status int) (say func([]byte), err error) {
	ready, said := make(chan bool), make(chan bool)
	var b []byte
	go func() {
		runtime.LockOSThread() // never unlocked: the process ends first
		ready <- true
		<-ready
		unix.Write(status, b)
		said <- true
	}()
	<-ready
	if err := unix.Unshare(unix.CLONE_FILES); err != nil {
		return func(m []byte) { unix.Write(status, m) }, wire.Fail("unshare", err)
	}
	return func(m []byte) {
		b = m
		ready <- true
		<-said
	}, nil
}

// execStage makes the program's process and returns its pid. status serves to
// hand over a terminal's master only, and is closed.
func execStage(p *wire.Process, status, pidfd, self int, joined bool) (int, error) {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return 0, wire.Fail("become undumpable", err)
	}
	proc, err := openProc()
	if err == nil {
		err = hostProc(p, proc)
	}
	if err != nil {
		return 0, err
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return 0, wire.Fail("unshare", err)
	}
	join := unix.CLONE_NEWNS | unix.CLONE_NEWPID // not before: threads are not born across PID namespaces
	if !joined {
		join |= unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP
	}
	if err := unix.Setns(pidfd, join); err != nil {
		return 0, wire.Fail("join the container", err)
	}
	unix.Close(pidfd)
	if p.TTY {
		master, slave, err := rootfs.OpenPTY()
		if err != nil {
			return 0, wire.Fail("open a terminal", err)
		}
		if err := terminal(p, slave, false); err != nil {
			return 0, err
		}
		if err := unix.Sendmsg(status, []byte{Ready}, unix.UnixRights(master), nil, 0); err != nil {
			return 0, wire.Fail("report", err)
		}
		unix.Close(master)
	}
	x, err := become(p, self, 0)
	if err != nil {
		return 0, err
	}
	unix.Close(self)
	unix.Close(status)
	resetSignals()
	pid, err := x.exec.Child()
	if err != nil {
		return 0, wire.Fail("exec "+x.path, err)
	}
	return pid, nil
}

// A program is an executable, found and ready.
type program struct {
	path string
	exec *fork.Exec
}
