package cgroup

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"machine/agent/fault"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Set applies the limits of r that are given and leaves the others. It is safe
// to repeat. A limit of a controller that the host lacks is an Unavailable
// error, a value that the kernel refuses an Invalid one. Device rules are set
// at creation only.
func (g *Group) Set(r *specs.LinuxResources) error {
	if r == nil {
		return nil
	}
	s := setter{g: g}
	if g.host.V2 {
		s.v2(r)
	} else {
		s.v1(r)
	}
	return s.err
}

type setter struct {
	g   *Group
	err error
}

func (s *setter) put(controller, file, value string) {
	if s.err != nil {
		return
	}
	dir := s.g.dir(controller)
	if dir == "" {
		s.err = fault.Unavailable.Errorf("cgroup: this host has no %s controller to set %s", controller, file)
		return
	}
	err := write(dir, file, value)
	switch {
	case err == nil:
	case errors.Is(err, os.ErrNotExist):
		s.err = fault.Unavailable.Errorf("cgroup: this kernel has no %s", file)
	case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE):
		s.err = fault.Invalid.Errorf("cgroup: %s refuses %q: %w", file, value, err)
	case errors.Is(err, unix.EBUSY) && strings.HasPrefix(file, "memory."):
		s.err = fault.Conflict.Errorf("cgroup: %s cannot become %s: more is in use", file, value)
	default:
		s.err = fault.Internal.Errorf("cgroup: write %s to %s: %w", value, file, err)
	}
}

func (s *setter) i64(controller, file string, v *int64) {
	if v != nil {
		s.put(controller, file, strconv.FormatInt(*v, 10))
	}
}

func (s *setter) u64(controller, file string, v *uint64) {
	if v != nil {
		s.put(controller, file, strconv.FormatUint(*v, 10))
	}
}

func (s *setter) v1(r *specs.LinuxResources) {
	if m := r.Memory; m != nil {
		s.memoryV1(m)
	}
	if c := r.CPU; c != nil {
		if c.Shares != nil && *c.Shares != 0 {
			s.u64("cpu", "cpu.shares", c.Shares)
		}
		s.bandwidthV1(c)
		if c.RealtimePeriod != nil && *c.RealtimePeriod != 0 {
			s.u64("cpu", "cpu.rt_period_us", c.RealtimePeriod)
		}
		if c.RealtimeRuntime != nil && *c.RealtimeRuntime != 0 {
			s.i64("cpu", "cpu.rt_runtime_us", c.RealtimeRuntime)
		}
		s.cpuset(c)
	}
	if p := r.Pids; p != nil && p.Limit != nil {
		s.pids(*p.Limit)
	}
	if b := r.BlockIO; b != nil {
		s.blkioV1(b)
	}
}

// memoryV1 orders the two limits so that memory never exceeds memory+swap on
// the way.
func (s *setter) memoryV1(m *specs.LinuxMemory) {
	limit, swap := m.Limit, m.Swap
	if limit != nil && *limit == 0 {
		limit = nil
	}
	if swap != nil && *swap == 0 {
		swap = nil
	}
	if limit != nil && *limit == -1 && swap == nil {
		swap = limit
	}
	setSwap := func() {
		if swap == nil {
			return
		}
		if _, err := os.Stat(s.g.dir("memory") + "/memory.memsw.limit_in_bytes"); err != nil {
			return // no swap accounting: there is nothing to limit
		}
		s.i64("memory", "memory.memsw.limit_in_bytes", swap)
	}
	grow := false
	if limit != nil && swap != nil {
		now, _ := strconv.ParseUint(strings.TrimSpace(read(s.g.dir("memory"), "memory.memsw.limit_in_bytes")), 10, 64)
		grow = *swap == -1 || uint64(*swap) > now
	}
	if grow {
		setSwap()
	}
	s.i64("memory", "memory.limit_in_bytes", limit)
	if !grow {
		setSwap()
	}
	if m.Reservation != nil && *m.Reservation != 0 {
		s.i64("memory", "memory.soft_limit_in_bytes", m.Reservation)
	}
	if m.Swappiness != nil && *m.Swappiness <= 100 {
		s.u64("memory", "memory.swappiness", m.Swappiness)
	}
	if m.DisableOOMKiller != nil && *m.DisableOOMKiller {
		s.put("memory", "memory.oom_control", "1")
	}
}

