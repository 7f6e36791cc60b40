package agent

import (
	"bytes"
	"cmp"
	"context"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"golang.org/x/sys/unix"

	"machine/agent/api"
)

// What this build is; set by the linker.
var (
	Version   = "0.1.0-dev"
	GitCommit = "HEAD"
	BuildTime = ""
)

// Info answers docker info.
func (a *Agent) Info(ctx context.Context) *system.Info {
	c, proxy := a.now.Load(), a.c.proxies()
	running, paused, stopped := a.containers.Counts()
	var u unix.Utsname
	unix.Uname(&u)
	in := &system.Info{
		ID: a.id, Containers: running + paused + stopped, ContainersRunning: running, ContainersPaused: paused, ContainersStopped: stopped,
		Images: a.images.Count(), Driver: "overlay2",
		DriverStatus: [][2]string{{"Backing Filesystem", a.backing}, {"Supports d_type", "true"}, {"Using metacopy", "false"}, {"Native Overlay Diff", "true"}, {"userxattr", "false"}},
		Plugins:      system.PluginsInfo{Volume: []string{"local"}, Network: []string{"bridge", "host", "ipvlan", "macvlan", "null"}, Log: []string{"json-file", "local"}},
		MemoryLimit:  true, SwapLimit: a.swapLimit, CPUCfsPeriod: true, CPUCfsQuota: true, CPUShares: true, CPUSet: true, PidsLimit: true,
		OomKillDisable: !a.cgroupV2, IPv4Forwarding: readOne("/proc/sys/net/ipv4/ip_forward"),
		Debug: c.Debug, NFd: countFDs(), NGoroutines: runtime.NumGoroutine(), SystemTime: time.Now().Format(time.RFC3339Nano),
		LoggingDriver: c.LogDriver, CgroupDriver: "cgroupfs", CgroupVersion: map[bool]string{true: "2", false: "1"}[a.cgroupV2],
		NEventsListener: a.events.Listeners(), KernelVersion: unix.ByteSliceToString(u.Release[:]), OperatingSystem: osName(), OSVersion: osRelease("VERSION_ID"),
		OSType: "linux", Architecture: unix.ByteSliceToString(u.Machine[:]), IndexServerAddress: "https://index.docker.io/v1/",
		RegistryConfig: a.registryConfig(), NCPU: runtime.NumCPU(), MemTotal: memTotal(), GenericResources: nil,
		DockerRootDir: c.DataRoot, HTTPProxy: masked(proxy.HTTPProxy), HTTPSProxy: masked(proxy.HTTPSProxy), NoProxy: proxy.NoProxy, Name: hostname(), Labels: c.Labels,
		ServerVersion: Version, Runtimes: map[string]system.RuntimeWithStatus{"runc": {Runtime: system.Runtime{Path: "machine-agent"}}, "io.containerd.runc.v2": {Runtime: system.Runtime{Path: "machine-agent"}}},
		DefaultRuntime: "runc", Swarm: swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive}, LiveRestoreEnabled: true, InitBinary: "machine-shim",
		ContainerdCommit: system.Commit{ID: "none"}, RuncCommit: system.Commit{ID: "machine-" + GitCommit}, InitCommit: system.Commit{ID: "machine-" + GitCommit},
		SecurityOptions: a.securityOptions(), FirewallBackend: &system.FirewallInfo{Driver: "nftables"}, CDISpecDirs: []string{}, Warnings: []string{},
	}
	if in.Labels == nil {
		in.Labels = []string{}
	}
	for _, h := range c.Hosts {
		if strings.HasPrefix(h, "tcp://") && !c.TLSVerify {
			in.Warnings = append(in.Warnings, "[DEPRECATION NOTICE]: API is accessible on "+h+" without TLS verification: whoever can connect is root on this host.")
		}
	}
	return in
}

