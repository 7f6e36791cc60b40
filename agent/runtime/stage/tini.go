//go:build linux

package stage

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"machine/agent/runtime/fork"
)

// initEnv marks the start as the minimal init; it does not reach the program.
const initEnv = "_MACHINE_INIT=1"

// IsTini reports whether the process was started as a container's minimal
// init.
func IsTini(args, env []string) bool {
	return len(args) >= 4 && args[0] == "docker-init" && len(env) > 0 && env[0] == initEnv
}

// Tini is the minimal init (docker run --init): it starts the program, passes
// signals on to it, reaps whatever is orphaned, and exits as the program did.
// It was started with all signals blocked, so that none is lost. It does not
// return.
func Tini(args, env []string) {
	x, err := fork.NewExec(args[2], args[3:], env[1:])
	if err != nil {
		unix.Exit(127)
	}
	pid, err := x.Run()
	if err != nil {
		unix.Write(2, []byte("docker-init: exec "+args[2]+": "+err.Error()+"\n"))
		unix.Exit(127)
	}
	go forward(pid)
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			unix.Exit(127)
		}
		if got != pid || ws.Stopped() || ws.Continued() {
			continue
		}
		if ws.Signaled() {
			unix.Exit(128 + int(ws.Signal()))
		}
		unix.Exit(ws.ExitStatus())
	}
}

func forward(pid int) {
	all := ^uint64(0)
	for {
		sig, _, e := unix.Syscall6(unix.SYS_RT_SIGTIMEDWAIT, uintptr(unsafe.Pointer(&all)), 0, 0, 8, 0, 0)
		if e != 0 || sig == uintptr(unix.SIGCHLD) || sig == uintptr(unix.SIGURG) {
			continue
		}
		_ = unix.Kill(pid, unix.Signal(sig))
	}
}
