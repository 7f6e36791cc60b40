//go:build linux

// Command shim is the process that stands between the agent and one container.
// It makes the container, holds its stdio, writes its log, reaps it and keeps
// its exit code, and it outlives the agent. The same binary, started with
// other arguments, is the container's set-up stages and its minimal init.
//
// It is one thread with one epoll set: there is nothing in it to lock, and it
// stays below a megabyte. It is run by the agent from a sealed memory file:
//
//	shim CONTROL SELF WARM NAME    the shim itself; ps shows the container's id in NAME's place
//	init STATUS ORDER SELF         the stage that becomes a container's init
//	warm STATUS SELF               the same, made before there is a container: by a shim whose WARM is 1
//	exec STATUS ORDER PIDFD SELF JOINED
//	docker-init -- PATH ARGS...    PID 1 of docker run --init
//
// The Go runtime must not keep the host's cgroup files open: a stage's
// descriptors are seen by the container for a moment.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0
package main

import (
	"runtime"
	"strconv"
	_ "unsafe" // for linkname: package os would cost a third of the size

	"golang.org/x/sys/unix"

	"machine/agent/runtime/stage"
)

//go:linkname runtimeArgs os.runtime_args
func runtimeArgs() []string

//go:linkname runtimeEnvs syscall.runtime_envs
func runtimeEnvs() []string

func main() {
	args := runtimeArgs()
	if env := runtimeEnvs(); stage.IsTini(args, env) {
		stage.Tini(args, env)
	}
	if len(args) < 3 {
		fatal("this program is started by the agent only")
	}
	num := func(i int) int {
		if i >= len(args) {
			fatal("missing argument")
		}
		n, err := strconv.Atoi(args[i])
		if err != nil {
			fatal("bad argument " + args[i])
		}
		return n
	}
	switch args[0] {
	case "init":
		runtime.LockOSThread()
		stage.Init(num(1), num(2), num(3))
	case "warm":
		runtime.LockOSThread()
		stage.Warm(num(1), num(2))
	case "exec":
		runtime.LockOSThread()
		stage.Exec(num(1), num(2), num(3), num(4), num(5) == 1)
	case "shim":
		if len(args) < 5 {
			fatal("missing argument")
		}
		run(num(1), num(2), num(3) == 1, args[4])
	default:
		fatal("unknown mode " + args[0])
	}
}

func fatal(msg string) {
	unix.Write(2, []byte("shim: "+msg+"\n"))
	unix.Exit(125)
}