func (s *setter) bandwidthV1(c *specs.LinuxCPU) {
	period := c.Period
	if period != nil && *period == 0 {
		period = nil
	}
	if period != nil && s.err == nil {
		// The kernel refuses a period that the quota of now does not fit.
		if dir := s.g.dir("cpu"); dir != "" && write(dir, "cpu.cfs_period_us", strconv.FormatUint(*period, 10)) == nil {
			period = nil
		}
	}
	if c.Quota != nil && *c.Quota != 0 {
		s.i64("cpu", "cpu.cfs_quota_us", c.Quota)
	}
	s.u64("cpu", "cpu.cfs_period_us", period)
	if c.Burst != nil && *c.Burst != 0 {
		s.u64("cpu", "cpu.cfs_burst_us", c.Burst)
	}
}

// cpuset checks the lists before the kernel sees them: it takes megabytes to
// expand an absurd range.
func (s *setter) cpuset(c *specs.LinuxCPU) {
	for _, e := range [2][2]string{{"cpuset.cpus", c.Cpus}, {"cpuset.mems", c.Mems}} {
		if e[1] == "" {
			continue
		}
		if err := CheckCPUList(e[1]); err != nil && s.err == nil {
			s.err = err
		}
		s.put("cpuset", e[0], e[1])
	}
}

// CheckCPUList says whether a list of CPUs or nodes ("0-3,7") is well-formed
// and within what a kernel can have; the error is Invalid.
func CheckCPUList(list string) error {
	bad := fault.Invalid.Errorf("cgroup: %q is no list of CPUs or memory nodes", list)
	if len(list) > 4096 {
		return bad
	}
	for _, part := range strings.Split(list, ",") {
		lo, hi, ranged := strings.Cut(strings.TrimSpace(part), "-")
		a, err := strconv.ParseUint(lo, 10, 13)
		if err != nil {
			return bad
		}
		if !ranged {
			continue
		}
		if b, err := strconv.ParseUint(hi, 10, 13); err != nil || b < a {
			return bad
		}
	}
	return nil
}

func (s *setter) pids(n int64) {
	switch {
	case n == 0:
	case n < 0:
		s.put("pids", "pids.max", "max")
	default:
		s.put("pids", "pids.max", strconv.FormatInt(n, 10))
	}
}

func (s *setter) blkioV1(b *specs.LinuxBlockIO) {
	if b.Weight != nil && *b.Weight != 0 {
		file := "blkio.weight"
		if _, err := os.Stat(s.g.dir("blkio") + "/" + file); err != nil {
			file = "blkio.bfq.weight"
		}
		s.put("blkio", file, strconv.Itoa(int(*b.Weight)))
	}
	for _, d := range b.WeightDevice {
		if d.Weight != nil {
			s.put("blkio", "blkio.weight_device", fmt.Sprintf("%d:%d %d", d.Major, d.Minor, *d.Weight))
		}
	}
	for file, list := range map[string][]specs.LinuxThrottleDevice{
		"blkio.throttle.read_bps_device":   b.ThrottleReadBpsDevice,
		"blkio.throttle.write_bps_device":  b.ThrottleWriteBpsDevice,
		"blkio.throttle.read_iops_device":  b.ThrottleReadIOPSDevice,
		"blkio.throttle.write_iops_device": b.ThrottleWriteIOPSDevice,
	} {
		for _, d := range list {
			s.put("blkio", file, fmt.Sprintf("%d:%d %d", d.Major, d.Minor, d.Rate))
		}
	}
}

func (s *setter) v2(r *specs.LinuxResources) {
	if m := r.Memory; m != nil {
		s.memoryV2(m)
	}
	if c := r.CPU; c != nil {
		if c.Shares != nil && *c.Shares != 0 {
			s.put("", "cpu.weight", strconv.FormatUint(weight(*c.Shares), 10))
		}
		s.bandwidthV2(c)
		s.cpuset(c)
	}
	if p := r.Pids; p != nil && p.Limit != nil {
		s.pids(*p.Limit)
	}
	if b := r.BlockIO; b != nil {
		s.ioV2(b)
	}
	for k, v := range r.Unified {
		if strings.ContainsAny(k, "/\x00") || !strings.Contains(k, ".") {
			s.err = fault.Invalid.Errorf("cgroup: %q is no file of a cgroup", k)
			return
		}
		s.put("", k, v)
	}
}

// weight maps v1's shares (2..262144) to v2's weight (1..10000).
func weight(shares uint64) uint64 {
	shares = min(max(shares, 2), 262144)
	return 1 + (shares-2)*9999/262142
}

func orMax(v int64) string {
	if v < 0 {
		return "max"
	}
	return strconv.FormatInt(v, 10)
}

