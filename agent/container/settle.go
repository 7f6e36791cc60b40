package container

import (
	"cmp"
	"fmt"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"machine/agent/fault"
)

// minMemory is the least that a container may be limited to, as Docker has it.
const minMemory = 6 << 20

// modes fills in the namespaces that were not chosen. A privileged container
// sees the host's cgroups where they are version 1.
func (d *Defaults) modes(hc *container.HostConfig) {
	if hc.IpcMode == "" {
		hc.IpcMode = container.IpcMode(cmp.Or(d.IPCMode, "private"))
	}
	if hc.CgroupnsMode != "" {
		return
	}
	switch {
	case d.CgroupV2:
		hc.CgroupnsMode = container.CgroupnsMode(cmp.Or(d.CgroupnsMode, "private"))
	case hc.Privileged:
		hc.CgroupnsMode = "host"
	default:
		hc.CgroupnsMode = container.CgroupnsMode(cmp.Or(d.CgroupnsMode, "host"))
	}
}

// settleHost fills in the defaults of a host config and checks it.
func (m *Manager) settleHost(hc *container.HostConfig) (warn []string, err error) {
	d := m.o.Defaults
	if err := m.settleLog(hc); err != nil {
		return nil, err
	}
	if hc.ShmSize == 0 {
		hc.ShmSize = d.ShmSize
	}
	if hc.ShmSize < 0 {
		return nil, fault.Invalid.Errorf("SHM size can not be less than 0")
	}
	if hc.OomScoreAdj < -1000 || hc.OomScoreAdj > 1000 {
		return nil, fault.Invalid.Errorf("Invalid value %d, range for oom score adj is [-1000, 1000]", hc.OomScoreAdj)
	}
	if hc.Runtime == "" {
		hc.Runtime = "runc"
	}
	if hc.Runtime != "runc" && hc.Runtime != "io.containerd.runc.v2" {
		return nil, fault.Invalid.Errorf("unknown or invalid runtime name: %s", hc.Runtime)
	}
	d.modes(hc)
	if hc.MaskedPaths == nil && !hc.Privileged {
		hc.MaskedPaths = maskedPaths
	}
	if hc.ReadonlyPaths == nil && !hc.Privileged {
		hc.ReadonlyPaths = readonlyPaths
	}
	if len(hc.StorageOpt) > 0 {
		return nil, fault.Invalid.Errorf("--storage-opt is supported only for overlay over xfs with 'pquota' mount option")
	}
	if err := m.checkLinks(hc); err != nil {
		return nil, err
	}
	if err := m.settleModes(hc); err != nil {
		return nil, err
	}
	if err := checkPolicy(hc); err != nil {
		return nil, err
	}
	if err := checkResources(&hc.Resources); err != nil {
		return nil, err
	}
	if d.CgroupV2 {
		warn = append(warn, discardV1(&hc.Resources)...)
	}
	w, err := checkSecurity(hc)
	if err != nil {
		return nil, err
	}
	return append(warn, w...), checkPorts(hc)
}

// settleLog gives the container the engine's log driver when it names none.
func (m *Manager) settleLog(hc *container.HostConfig) error {
	d := m.o.Defaults.LogConfig
	if hc.LogConfig.Type == "" {
		hc.LogConfig.Type = d.Type
		if hc.LogConfig.Config == nil {
			hc.LogConfig.Config = d.Config
		}
	}
	if hc.LogConfig.Config == nil {
		hc.LogConfig.Config = map[string]string{}
	}
	_, err := logConfig("", hc.LogConfig, nil)
	return err
}

