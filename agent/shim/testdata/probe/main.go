// Command probe is run inside containers by tests: it does what an attacker
// would, and says how far it came.
package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	switch os.Args[1] {
	case "caps":
		caps(os.Args[2])
	case "syscalls":
		syscalls()
	case "zombies":
		zombies()
	case "flood":
		flood()
	}
}

// caps watches every other process for capabilities beyond the allowed ones
// and for descriptors that lead out: it may trace them, so what they have it
// has.
func caps(allowed string) {
	limit, _ := strconv.ParseUint(allowed, 16, 64)
	seen, self := 0, os.Getpid()
	fmt.Println("ready")
	for end := time.Now().Add(10 * time.Minute); time.Now().Before(end); {
		if _, err := os.Stat("/tmp/stop"); err == nil {
			break
		}
		d, _ := os.Open("/proc")
		names, _ := d.Readdirnames(-1)
		d.Close()
		for _, n := range names {
			pid, err := strconv.Atoi(n)
			if err != nil || pid == self || pid == 1 {
				continue
			}
			b, err := os.ReadFile("/proc/" + n + "/status")
			if err != nil {
				continue
			}
			seen++
			for _, l := range strings.Split(string(b), "\n") {
				for _, set := range []string{"CapEff:\t", "CapPrm:\t"} {
					if v, ok := strings.CutPrefix(l, set); ok {
						if c, _ := strconv.ParseUint(v, 16, 64); c&^limit != 0 {
							fmt.Println("FOUND", n, l)
						}
					}
				}
			}
			for fd := 3; fd < 40; fd++ {
				l, err := os.Readlink(fmt.Sprintf("/proc/%s/fd/%d", n, fd))
				if err == nil && strings.HasPrefix(l, "/") && !strings.HasPrefix(l, "/dev/null") && !strings.HasPrefix(l, "/proc") && !strings.HasPrefix(l, "/memfd:") && l != "/tmp/stop" {
					fmt.Println("FOUND fd", l)
				}
			}
		}
	}
	fmt.Println("seen", seen > 0)
}

func syscalls() {
	say := func(name string, e unix.Errno) { fmt.Println(name, unix.ErrnoName(e)) }
	try := func(name string, n uintptr, a ...uintptr) {
		for len(a) < 6 {
			a = append(a, 0)
		}
		_, _, e := unix.RawSyscall6(n, a[0], a[1], a[2], a[3], a[4], a[5])
		say(name, e)
	}
	_, err := unix.Socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0)
	e, _ := err.(unix.Errno)
	say("af_alg", e)
	_, err = unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	e, _ = err.(unix.Errno)
	say("af_vsock", e)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	e, _ = err.(unix.Errno)
	say("af_inet", e)
	unix.Close(fd)
	var params [128]byte
	try("io_uring_setup", unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)))
	try("bpf", unix.SYS_BPF, 0, uintptr(unsafe.Pointer(&params)), 72)
	try("keyctl", unix.SYS_KEYCTL, 0, 0)
	try("add_key", unix.SYS_ADD_KEY)
	try("userfaultfd", unix.SYS_USERFAULTFD, 0)
	try("perf_event_open", unix.SYS_PERF_EVENT_OPEN)
	try("mount", unix.SYS_MOUNT)
	try("setns", unix.SYS_SETNS, 0, 0)
	try("unshare", unix.SYS_UNSHARE, unix.CLONE_NEWUSER)
	try("clone_newuser", unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD))
	try("clone3", unix.SYS_CLONE3, uintptr(unsafe.Pointer(&params)), 88)
	try("reboot", unix.SYS_REBOOT)
	try("swapon", unix.SYS_SWAPON)
	try("open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT)
	try("kexec_load", unix.SYS_KEXEC_LOAD)
	try("init_module", unix.SYS_INIT_MODULE)
	try("future", 1500)
	try("getpid", unix.SYS_GETPID)
}

// zombies leaves 10,000 orphans to PID 1.
func zombies() {
	for i := 0; i < 10000; i++ {
		pid, _, e := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if e != 0 {
			i--
			time.Sleep(time.Millisecond)
			continue
		}
		if pid == 0 {
			unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
			unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
		}
		unix.Wait4(int(pid), nil, 0, nil)
	}
	fmt.Println("done")
}

// flood writes 10,000 lines a second and tells the longest time that one took.
func flood() {
	worst := time.Duration(0)
	line := []byte(strings.Repeat("x", 99) + "\n")
	for range 300 {
		began := time.Now()
		for range 100 {
			os.Stdout.Write(line)
		}
		took := time.Since(began)
		worst = max(worst, took)
		time.Sleep(10*time.Millisecond - took)
	}
	fmt.Fprintln(os.Stderr, worst.Milliseconds())
}