func (a *Agent) securityOptions() []string {
	out := []string{"name=seccomp,profile=" + cmp.Or(a.c.SeccompProfile, "builtin")}
	if a.armor.Default {
		out = append([]string{"name=apparmor"}, out...)
	}
	if a.cgroupV2 {
		out = append(out, "name=cgroupns")
	}
	if a.remap != nil {
		out = append(out, "name=userns")
	}
	if a.c.NoNewPrivileges {
		out = append(out, "name=no-new-privileges")
	}
	return out
}

func (a *Agent) registryConfig() *registry.ServiceConfig {
	c := a.now.Load()
	rc := &registry.ServiceConfig{
		InsecureRegistryCIDRs: []netip.Prefix{netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("127.0.0.0/8")},
		Mirrors:               c.RegistryMirrors,
		IndexConfigs:          map[string]*registry.IndexInfo{"docker.io": {Name: "docker.io", Mirrors: c.RegistryMirrors, Secure: true, Official: true}},
	}
	for _, h := range c.InsecureRegistries {
		if p, err := netip.ParsePrefix(h); err == nil {
			rc.InsecureRegistryCIDRs = append(rc.InsecureRegistryCIDRs, p)
			continue
		}
		rc.IndexConfigs[h] = &registry.IndexInfo{Name: h, Mirrors: []string{}}
	}
	if rc.Mirrors == nil {
		rc.Mirrors = []string{}
		rc.IndexConfigs["docker.io"].Mirrors = []string{}
	}
	return rc
}

// Version answers docker version.
func (a *Agent) Version() *system.VersionResponse {
	var u unix.Utsname
	unix.Uname(&u)
	kernel := unix.ByteSliceToString(u.Release[:])
	return &system.VersionResponse{
		Platform: system.PlatformInfo{Name: "machine"}, Version: Version, APIVersion: api.MaxVersion, MinAPIVersion: api.MinVersion,
		Os: "linux", Arch: runtime.GOARCH, GitCommit: GitCommit, GoVersion: runtime.Version(), KernelVersion: kernel, BuildTime: BuildTime,
		Components: []system.ComponentVersion{{Name: "Engine", Version: Version, Details: map[string]string{
			"ApiVersion": api.MaxVersion, "MinAPIVersion": api.MinVersion, "GitCommit": GitCommit, "GoVersion": runtime.Version(),
			"Os": "linux", "Arch": runtime.GOARCH, "BuildTime": BuildTime, "Experimental": "false", "KernelVersion": kernel,
		}}},
	}
}

func hostname() string {
	h, _ := os.Hostname()
	return h
}

func readOne(path string) bool {
	b, _ := os.ReadFile(path)
	return strings.TrimSpace(string(b)) == "1"
}

func countFDs() int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(d)
}

// osRelease reads a field of /etc/os-release, os-release(5).
func osRelease(key string) string {
	b, _ := os.ReadFile("/etc/os-release")
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), key+"="); ok {
			return strings.Trim(v, `"'`)
		}
	}
	return ""
}

func osName() string {
	if n := osRelease("PRETTY_NAME"); n != "" {
		return n
	}
	return "Linux"
}

// memTotal is the host's memory in bytes, proc(5) meminfo.
func memTotal() int64 {
	b, _ := os.ReadFile("/proc/meminfo")
	if _, rest, ok := bytes.Cut(b, []byte("MemTotal:")); ok {
		line, _, _ := bytes.Cut(rest, []byte("\n"))
		f := strings.Fields(string(line))
		if len(f) > 0 {
			n, _ := strconv.ParseInt(f[0], 10, 64)
			return n << 10
		}
	}
	return 0
}

// fsName names the file system that holds a path, statfs(2).
func fsName(path string) string {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return "<unknown>"
	}
	names := map[int64]string{0xef53: "extfs", 0x58465342: "xfs", 0x9123683e: "btrfs", 0x01021994: "tmpfs", 0x2fc12fc1: "zfs", 0x794c7630: "overlayfs", 0xf2f52010: "f2fs"}
	if n, ok := names[int64(st.Type)]; ok {
		return n
	}
	return "<unknown>"
}