// settleModes checks the namespace modes and turns container names to ids.
func (m *Manager) settleModes(hc *container.HostConfig) error {
	if other, ok := strings.CutPrefix(string(hc.PidMode), "container:"); ok {
		c, err := m.find(other)
		if err != nil {
			return fault.Invalid.Errorf("PID namespace: %w", err)
		}
		hc.PidMode = container.PidMode("container:" + c.id)
	} else if hc.PidMode != "" && hc.PidMode != "host" && hc.PidMode != "private" {
		return fault.Invalid.Errorf("invalid PID mode: %s", hc.PidMode)
	}
	if other, ok := strings.CutPrefix(string(hc.IpcMode), "container:"); ok {
		c, err := m.find(other)
		if err != nil {
			return fault.Invalid.Errorf("IPC namespace: %w", err)
		}
		hc.IpcMode = container.IpcMode("container:" + c.id)
	} else if !hc.IpcMode.Valid() {
		return fault.Invalid.Errorf("invalid IPC mode: %s", hc.IpcMode)
	}
	if !hc.UTSMode.Valid() {
		return fault.Invalid.Errorf("invalid UTS mode: %s", hc.UTSMode)
	}
	if !hc.CgroupnsMode.Valid() {
		return fault.Invalid.Errorf("invalid cgroup namespace mode: %v", hc.CgroupnsMode)
	}
	if !hc.UsernsMode.Valid() {
		return fault.Invalid.Errorf("invalid user namespace mode: %s", hc.UsernsMode)
	}
	return checkUserns(m.remap(hc), hc)
}

// checkPolicy refuses restart policies that mean nothing.
func checkPolicy(hc *container.HostConfig) error {
	p := hc.RestartPolicy
	switch p.Name {
	case "", "no", "always", "unless-stopped":
		if p.MaximumRetryCount != 0 {
			return fault.Invalid.Errorf("invalid restart policy: maximum retry count can only be used with 'on-failure'")
		}
	case "on-failure":
		if p.MaximumRetryCount < 0 {
			return fault.Invalid.Errorf("invalid restart policy: maximum retry count cannot be negative")
		}
	default:
		return fault.Invalid.Errorf("invalid restart policy: unknown policy '%s'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'", p.Name)
	}
	if hc.AutoRemove && p.Name != "" && p.Name != "no" {
		return fault.Invalid.Errorf("can't create 'AutoRemove' container with restart policy")
	}
	return nil
}

