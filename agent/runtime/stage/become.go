//go:build linux

package stage

import (
	"errors"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"machine/agent/runtime/fork"
	"machine/agent/runtime/wire"
)

// become turns the thread into the process that p describes: working
// directory, user, capabilities, filter. Only the exec is left then.
func become(p *wire.Process, self, status int) (program, error) {
	var none program
	if err := joinCgroups(p); err != nil {
		return none, err
	}
	u, err := lookupUser(p)
	if err != nil {
		return none, err
	}
	for _, r := range p.Rlimits {
		if err := rlimit(r); err != nil {
			return none, wire.Fail("set limit "+strconv.Itoa(int(r.Resource)), err)
		}
	}
	if p.HasUmask {
		unix.Umask(int(p.Umask))
	} else {
		unix.Umask(0o022)
	}
	if err := workdir(p.Cwd, u); err != nil {
		return none, wire.Fail("chdir to cwd (\""+p.Cwd+"\") set in config.json failed", err)
	}
	ownStdio(u)
	if err := setUser(p, u); err != nil {
		return none, err
	}
	env := withHome(p.Env, u.home)
	path, err := lookPath(p.Args[0], env)
	if err != nil {
		return none, err
	}
	argv := p.Args
	if p.ExecInit {
		argv = append([]string{"docker-init", "--", path}, p.Args...)
		env = append([]string{initEnv + strconv.Itoa(status)}, env...)
		if _, err := unix.FcntlInt(uintptr(status), unix.F_SETFD, 0); err != nil {
			return none, wire.Fail("keep the status", err)
		}
	}
	x, err := fork.NewExec(path, argv, env)
	if err != nil {
		return none, wire.Fail("exec "+path, err)
	}
	if p.ExecInit {
		x.UseFD(self)
	}
	return program{path, x}, restrict(p)
}

// joinCgroups moves this thread (v1), or the process (v2), to the container's
// cgroups. It comes late, so that the stage's own few threads and pages do not
// count against tight limits; the program has not run yet.
func joinCgroups(p *wire.Process) error {
	for _, fd := range p.Tasks {
		if _, err := unix.Write(fd, []byte{'0'}); err != nil {
			return wire.Fail("join the cgroup", err)
		}
		unix.Close(fd)
	}
	p.Tasks = nil
	return nil
}

func rlimit(r wire.Rlimit) error {
	lim := [2]uint64{r.Soft, r.Hard}
	set := func() error {
		_, _, e := unix.RawSyscall6(unix.SYS_PRLIMIT64, 0, uintptr(r.Resource), uintptr(unsafe.Pointer(&lim)), 0, 0, 0)
		if e != 0 {
			return e
		}
		return nil
	}
	err := set()
	if err == unix.EPERM {
		// Without CAP_SYS_RESOURCE: as much as the host lets us.
		var old [2]uint64
		unix.RawSyscall6(unix.SYS_PRLIMIT64, 0, uintptr(r.Resource), 0, uintptr(unsafe.Pointer(&old)), 0, 0)
		lim = [2]uint64{min(r.Soft, old[1]), min(r.Hard, old[1])}
		err = set()
		if err == unix.EPERM {
			err = nil
		}
	}
	return err
}

// workdir enters the working directory, made when absent. Magic links (the
// descriptors under /proc/self/fd) are refused: one of them could lead out of
// the container.
func workdir(path string, u user) error {
	if path == "" {
		path = "/"
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &how)
	if err == unix.ENOENT {
		if err := mkdirs(path); err != nil {
			return err
		}
		fd, err = unix.Openat2(unix.AT_FDCWD, path, &how)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fchdir(fd); err != nil {
		return err
	}
	var b [unix.PathMax]byte
	n, err := unix.Getcwd(b[:])
	if err != nil {
		return err
	}
	if n == 0 || b[0] != '/' {
		return errors.New("current working directory is outside of container mount namespace root")
	}
	return nil
}

func mkdirs(path string) error {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS}
	dir, err := unix.Openat2(unix.AT_FDCWD, "/", &how)
	if err != nil {
		return err
	}
	defer func() { unix.Close(dir) }()
	for _, c := range strings.Split(path, "/") {
		if c == "" || c == "." {
			continue
		}
		next, err := unix.Openat2(dir, c, &how)
		if err == unix.ENOENT {
			if err = unix.Mkdirat(dir, c, 0o755); err == nil || err == unix.EEXIST {
				next, err = unix.Openat2(dir, c, &how)
			}
		}
		if err != nil {
			return err
		}
		unix.Close(dir)
		dir = next
	}
	return nil
}

// ownStdio gives the pipes and the terminal to the user, so that it can open
// /dev/stdout again.
func ownStdio(u user) {
	for fd := range 3 {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil || st.Uid == uint32(u.uid) {
			continue
		}
		k := st.Mode & unix.S_IFMT
		if k == unix.S_IFIFO || k == unix.S_IFCHR && unix.Major(st.Rdev) >= 136 && unix.Major(st.Rdev) <= 143 {
			_ = unix.Fchown(fd, u.uid, int(st.Gid))
		}
	}
}

