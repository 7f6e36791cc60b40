// Package seccomp compiles seccomp profiles to the kernel's filter programs,
// in Go alone. The result is handed to the shim as bytes.
//
// The system call's number is found by binary search; a call from an
// architecture that the profile does not name kills the process; a number
// beyond the newest call that the profile knows answers ENOSYS, so that C
// libraries fall back from calls that the profile could not know (as runc
// does).
package seccomp

import (
	"encoding/binary"
	"sort"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"machine/agent/fault"
)

// Return values of a filter (seccomp(2)).
const (
	retKillProcess = 0x80000000
	retKillThread  = 0x00000000
	retTrap        = 0x00030000
	retErrno       = 0x00050000
	retTrace       = 0x7ff00000
	retLog         = 0x7ffc0000
	retAllow       = 0x7fff0000
)

const maxInstructions = 4096 // BPF_MAXINSNS

// arch is one calling convention.
type arch struct {
	audit uint32
	calls map[string]uint32
	x32   bool
}

const x32Bit = 0x40000000

func archOf(name specs.Arch) (arch, bool) {
	switch name {
	case specs.ArchX86_64:
		return arch{unix.AUDIT_ARCH_X86_64, amd64Calls, false}, true
	case specs.ArchX32:
		return arch{unix.AUDIT_ARCH_X86_64, amd64Calls, true}, true
	case specs.ArchX86:
		return arch{unix.AUDIT_ARCH_I386, i386Calls, false}, true
	case specs.ArchAARCH64:
		return arch{unix.AUDIT_ARCH_AARCH64, arm64Calls, false}, true
	case specs.ArchARM:
		return arch{unix.AUDIT_ARCH_ARM, armCalls, false}, true
	}
	return arch{}, false
}

func (a arch) number(name string) (uint32, bool) {
	if a.x32 {
		if n, ok := x32Only[name]; ok {
			return n | x32Bit, true
		}
	}
	n, ok := a.calls[name]
	if a.x32 {
		n |= x32Bit
	}
	return n, ok
}

// Compile returns the filter as struct sock_filter[] in native (little-endian)
// order, and the flags for seccomp(2). Names that an architecture does not
// have are skipped, as libseccomp does. A malformed profile is an Invalid
// error.
func Compile(p *specs.LinuxSeccomp) (filter []byte, flags uint32, err error) {
	if p == nil {
		return nil, 0, nil
	}
	if p.ListenerPath != "" {
		return nil, 0, fault.NotImplemented.Errorf("seccomp: a profile with a listener is not supported")
	}
	for _, f := range p.Flags {
		switch f {
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case "SECCOMP_FILTER_FLAG_TSYNC":
		default:
			return nil, 0, fault.Invalid.Errorf("seccomp: unknown flag %q", f)
		}
	}
	prog, err := program(p)
	if err != nil {
		return nil, 0, err
	}
	if len(prog) > maxInstructions {
		return nil, 0, fault.Invalid.Errorf("seccomp: the profile compiles to %d instructions, the kernel takes %d", len(prog), maxInstructions)
	}
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return nil, 0, fault.Invalid.Errorf("seccomp: %w", err)
	}
	for _, i := range raw {
		filter = binary.LittleEndian.AppendUint16(filter, i.Op)
		filter = append(filter, i.Jt, i.Jf)
		filter = binary.LittleEndian.AppendUint32(filter, i.K)
	}
	return filter, flags, nil
}

func program(p *specs.LinuxSeccomp) ([]bpf.Instruction, error) {
	def, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	archs := p.Architectures
	if len(archs) == 0 {
		archs = native
	}
	trees := map[uint32][2][]bpf.Instruction{} // by audit arch: plain, x32
	var order []uint32
	for _, name := range archs {
		a, ok := archOf(name)
		if !ok {
			continue // another machine's
		}
		tree, err := a.tree(p, def)
		if err != nil {
			return nil, err
		}
		t, seen := trees[a.audit]
		if !seen {
			order = append(order, a.audit)
		}
		if a.x32 {
			t[1] = tree
		} else {
			t[0] = tree
		}
		trees[a.audit] = t
	}
	code := []bpf.Instruction{bpf.RetConstant{Val: retKillProcess}}
	for i := len(order) - 1; i >= 0; i-- {
		t := trees[order[i]]
		body := []bpf.Instruction{bpf.LoadAbsolute{Off: 0, Size: 4}}
		if order[i] == unix.AUDIT_ARCH_X86_64 {
			body = append(body, branch(x32Bit, orKill(t[0]), orKill(t[1]))...)
		} else {
			body = append(body, t[0]...)
		}
		// Not equal: over the body.
		code = append(append([]bpf.Instruction{
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: order[i], SkipTrue: 1},
			bpf.Jump{Skip: uint32(len(body))},
		}, body...), code...)
	}
	return append([]bpf.Instruction{bpf.LoadAbsolute{Off: 4, Size: 4}}, code...), nil
}

