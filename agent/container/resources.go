package container

import (
	"path/filepath"
	"slices"

	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// resources are cgroup limits, devices and protected paths.
func (m *Manager) resources(r *Record, s *specs.Spec) error {
	hc := r.HostConfig
	parent := hc.CgroupParent
	if parent == "" {
		parent = m.o.Defaults.CgroupParent
	}
	s.Linux.CgroupsPath = filepath.Join("/", parent, r.ID)
	res := linuxResources(&hc.Resources)
	if res.Pids == nil && m.o.Defaults.PidsLimit > 0 {
		res.Pids = &specs.LinuxPids{Limit: ptr(m.o.Defaults.PidsLimit)}
	}
	s.Linux.Resources = res
	if hc.Privileged {
		s.Linux.Devices = hostDevices()
		res.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		return nil
	}
	nodes, rules, err := devices(hc)
	if err != nil {
		return err
	}
	more, err := deviceRules(hc)
	if err != nil {
		return err
	}
	s.Linux.Devices = append(defaultDevices(), nodes...)
	res.Devices = slices.Concat(defaultDeviceRules(), rules, more)
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = hc.MaskedPaths, hc.ReadonlyPaths
	return nil
}

// linuxResources translates limits, but for devices.
func linuxResources(r *container.Resources) *specs.LinuxResources {
	out := &specs.LinuxResources{Memory: &specs.LinuxMemory{}, CPU: &specs.LinuxCPU{}, BlockIO: &specs.LinuxBlockIO{}}
	if r.Memory > 0 {
		out.Memory.Limit = &r.Memory
	}
	if r.MemorySwap != 0 {
		out.Memory.Swap = &r.MemorySwap
	}
	if r.MemoryReservation > 0 {
		out.Memory.Reservation = &r.MemoryReservation
	}
	if r.MemorySwappiness != nil && *r.MemorySwappiness >= 0 {
		out.Memory.Swappiness = ptr(uint64(*r.MemorySwappiness))
	}
	out.Memory.DisableOOMKiller = r.OomKillDisable
	if r.CPUShares > 0 {
		out.CPU.Shares = ptr(uint64(r.CPUShares))
	}
	if r.NanoCPUs > 0 {
		out.CPU.Period, out.CPU.Quota = ptr(uint64(100000)), ptr(r.NanoCPUs/10000)
	}
	if r.CPUPeriod > 0 {
		out.CPU.Period = ptr(uint64(r.CPUPeriod))
	}
	if r.CPUQuota != 0 {
		out.CPU.Quota = &r.CPUQuota
	}
	out.CPU.Cpus, out.CPU.Mems = r.CpusetCpus, r.CpusetMems
	if r.PidsLimit != nil {
		n := *r.PidsLimit
		if n <= 0 {
			n = -1
		}
		out.Pids = &specs.LinuxPids{Limit: &n}
	}
	blockIO(r, out.BlockIO)
	return out
}

func blockIO(r *container.Resources, b *specs.LinuxBlockIO) {
	if r.BlkioWeight > 0 {
		b.Weight = &r.BlkioWeight
	}
	for _, w := range r.BlkioWeightDevice {
		if _, rule, ok := device(w.Path); ok {
			d := specs.LinuxWeightDevice{Weight: ptr(w.Weight)}
			d.Major, d.Minor = *rule.Major, *rule.Minor
			b.WeightDevice = append(b.WeightDevice, d)
		}
	}
	b.ThrottleReadBpsDevice = throttle(r.BlkioDeviceReadBps)
	b.ThrottleWriteBpsDevice = throttle(r.BlkioDeviceWriteBps)
	b.ThrottleReadIOPSDevice = throttle(r.BlkioDeviceReadIOps)
	b.ThrottleWriteIOPSDevice = throttle(r.BlkioDeviceWriteIOps)
}