// setUser drops to the user but keeps the capabilities until restrict.
func setUser(p *wire.Process, u user) error {
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return wire.Fail("keep capabilities", err)
	}
	for c := range uintptr(64) {
		if p.Caps>>c&1 == 1 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && err != unix.EINVAL {
			return wire.Fail("drop capability "+strconv.Itoa(int(c)), err)
		}
	}
	if err := setgroups(u.groups); err != nil && !(p.UserNS && err == unix.EPERM) {
		return unmapped(p, "set groups", err)
	}
	// The raw calls concern this thread only, as they should.
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(u.gid), uintptr(u.gid), uintptr(u.gid)); e != 0 {
		return unmapped(p, "set group "+strconv.Itoa(u.gid), e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(u.uid), uintptr(u.uid), uintptr(u.uid)); e != 0 {
		return unmapped(p, "set user "+strconv.Itoa(u.uid), e)
	}
	return nil
}

// unmapped says what EINVAL means for an id in a user namespace.
func unmapped(p *wire.Process, what string, err error) error {
	if p.UserNS && err == unix.EINVAL {
		return errors.New(what + ": the id is not in the map of the container's user namespace (--userns-remap)")
	}
	return wire.Fail(what, err)
}

func setgroups(groups []int) error {
	g := make([]uint32, len(groups)+1)
	for i, v := range groups {
		g[i] = uint32(v)
	}
	_, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&g[0])), 0)
	if e != 0 {
		return e
	}
	return nil
}

const capSysAdmin = 21

// restrict is the last step before the exec: filter and capabilities. Without
// no_new_privs the filter can only be set while CAP_SYS_ADMIN is there, so it
// comes before the capabilities go, else after.
func restrict(p *wire.Process) error {
	if p.NoNewPrivs {
		if err := capset(p.Caps); err != nil {
			return wire.Fail("set capabilities", err)
		}
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return wire.Fail("set no_new_privs", err)
		}
		return filter(p)
	}
	if len(p.Seccomp) > 0 {
		if err := capset(p.Caps | 1<<capSysAdmin); err != nil {
			return wire.Fail("set capabilities", err)
		}
		if err := filter(p); err != nil {
			return err
		}
	}
	if err := capset(p.Caps); err != nil {
		return wire.Fail("set capabilities", err)
	}
	return nil
}

func filter(p *wire.Process) error {
	if len(p.Seccomp) == 0 {
		return nil
	}
	prog := unix.SockFprog{Len: uint16(len(p.Seccomp) / 8), Filter: (*unix.SockFilter)(unsafe.Pointer(&p.Seccomp[0]))}
	_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(p.SeccompFlags), uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(p)
	if e != 0 {
		return wire.Fail("load the seccomp filter", e)
	}
	return nil
}

// capset sets permitted and effective; inheritable stays empty, always.
func capset(caps uint64) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	var now [2]unix.CapUserData
	if err := unix.Capget(&hdr, &now[0]); err != nil {
		return err
	}
	have := uint64(now[0].Permitted) | uint64(now[1].Permitted)<<32
	caps &= have // what a nested engine lacks it cannot give
	data[0].Permitted, data[1].Permitted = uint32(caps), uint32(caps>>32)
	data[0].Effective, data[1].Effective = uint32(caps), uint32(caps>>32)
	return unix.Capset(&hdr, &data[0])
}

func withHome(env []string, home string) []string {
	for _, e := range env {
		if strings.HasPrefix(e, "HOME=") && len(e) > 5 {
			return env
		}
	}
	out := make([]string, 0, len(env)+1)
	for _, e := range env {
		if e != "HOME=" {
			out = append(out, e)
		}
	}
	return append(out, "HOME="+home)
}

// lookPath finds the executable; its errors are those of Go's os/exec, which
// Docker's clients know.
func lookPath(file string, env []string) (string, error) {
	if strings.Contains(file, "/") {
		if err := executable(file); err != nil {
			return "", errors.New("exec: " + strconv.Quote(file) + ": " + err.Error())
		}
		return file, nil
	}
	path := ""
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	for _, dir := range strings.Split(path, ":") {
		if file == "" {
			break
		}
		if dir == "" {
			dir = "."
		}
		if p := strings.TrimRight(dir, "/") + "/" + file; executable(p) == nil {
			return p, nil
		}
	}
	return "", errors.New("exec: " + strconv.Quote(file) + ": executable file not found in $PATH")
}

func executable(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		if err == unix.EACCES {
			return err
		}
		return errors.New("stat " + path + ": " + err.Error())
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EISDIR
	}
	if st.Mode&0o111 == 0 {
		return unix.EACCES
	}
	if err := unix.Faccessat(unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS); err == unix.EACCES {
		return err
	}
	return nil
}

// resetSignals gives the program the signals' default actions and a clear
// mask.
func resetSignals() {
	for sig := uintptr(1); sig <= 64; sig++ {
		var act [4]uint64 // handler SIG_DFL, no flags
		if sig == uintptr(unix.SIGURG) || sig == uintptr(unix.SIGKILL) || sig == uintptr(unix.SIGSTOP) {
			continue // URG is the Go runtime's, and ignored by default
		}
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0)
	}
	var mask uint64
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, 2, uintptr(unsafe.Pointer(&mask)), 0, 8, 0, 0) // SIG_SETMASK
}