func orKill(t []bpf.Instruction) []bpf.Instruction {
	if t == nil {
		return []bpf.Instruction{bpf.RetConstant{Val: retKillProcess}}
	}
	return t
}

// branch goes to high when the accumulator is at least k, else to low.
func branch(k uint32, low, high []bpf.Instruction) []bpf.Instruction {
	var code []bpf.Instruction
	if len(low) <= 255 {
		code = []bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: k, SkipTrue: uint8(len(low))}}
	} else {
		code = []bpf.Instruction{
			bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: k, SkipFalse: 1},
			bpf.Jump{Skip: uint32(len(low))},
		}
	}
	return append(append(code, low...), high...)
}

// A rule is what one entry of a profile says of a call.
type rule struct {
	args   []specs.LinuxSeccompArg
	ret    uint32
	narrow bool
}

// intArgs are calls whose arguments the kernel cuts to 32 bits before it looks
// at them. Their conditions look at those only: an address family of 2^32+38
// would pass for "greater than 40", and then be AF_ALG.
var intArgs = map[string]bool{"socket": true, "socketpair": true}

// A span is a range of numbers, from from to the next span, with one answer.
type span struct {
	from uint32
	key  string // equal for equal bodies, to join neighbours
	body []bpf.Instruction
}

func (a arch) tree(p *specs.LinuxSeccomp, def uint32) ([]bpf.Instruction, error) {
	rules := map[uint32][]rule{}
	newest := uint32(0)
	for i := range p.Syscalls {
		s := &p.Syscalls[i]
		ret, err := action(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, err
		}
		for _, arg := range s.Args {
			if arg.Index > 5 {
				return nil, fault.Invalid.Errorf("seccomp: system calls have no argument %d", arg.Index)
			}
		}
		for _, name := range s.Names {
			n, ok := a.number(name)
			if !ok {
				continue
			}
			newest = max(newest, n)
			if ret == def {
				continue
			}
			for _, r := range split(s.Args, ret) {
				r.narrow = intArgs[name]
				rules[n] = append(rules[n], r)
			}
		}
	}
	spans, err := spansOf(rules, def)
	if err != nil {
		return nil, err
	}
	// ENOSYS beyond what the profile knows, if it refuses by errno at all.
	if def&0xffff0000 == retErrno && newest != 0 {
		last := sort.Search(len(spans), func(i int) bool { return spans[i].from > newest })
		spans = append(spans[:last], span{newest + 1, "enosys", ret(retErrno | uint32(unix.ENOSYS))})
	}
	return search(spans), nil
}

// split makes an OR of conditions on one and the same argument, as runc does;
// conditions on different arguments are an AND.
func split(args []specs.LinuxSeccompArg, ret uint32) []rule {
	seen := [6]int{}
	multiple := false
	for _, a := range args {
		seen[a.Index]++
		multiple = multiple || seen[a.Index] > 1
	}
	if !multiple {
		return []rule{{args: args, ret: ret}}
	}
	var out []rule
	for i := range args {
		out = append(out, rule{args: args[i : i+1], ret: ret})
	}
	return out
}

func spansOf(rules map[uint32][]rule, def uint32) ([]span, error) {
	nums := make([]uint32, 0, len(rules))
	for n := range rules {
		nums = append(nums, n)
	}
	sort.Slice(nums, func(i, j int) bool { return nums[i] < nums[j] })
	spans := []span{{0, "default", ret(def)}}
	add := func(s span) {
		if spans[len(spans)-1].from == s.from {
			spans = spans[:len(spans)-1]
		}
		if len(spans) > 0 && spans[len(spans)-1].key == s.key {
			return
		}
		spans = append(spans, s)
	}
	for i, n := range nums {
		body, err := bodyOf(rules[n], def)
		if err != nil {
			return nil, err
		}
		add(span{n, keyOf(body), body})
		if i+1 == len(nums) || nums[i+1] != n+1 {
			add(span{n + 1, "default", ret(def)})
		}
	}
	return spans, nil
}

func keyOf(body []bpf.Instruction) string {
	raw, err := bpf.Assemble(body)
	if err != nil {
		return ""
	}
	var b []byte
	for _, i := range raw {
		b = binary.LittleEndian.AppendUint16(b, i.Op)
		b = append(b, i.Jt, i.Jf)
		b = binary.LittleEndian.AppendUint32(b, i.K)
	}
	return string(b)
}

func search(s []span) []bpf.Instruction {
	if len(s) == 1 {
		return s[0].body
	}
	m := len(s) / 2
	return branch(s[m].from, search(s[:m]), search(s[m:]))
}

