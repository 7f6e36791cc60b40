package seccomp

import (
	"encoding/binary"
	"testing"

	mobyseccomp "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// A call is a system call as a filter sees it.
type call struct {
	arch uint32
	nr   uint32
	args [6]uint64
}

// ask runs the filter on a call. The virtual machine reads big-endian words.
func ask(t *testing.T, p *specs.LinuxSeccomp, c call) uint32 {
	t.Helper()
	prog, err := program(p)
	if err != nil {
		t.Fatal(err)
	}
	vm, err := bpf.NewVM(prog)
	if err != nil {
		t.Fatal(err)
	}
	data := binary.BigEndian.AppendUint32(nil, c.nr)
	data = binary.BigEndian.AppendUint32(data, c.arch)
	data = append(data, make([]byte, 8)...)
	for _, a := range c.args {
		data = binary.BigEndian.AppendUint32(data, uint32(a))
		data = binary.BigEndian.AppendUint32(data, uint32(a>>32))
	}
	v, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(v)
}

const (
	eperm  = retErrno | uint32(unix.EPERM)
	enosys = retErrno | uint32(unix.ENOSYS)
	amd64  = uint32(unix.AUDIT_ARCH_X86_64)
	i386   = uint32(unix.AUDIT_ARCH_I386)
)

func profile(t testing.TB, caps ...string) *specs.LinuxSeccomp {
	t.Helper()
	p, err := mobyseccomp.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}})
	if err != nil {
		t.Fatal(err)
	}
	p.Architectures = []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
	return p
}

func TestDefaultProfile(t *testing.T) {
	p := profile(t)
	n := func(name string) uint32 { return amd64Calls[name] }
	for _, c := range []struct {
		name string
		call call
		want uint32
	}{
		{"read", call{amd64, n("read"), [6]uint64{}}, retAllow},
		{"read on i386", call{i386, 3, [6]uint64{}}, retAllow},
		{"read on x32", call{amd64, x32Bit | 0, [6]uint64{}}, retAllow},
		{"ioctl on x32", call{amd64, x32Bit | 514, [6]uint64{}}, retAllow},
		{"another machine", call{unix.AUDIT_ARCH_AARCH64, 63, [6]uint64{}}, retKillProcess},
		{"mount", call{amd64, n("mount"), [6]uint64{}}, eperm},
		{"bpf", call{amd64, n("bpf"), [6]uint64{}}, eperm},
		{"socket AF_INET", call{amd64, n("socket"), [6]uint64{2}}, retAllow},
		{"socket AF_ALG", call{amd64, n("socket"), [6]uint64{38}}, eperm},
		{"socket AF_VSOCK", call{amd64, n("socket"), [6]uint64{40}}, eperm},
		{"socket AF_VSOCK, high word", call{amd64, n("socket"), [6]uint64{1<<32 | 40}}, eperm},
		{"socket AF_ALG, high word", call{amd64, n("socket"), [6]uint64{1<<32 | 38}}, eperm},
		{"socket AF_INET, high word", call{amd64, n("socket"), [6]uint64{1<<32 | 2}}, retAllow},
		{"clone", call{amd64, n("clone"), [6]uint64{uint64(unix.SIGCHLD)}}, retAllow},
		{"clone NEWUSER", call{amd64, n("clone"), [6]uint64{unix.CLONE_NEWUSER}}, eperm},
		{"clone3", call{amd64, n("clone3"), [6]uint64{}}, enosys},
		{"personality 0", call{amd64, n("personality"), [6]uint64{0}}, retAllow},
		{"personality 1", call{amd64, n("personality"), [6]uint64{1}}, eperm},
		{"personality query", call{amd64, n("personality"), [6]uint64{0xffffffff}}, retAllow},
		{"a call of the future", call{amd64, 900, [6]uint64{}}, enosys},
		{"on i386", call{i386, 900, [6]uint64{}}, enosys},
	} {
		if got := ask(t, p, c.call); got != c.want {
			t.Errorf("%s: got %#x, want %#x", c.name, got, c.want)
		}
	}
	admin := profile(t, "CAP_SYS_ADMIN")
	if got := ask(t, admin, call{amd64, n("mount"), [6]uint64{}}); got != retAllow {
		t.Errorf("mount with CAP_SYS_ADMIN: got %#x", got)
	}
}