func (s *setter) memoryV2(m *specs.LinuxMemory) {
	if m.Swap != nil && *m.Swap != 0 {
		swap := *m.Swap
		if swap > 0 && m.Limit != nil {
			swap = max(swap-*m.Limit, 0) // v1's figure is the sum
		}
		if _, err := os.Stat(s.g.dir("") + "/memory.swap.max"); err == nil { // else no swap is accounted for, nor to be limited
			s.put("", "memory.swap.max", orMax(swap))
		}
	}
	if m.Limit != nil && *m.Limit != 0 {
		s.put("", "memory.max", orMax(*m.Limit))
	}
	if m.Reservation != nil && *m.Reservation != 0 {
		s.put("", "memory.low", orMax(*m.Reservation))
	}
}

func (s *setter) bandwidthV2(c *specs.LinuxCPU) {
	if c.Quota == nil && c.Period == nil {
		return
	}
	quota, period := "max", uint64(100000)
	if f := strings.Fields(read(s.g.dir(""), "cpu.max")); len(f) == 2 {
		quota = f[0]
		if n, err := strconv.ParseUint(f[1], 10, 64); err == nil {
			period = n
		}
	}
	if c.Quota != nil && *c.Quota != 0 {
		quota = orMax(*c.Quota)
	}
	if c.Period != nil && *c.Period != 0 {
		period = *c.Period
	}
	s.put("", "cpu.max", quota+" "+strconv.FormatUint(period, 10))
}

func (s *setter) ioV2(b *specs.LinuxBlockIO) {
	_, err := os.Stat(s.g.dir("") + "/io.bfq.weight")
	bfq := err == nil
	switch {
	case b.Weight == nil || *b.Weight == 0:
	case bfq:
		s.put("", "io.bfq.weight", strconv.Itoa(int(*b.Weight)))
	default:
		s.put("", "io.weight", strconv.FormatUint(1+(uint64(*b.Weight)-10)*9999/990, 10))
	}
	for _, d := range b.WeightDevice { // io.weight takes none before somebody sets up iocost for the device
		if bfq && d.Weight != nil && *d.Weight != 0 {
			s.put("", "io.bfq.weight", fmt.Sprintf("%d:%d %d", d.Major, d.Minor, *d.Weight))
		}
	}
	for key, list := range map[string][]specs.LinuxThrottleDevice{
		"rbps": b.ThrottleReadBpsDevice, "wbps": b.ThrottleWriteBpsDevice,
		"riops": b.ThrottleReadIOPSDevice, "wiops": b.ThrottleWriteIOPSDevice,
	} {
		for _, d := range list {
			s.put("", "io.max", fmt.Sprintf("%d:%d %s=%d", d.Major, d.Minor, key, d.Rate))
		}
	}
}

// Freeze stops or resumes every process of the group. It waits, at most ten
// seconds, until the kernel says that it is so; a group that cannot be frozen
// by then is thawed again.
func (g *Group) Freeze() error {
	dir, file, value := g.dir("freezer"), "freezer.state", "FROZEN"
	if g.host.V2 {
		file, value = "cgroup.freeze", "1"
	}
	if dir == "" {
		return fault.Unavailable.Errorf("cgroup: this host has no freezer")
	}
	deadline := time.Now().Add(10 * time.Second)
	for wait := 50 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		// v1 may stay FREEZING while processes are born: ask again.
		if err := write(dir, file, value); err != nil {
			return fault.Internal.Errorf("freeze cgroup %s: %w", g.path, err)
		}
		if g.frozen() {
			return nil
		}
		if time.Now().After(deadline) {
			_ = g.thaw()
			return fault.Unavailable.Errorf("freeze cgroup %s: a process does not stop (in the kernel?)", g.path)
		}
		time.Sleep(wait)
	}
}

func (g *Group) frozen() bool {
	if g.host.V2 {
		return strings.Contains(read(g.dir(""), "cgroup.events"), "frozen 1")
	}
	return strings.TrimSpace(read(g.dir("freezer"), "freezer.state")) == "FROZEN"
}

// Thaw resumes every process of the group.
func (g *Group) Thaw() error {
	if err := g.thaw(); err != nil {
		return fault.Internal.Errorf("thaw cgroup %s: %w", g.path, err)
	}
	return nil
}

func (g *Group) thaw() error {
	if g.host.V2 {
		return write(g.dir(""), "cgroup.freeze", "0")
	}
	return write(g.dir("freezer"), "freezer.state", "THAWED")
}
