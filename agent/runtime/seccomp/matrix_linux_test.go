package seccomp

import (
	"encoding/binary"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
)

// matrixCaps are the capabilities that the profile knows of, and some that it
// does not.
var matrixCaps = strings.Fields("CAP_AUDIT_WRITE CAP_BPF CAP_CHECKPOINT_RESTORE CAP_CHOWN CAP_DAC_READ_SEARCH CAP_IPC_LOCK CAP_KILL CAP_MKNOD CAP_NET_ADMIN " +
	"CAP_NET_RAW CAP_PERFMON CAP_SETUID CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_CHROOT CAP_SYS_MODULE CAP_SYS_NICE CAP_SYS_PACCT CAP_SYS_PTRACE CAP_SYS_RAWIO CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_SYSLOG")

// allowed are the calls that a container with caps may make, with arguments
// of zero; "name(n)" is the same with a first argument of n.
func allowed(t *testing.T, caps ...string) (names []string) {
	t.Helper()
	prog, err := program(profile(t, caps...))
	if err != nil {
		t.Fatal(err)
	}
	vm, err := bpf.NewVM(prog)
	if err != nil {
		t.Fatal(err)
	}
	may := func(nr uint32, arg uint64) bool {
		data := binary.BigEndian.AppendUint32(nil, nr)
		data = binary.BigEndian.AppendUint32(data, amd64)
		data = append(data, make([]byte, 8+6*8)...)
		binary.BigEndian.PutUint32(data[16:], uint32(arg))
		binary.BigEndian.PutUint32(data[20:], uint32(arg>>32))
		v, err := vm.Run(data)
		if err != nil {
			t.Fatal(err)
		}
		return uint32(v) == retAllow
	}
	for _, name := range slices.Sorted(maps.Keys(amd64Calls)) {
		if may(amd64Calls[name], 0) {
			names = append(names, name)
		}
	}
	for _, more := range []struct {
		name, as string
		arg      uint64
	}{{"socket", "socket(AF_ALG)", 38}, {"socket", "socket(AF_VSOCK)", 40}, {"clone", "clone(NEWUSER)", 0x10000000}, {"clone", "clone(NEWNS)", 0x20000}, {"unshare", "unshare(NEWUSER)", 0x10000000}} {
		if may(amd64Calls[more.name], more.arg) {
			names = append(names, more.as)
		}
	}
	return names
}

// TestS13Matrix: what each capability opens of all system calls is what it
// was: a new version of the profile, or of our compiler, cannot open one
// unseen. GOLDEN=write records a change that is meant.
func TestS13Matrix(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the profile's rules for this machine are others")
	}
	base := allowed(t)
	var b strings.Builder
	b.WriteString("none: " + strings.Join(base, " ") + "\n")
	for _, c := range matrixCaps {
		var more []string
		with := allowed(t, c)
		for _, n := range with {
			if !slices.Contains(base, n) {
				more = append(more, n)
			}
		}
		for _, n := range base {
			if !slices.Contains(with, n) {
				more = append(more, "-"+n)
			}
		}
		b.WriteString(strings.TrimSpace(c+": "+strings.Join(more, " ")) + "\n")
	}
	golden := filepath.Join("testdata", "matrix.txt")
	if os.Getenv("GOLDEN") == "write" {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(b.String(), "\n")
	for i, line := range strings.Split(string(want), "\n") {
		if i < len(got) && got[i] != line {
			t.Errorf("got  %s\nwant %s", got[i], line)
		}
	}
	for _, never := range []string{"io_uring_setup", "userfaultfd", "keyctl", "add_key", "request_key", "socket(AF_ALG)", "bpf", "mount", "kexec_load"} {
		if slices.Contains(base, never) {
			t.Errorf("%s is open to everybody", never)
		}
	}
}
