package container

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"machine/agent/fault"
)

// Docker's masked and read-only paths (moby/oci/defaults.go).
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// defaultCaps are Docker's fourteen.
var defaultCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// allCaps in the kernel's order, capability(7).
var allCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// capName normalises "net_admin" and "CAP_NET_ADMIN"; ALL stays ALL.
func capName(s string) (string, error) {
	n := strings.ToUpper(s)
	if n == "ALL" {
		return n, nil
	}
	if !strings.HasPrefix(n, "CAP_") {
		n = "CAP_" + n
	}
	if !slices.Contains(allCaps, n) {
		return "", fault.Invalid.Errorf("invalid capability: unknown capability: %q", n)
	}
	return n, nil
}

// capabilities applies --cap-add and --cap-drop to the defaults: what is
// dropped is dropped even from ALL, what is added survives --cap-drop ALL.
func capabilities(hc *container.HostConfig) ([]string, error) {
	norm := func(in []string) (out []string, all bool, err error) {
		for _, s := range in {
			n, err := capName(s)
			if err != nil {
				return nil, false, err
			}
			if n == "ALL" {
				all = true
			} else {
				out = append(out, n)
			}
		}
		return out, all, nil
	}
	adds, addAll, err := norm(hc.CapAdd)
	if err != nil {
		return nil, err
	}
	drops, dropAll, err := norm(hc.CapDrop)
	if err != nil {
		return nil, err
	}
	if hc.Privileged {
		return allCaps, nil
	}
	var base []string
	switch {
	case addAll:
		base = allCaps
	case dropAll:
	default:
		base = defaultCaps
	}
	var out []string
	for _, c := range allCaps {
		if slices.Contains(adds, c) || (slices.Contains(base, c) && !slices.Contains(drops, c)) {
			out = append(out, c)
		}
	}
	return out, nil
}

// secOpts is --security-opt, parsed.
type secOpts struct {
	noNewPrivs       bool
	seccomp          string // "", "unconfined" or a profile's JSON
	apparmor         string
	systemPathsUnset bool
	warnings         []string
}

func parseSecurity(hc *container.HostConfig, d Defaults) (o secOpts, err error) {
	o.noNewPrivs = d.NoNewPrivs
	if !hc.Privileged {
		o.seccomp = d.Seccomp
	}
	for _, s := range hc.SecurityOpt {
		if s == "no-new-privileges" {
			o.noNewPrivs = true
			continue
		}
		k, v, ok := strings.Cut(s, "=")
		if !ok {
			k, v, ok = strings.Cut(s, ":")
		}
		if !ok && s != "disable" {
			return o, fault.Invalid.Errorf("invalid --security-opt 1: %q", s)
		}
		switch k {
		case "no-new-privileges":
			switch v {
			case "true":
				o.noNewPrivs = true
			case "false":
				o.noNewPrivs = false
			default:
				return o, fault.Invalid.Errorf("invalid --security-opt 2: %q", s)
			}
		case "seccomp":
			if v == "builtin" {
				v = ""
			}
			o.seccomp = v
		case "apparmor":
			o.apparmor = v
		case "systempaths":
			if v != "unconfined" {
				return o, fault.Invalid.Errorf("invalid --security-opt 2: %q", s)
			}
			o.systemPathsUnset = true
		case "label":
			o.warnings = append(o.warnings, "security-opt label is ignored: this engine does not use SELinux")
		case "writable-cgroups":
		default:
			return o, fault.Invalid.Errorf("invalid --security-opt 2: %q", s)
		}
	}
	return o, nil
}

// checkSecurity refuses at create what start could not apply.
func checkSecurity(hc *container.HostConfig) ([]string, error) {
	o, err := parseSecurity(hc, Defaults{})
	if err != nil {
		return nil, err
	}
	if o.seccomp != "" && o.seccomp != "unconfined" && !json.Valid([]byte(o.seccomp)) {
		return nil, fault.Invalid.Errorf("decoding seccomp profile failed: the profile is not valid JSON")
	}
	if _, err := capabilities(hc); err != nil {
		return nil, err
	}
	if _, err := deviceRules(hc); err != nil {
		return nil, err
	}
	if o.systemPathsUnset {
		hc.MaskedPaths, hc.ReadonlyPaths = []string{}, []string{}
	}
	return o.warnings, nil
}

// seccompProfile is the filter of a container, or nil for none.
func seccompProfile(s *specs.Spec, privileged bool, o secOpts) (*specs.LinuxSeccomp, error) {
	switch {
	case o.seccomp == "unconfined" || privileged && o.seccomp == "":
		return nil, nil
	case o.seccomp != "":
		p, err := seccomp.LoadProfile(o.seccomp, s)
		if err != nil {
			return nil, fault.Invalid.Errorf("seccomp profile: %w", err)
		}
		return p, nil
	}
	return seccomp.GetDefaultProfile(s)
}
