//go:build linux

package stage

import (
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"machine/agent/runtime/fork"
)

// initEnv marks the start as the minimal init, and is followed by the number
// of the descriptor that tells the shim when that can take signals; it does
// not reach the program.
const initEnv = "_MACHINE_INIT="

// IsTini reports whether the process was started as a container's minimal
// init.
func IsTini(args, env []string) bool {
	return len(args) >= 4 && args[0] == "docker-init" && len(env) > 0 && strings.HasPrefix(env[0], initEnv)
}

// Tini is the minimal init (docker run --init): it starts the program, passes
// signals on to it, reaps whatever is orphaned, and exits as the program did.
// It does not return.
func Tini(args, env []string) {
	name := []byte("docker-init\x00")
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0)
	catch()
	// Only now is the container started: process 1 would lose what is sent
	// before it catches it.
	if status, err := strconv.Atoi(env[0][len(initEnv):]); err == nil && status > 2 {
		unix.Close(status)
	}
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

// What package os/signal does with the runtime, without package os.

//go:linkname signalRecv os/signal.signal_recv
func signalRecv() uint32

//go:linkname signalEnable os/signal.signal_enable
func signalEnable(sig uint32)

// local are the signals that concern this process itself.
var local = map[unix.Signal]bool{unix.SIGKILL: true, unix.SIGSTOP: true, unix.SIGCHLD: true, unix.SIGURG: true, unix.SIGPROF: true,
	unix.SIGSEGV: true, unix.SIGBUS: true, unix.SIGFPE: true, unix.SIGILL: true, unix.SIGTRAP: true, 32: true, 33: true, 34: true}

func catch() {
	for sig := range unix.Signal(65) {
		if sig > 0 && !local[sig] {
			signalEnable(uint32(sig))
		}
	}
}

func forward(pid int) {
	for {
		_ = unix.Kill(pid, unix.Signal(signalRecv()))
	}
}