// The filter says of every call what reading the profile from top to bottom
// says.
func TestAgainstProfile(t *testing.T) {
	p := profile(t)
	prog, err := program(p)
	if err != nil {
		t.Fatal(err)
	}
	if len(prog) > 1500 {
		t.Errorf("%d instructions", len(prog))
	}
	plain := map[string]bool{}
	withArgs := map[string]bool{}
	other := map[string]bool{}
	for _, s := range p.Syscalls {
		for _, n := range s.Names {
			switch {
			case s.Action != specs.ActAllow:
				other[n] = true
			case len(s.Args) == 0:
				plain[n] = true
			default:
				withArgs[n] = true
			}
		}
	}
	for name, nr := range amd64Calls {
		if withArgs[name] || other[name] {
			continue
		}
		got := ask(t, p, call{arch: amd64, nr: nr})
		if want := plain[name]; (got == retAllow) != want {
			t.Errorf("%s (%d): got %#x, allowed %v", name, nr, got, want)
		}
	}
}

func TestComparisons(t *testing.T) {
	const big = 5<<32 | 7
	for _, c := range []struct {
		op       specs.LinuxSeccompOperator
		value    uint64
		two      uint64
		yes, not []uint64
	}{
		{specs.OpEqualTo, big, 0, []uint64{big}, []uint64{7, 5 << 32, big + 1, 0}},
		{specs.OpNotEqual, big, 0, []uint64{7, 5 << 32, big + 1, 0}, []uint64{big}},
		{specs.OpGreaterThan, big, 0, []uint64{big + 1, 6 << 32}, []uint64{big, 7, 8, 5 << 32}},
		{specs.OpGreaterEqual, big, 0, []uint64{big, big + 1, 6 << 32}, []uint64{big - 1, 8}},
		{specs.OpLessThan, big, 0, []uint64{big - 1, 8, 4<<32 | 9}, []uint64{big, big + 1, 6 << 32}},
		{specs.OpLessEqual, big, 0, []uint64{big, big - 1, 8}, []uint64{big + 1, 6 << 32}},
		{specs.OpMaskedEqual, 0xf0000000f, 0x300000005, []uint64{0x300000005, 0x1300000015}, []uint64{5, 0x300000004, 0x200000005}},
	} {
		p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86_64}, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{
				{Index: 3, Value: c.value, ValueTwo: c.two, Op: c.op}, {Index: 0, Value: 1, Op: specs.OpEqualTo}}}}}
		for want, values := range map[uint32][]uint64{retAllow: c.yes, eperm: c.not} {
			for _, v := range values {
				if got := ask(t, p, call{amd64, 0, [6]uint64{1, 0, 0, v}}); got != want {
					t.Errorf("%s %#x of %#x: got %#x, want %#x", c.op, c.value, v, got, want)
				}
			}
		}
		if got := ask(t, p, call{amd64, 0, [6]uint64{2, 0, 0, c.yes[0]}}); got != eperm {
			t.Errorf("%s: the other condition was not looked at", c.op)
		}
	}
}

func TestRefusedProfiles(t *testing.T) {
	for _, p := range []*specs.LinuxSeccomp{
		{DefaultAction: "WHAT"},
		{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"X"}},
		{DefaultAction: specs.ActAllow, ListenerPath: "/x"},
		{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}}},
		{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Op: "X"}}}}},
	} {
		if _, _, err := Compile(p); err == nil {
			t.Errorf("%+v was taken", p)
		}
	}
}

func TestCache(t *testing.T) {
	var c Cache
	p := profile(t)
	a, _, err := c.Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	b, _, _ := c.Compile(profile(t))
	if &a[0] != &b[0] {
		t.Error("compiled twice")
	}
	p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"mount"}, Action: specs.ActAllow})
	if d, _, _ := c.Compile(p); string(d) == string(a) {
		t.Error("a changed profile got the old filter")
	}
}

func BenchmarkCompile(b *testing.B) {
	p := profile(b)
	for b.Loop() {
		Compile(p)
	}
}

func BenchmarkCached(b *testing.B) {
	p := profile(b)
	var c Cache
	for b.Loop() {
		c.Compile(p)
	}
}