func ret(v uint32) []bpf.Instruction { return []bpf.Instruction{bpf.RetConstant{Val: v}} }

// bodyOf tries a call's rules in order; a rule without conditions decides.
func bodyOf(rules []rule, def uint32) ([]bpf.Instruction, error) {
	for _, r := range rules {
		if len(r.args) == 0 {
			return ret(r.ret), nil
		}
	}
	code := ret(def)
	for i := len(rules) - 1; i >= 0; i-- {
		block := ret(rules[i].ret)
		for j := len(rules[i].args) - 1; j >= 0; j-- {
			c, err := condition(rules[i].args[j], len(block))
			if rules[i].narrow && err == nil {
				c = lowWord(c)
			}
			if err != nil {
				return nil, err
			}
			block = append(c, block...)
		}
		code = append(block, code...)
	}
	return code, nil
}

func action(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	data := uint32(unix.EPERM)
	if errno != nil {
		if *errno > 0xffff {
			return 0, fault.Invalid.Errorf("seccomp: error number %d is out of range", *errno)
		}
		data = uint32(*errno)
	}
	switch a {
	case specs.ActAllow:
		return retAllow, nil
	case specs.ActErrno:
		return retErrno | data, nil
	case specs.ActKill, specs.ActKillThread:
		return retKillThread, nil
	case specs.ActKillProcess:
		return retKillProcess, nil
	case specs.ActTrap:
		return retTrap, nil
	case specs.ActTrace:
		return retTrace | data, nil
	case specs.ActLog:
		return retLog, nil
	}
	return 0, fault.Invalid.Errorf("seccomp: unknown action %q", a)
}

// condition compares a 64-bit argument in two halves; it falls through when it
// holds and otherwise skips the rest instructions that follow.
func condition(a specs.LinuxSeccompArg, rest int) ([]bpf.Instruction, error) {
	if rest > 200 {
		return nil, fault.Invalid.Errorf("seccomp: a rule with too many conditions")
	}
	f := uint8(rest)
	lo, hi := bpf.LoadAbsolute{Off: 16 + 8*uint32(a.Index), Size: 4}, bpf.LoadAbsolute{Off: 20 + 8*uint32(a.Index), Size: 4}
	vl, vh := uint32(a.Value), uint32(a.Value>>32)
	jump := func(c bpf.JumpTest, v uint32, t, f uint8) bpf.Instruction {
		return bpf.JumpIf{Cond: c, Val: v, SkipTrue: t, SkipFalse: f}
	}
	switch a.Op {
	case specs.OpEqualTo:
		return []bpf.Instruction{hi, jump(bpf.JumpEqual, vh, 0, f+2), lo, jump(bpf.JumpEqual, vl, 0, f)}, nil
	case specs.OpNotEqual:
		return []bpf.Instruction{hi, jump(bpf.JumpEqual, vh, 0, 2), lo, jump(bpf.JumpEqual, vl, f, 0)}, nil
	case specs.OpGreaterThan, specs.OpGreaterEqual:
		c := bpf.JumpGreaterThan
		if a.Op == specs.OpGreaterEqual {
			c = bpf.JumpGreaterOrEqual
		}
		return []bpf.Instruction{hi, jump(bpf.JumpGreaterThan, vh, 3, 0), jump(bpf.JumpEqual, vh, 0, f+2), lo, jump(c, vl, 0, f)}, nil
	case specs.OpLessThan, specs.OpLessEqual:
		c := bpf.JumpGreaterOrEqual // less: not at least
		if a.Op == specs.OpLessEqual {
			c = bpf.JumpGreaterThan
		}
		return []bpf.Instruction{hi, jump(bpf.JumpGreaterThan, vh, f+3, 0), jump(bpf.JumpEqual, vh, 0, 2), lo, jump(c, vl, f, 0)}, nil
	case specs.OpMaskedEqual:
		dl, dh := uint32(a.ValueTwo), uint32(a.ValueTwo>>32)
		and := func(v uint32) bpf.Instruction { return bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: v} }
		return []bpf.Instruction{hi, and(vh), jump(bpf.JumpEqual, dh, 0, f+3), lo, and(vl), jump(bpf.JumpEqual, dl, 0, f)}, nil
	}
	return nil, fault.Invalid.Errorf("seccomp: unknown comparison %q", a.Op)
}

// lowWord leaves of a condition what concerns the low half: its last
// instructions, from the last load on.
func lowWord(c []bpf.Instruction) []bpf.Instruction {
	for i := len(c) - 1; i > 0; i-- {
		if _, ok := c[i].(bpf.LoadAbsolute); ok {
			return c[i:]
		}
	}
	return c
}