// checkResources refuses limits that the kernel would refuse later, or that
// are likely mistakes (moby's verifyPlatformContainerResources).
func checkResources(r *container.Resources) error {
	if r.Memory < 0 || (r.Memory > 0 && r.Memory < minMemory) {
		return fault.Invalid.Errorf("minimum memory limit allowed is 6MB")
	}
	if r.MemorySwap < -1 {
		return fault.Invalid.Errorf("invalid memory swap %d: -1 is unlimited", r.MemorySwap)
	}
	if r.Memory > 0 && r.MemorySwap > 0 && r.MemorySwap < r.Memory {
		return fault.Invalid.Errorf("minimum memoryswap limit should be larger than memory limit, see usage")
	}
	if r.Memory == 0 && r.MemorySwap > 0 {
		return fault.Invalid.Errorf("you should always set the Memory limit when using Memoryswap limit, see usage")
	}
	if r.Memory > 0 && r.MemorySwap == 0 {
		r.MemorySwap = 2 * r.Memory
	}
	if r.MemoryReservation > 0 && r.Memory > 0 && r.Memory < r.MemoryReservation {
		return fault.Invalid.Errorf("minimum memory limit can not be less than memory reservation limit, see usage")
	}
	if p := r.PidsLimit; p != nil && *p == 0 { // likewise: the engine's default
		r.PidsLimit = nil
	}
	if s := r.MemorySwappiness; s != nil && *s == -1 { // the client's way to say nothing
		r.MemorySwappiness = nil
	}
	if r.OomKillDisable == nil {
		r.OomKillDisable = new(bool)
	}
	if s := r.MemorySwappiness; s != nil && (*s < -1 || *s > 100) {
		return fault.Invalid.Errorf("invalid value: %d, valid memory swappiness range is 0-100", *s)
	}
	if r.NanoCPUs > 0 && (r.CPUPeriod > 0 || r.CPUQuota > 0) {
		return fault.Invalid.Errorf("conflicting options: Nano CPUs and CPU period or quota cannot both be set")
	}
	if r.NanoCPUs < 0 || r.NanoCPUs > int64(runtime.NumCPU())*1e9 {
		return fault.Invalid.Errorf("range of CPUs is from 0.01 to %d.00, as there are only %d CPUs available", runtime.NumCPU(), runtime.NumCPU())
	}
	if r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1000000) {
		return fault.Invalid.Errorf("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	}
	if r.CPUQuota > 0 && r.CPUQuota < 1000 {
		return fault.Invalid.Errorf("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	}
	for what, set := range map[string]string{"CPUs": r.CpusetCpus, "memory nodes": r.CpusetMems} {
		if err := checkCpuset(set); err != nil {
			return fault.Invalid.Errorf("invalid value %s for cpuset %s: %w", set, what, err)
		}
	}
	if r.BlkioWeight > 0 && (r.BlkioWeight < 10 || r.BlkioWeight > 1000) {
		return fault.Invalid.Errorf("range of blkio weight is from 10 to 1000")
	}
	if len(r.DeviceRequests) > 0 {
		q := r.DeviceRequests[0]
		return fault.Invalid.Errorf("could not select device driver %q with capabilities: %v: GPUs are not supported by this engine", q.Driver, q.Capabilities)
	}
	return checkUlimits(r.Ulimits)
}

// discardV1 drops what cgroup v2 has no counterpart of, with Docker's warnings.
func discardV1(r *container.Resources) (warn []string) {
	if r.OomKillDisable != nil && *r.OomKillDisable {
		warn = append(warn, "Your kernel does not support OomKillDisable. OomKillDisable discarded.")
	}
	r.OomKillDisable = nil
	if r.MemorySwappiness != nil {
		r.MemorySwappiness = nil
		warn = append(warn, "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.")
	}
	return warn
}

func checkUlimits(list []*container.Ulimit) error {
	for _, u := range list {
		if u == nil || rlimitTypes[u.Name] == "" {
			return fault.Invalid.Errorf("invalid ulimit: unknown type")
		}
		if u.Hard != -1 && (u.Soft > u.Hard || u.Soft == -1) {
			return fault.Invalid.Errorf("invalid ulimit %s: soft limit %d must not be above the hard limit %d", u.Name, u.Soft, u.Hard)
		}
	}
	return nil
}

// checkCpuset parses "0-2,4" with bounded numbers (CVE-2018-20699).
func checkCpuset(s string) error {
	if s == "" {
		return nil
	}
	const most = 8192
	for part := range strings.SplitSeq(s, ",") {
		lo, hi, isRange := strings.Cut(part, "-")
		a, err := strconv.ParseUint(lo, 10, 32)
		if err != nil {
			return err
		}
		b := a
		if isRange {
			if b, err = strconv.ParseUint(hi, 10, 32); err != nil {
				return err
			}
		}
		if b < a || b >= most {
			return fmt.Errorf("%q is out of range", part)
		}
	}
	return nil
}

func checkPorts(hc *container.HostConfig) error {
	for port, bs := range hc.PortBindings {
		if !port.IsValid() {
			return fault.Invalid.Errorf("invalid port specification: %q", port.String())
		}
		switch port.Proto() {
		case network.TCP, network.UDP, network.SCTP:
		default:
			return fault.Invalid.Errorf("invalid port specification: unknown protocol in %q", port.String())
		}
		for _, b := range bs {
			if b.HostPort == "" {
				continue
			}
			lo, hi, isRange := strings.Cut(b.HostPort, "-")
			a, err := strconv.ParseUint(lo, 10, 16)
			z := a
			if err == nil && isRange {
				z, err = strconv.ParseUint(hi, 10, 16)
			}
			if err != nil || z < a {
				return fault.Invalid.Errorf("invalid port specification: %q", b.HostPort)
			}
		}
	}
	return nil
}

// mustAbs cleans an absolute path of a container.
func mustAbs(p string) (string, error) {
	if !filepath.IsAbs(p) || strings.ContainsRune(p, 0) {
		return "", fault.Invalid.Errorf("invalid mount path: '%s' mount path must be absolute", p)
	}
	c := filepath.Clean(p)
	if c == "/" {
		return "", fault.Invalid.Errorf("invalid specification: destination can't be '/'")
	}
	return c, nil
}
