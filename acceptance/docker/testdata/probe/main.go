// Command probe tries the system calls that a container must not have and
// prints for each the name of the error that it gave, or OK.
package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A try is one call with arguments that do no harm where it is allowed.
type try struct {
	name string
	nr   uintptr
	args [6]uintptr
}

const (
	afALG     = 38
	afVsock   = 40
	newUser   = 0x10000000
	newCgroup = 0x02000000
	sessKey   = ^uintptr(2) // KEY_SPEC_SESSION_KEYRING, -3
)

var tries = []try{
	{"af_alg", unix.SYS_SOCKET, [6]uintptr{afALG, unix.SOCK_SEQPACKET | unix.SOCK_CLOEXEC}},
	{"af_vsock", unix.SYS_SOCKET, [6]uintptr{afVsock, unix.SOCK_STREAM | unix.SOCK_CLOEXEC}},
	{"keyctl", unix.SYS_KEYCTL, [6]uintptr{0, sessKey}},
	{"add_key", unix.SYS_ADD_KEY, [6]uintptr{}},
	{"request_key", unix.SYS_REQUEST_KEY, [6]uintptr{}},
	{"bpf", unix.SYS_BPF, [6]uintptr{}},
	{"userfaultfd", unix.SYS_USERFAULTFD, [6]uintptr{unix.O_CLOEXEC}},
	{"io_uring_setup", unix.SYS_IO_URING_SETUP, [6]uintptr{1}},
	{"io_uring_enter", unix.SYS_IO_URING_ENTER, [6]uintptr{^uintptr(0)}},
	{"perf_event_open", unix.SYS_PERF_EVENT_OPEN, [6]uintptr{}},
	{"kexec_load", unix.SYS_KEXEC_LOAD, [6]uintptr{0, 1, 0, ^uintptr(0)}},
	{"init_module", unix.SYS_INIT_MODULE, [6]uintptr{}},
	{"finit_module", unix.SYS_FINIT_MODULE, [6]uintptr{^uintptr(0)}},
	{"delete_module", unix.SYS_DELETE_MODULE, [6]uintptr{}},
	{"open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, [6]uintptr{^uintptr(0)}},
	{"mount", unix.SYS_MOUNT, [6]uintptr{}},
	{"fsopen", unix.SYS_FSOPEN, [6]uintptr{}},
	{"open_tree", unix.SYS_OPEN_TREE, [6]uintptr{^uintptr(0), 0, 1}},
	{"move_mount", unix.SYS_MOVE_MOUNT, [6]uintptr{^uintptr(0), 0, ^uintptr(0)}},
	{"mount_setattr", unix.SYS_MOUNT_SETATTR, [6]uintptr{^uintptr(0)}},
	{"pivot_root", unix.SYS_PIVOT_ROOT, [6]uintptr{}},
	{"unshare_user", unix.SYS_UNSHARE, [6]uintptr{newUser}},
	{"unshare_cgroup", unix.SYS_UNSHARE, [6]uintptr{newCgroup}},
	{"setns", unix.SYS_SETNS, [6]uintptr{^uintptr(0)}},
	{"swapon", unix.SYS_SWAPON, [6]uintptr{}},
	{"quotactl", unix.SYS_QUOTACTL, [6]uintptr{}},
	{"reboot", unix.SYS_REBOOT, [6]uintptr{}},
	{"syslog", unix.SYS_SYSLOG, [6]uintptr{3}},
	{"lookup_dcookie", unix.SYS_LOOKUP_DCOOKIE, [6]uintptr{}},
	{"clone3", unix.SYS_CLONE3, [6]uintptr{}},
}

func main() {
	for _, t := range tries {
		_, _, errno := unix.Syscall6(t.nr, t.args[0], t.args[1], t.args[2], t.args[3], t.args[4], t.args[5])
		name := unix.ErrnoName(errno)
		if errno == 0 {
			name = "OK"
		}
		fmt.Fprintln(os.Stdout, t.name, name)
	}
}
