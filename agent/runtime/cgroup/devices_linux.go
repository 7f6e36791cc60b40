package cgroup

import (
	"os"
	"slices"
	"strconv"

	"machine/agent/fault"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // fills in cgroups.DevicesSetV2
	devconfig "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// A device rule in the kernel's terms; -1 is any number.
type deviceRule struct {
	allow        bool
	typ          byte
	major, minor int64
	access       string
}

// defaultDevices may be used by every container: any node may be made, but
// only these opened.
var defaultDevices = []deviceRule{
	{true, 'c', -1, -1, "m"}, {true, 'b', -1, -1, "m"},
	{true, 'c', 1, 3, "rwm"}, {true, 'c', 1, 5, "rwm"}, {true, 'c', 1, 7, "rwm"},
	{true, 'c', 1, 8, "rwm"}, {true, 'c', 1, 9, "rwm"}, {true, 'c', 5, 0, "rwm"},
	{true, 'c', 5, 1, "rwm"}, {true, 'c', 5, 2, "rwm"}, {true, 'c', 136, -1, "rwm"},
}

// rules are the default ones followed by r's. all says that everything is
// allowed (a privileged container).
func rules(r *specs.LinuxResources) (out []deviceRule, all bool, err error) {
	out = append(out, defaultDevices...)
	if r == nil {
		return out, false, nil
	}
	for _, d := range r.Devices {
		if d.Type == "" || d.Type == "a" {
			if all = d.Allow; all {
				out = out[:0]
			} else {
				out = append(out[:0], defaultDevices...)
			}
			continue
		}
		n := deviceRule{allow: d.Allow, typ: d.Type[0], major: -1, minor: -1, access: d.Access}
		if d.Type != "c" && d.Type != "b" && d.Type != "u" {
			return nil, false, fault.Invalid.Errorf("cgroup: %q is no type of device", d.Type)
		}
		if n.typ == 'u' {
			n.typ = 'c'
		}
		for _, c := range d.Access {
			if c != 'r' && c != 'w' && c != 'm' {
				return nil, false, fault.Invalid.Errorf("cgroup: %q is no kind of device access", d.Access)
			}
		}
		if n.access == "" {
			n.access = "rwm"
		}
		if d.Major != nil && *d.Major >= 0 {
			n.major = *d.Major
		}
		if d.Minor != nil && *d.Minor >= 0 {
			n.minor = *d.Minor
		}
		// Most of what asks names the default ones again: a rule that says
		// what the ones before it say costs a call for nothing.
		if !(n.allow && slices.Contains(out, n) && !slices.ContainsFunc(out, func(o deviceRule) bool { return !o.allow })) {
			out = append(out, n)
		}
	}
	return out, all, nil
}

func (g *Group) devices(r *specs.LinuxResources) error {
	list, all, err := rules(r)
	if err != nil {
		return err
	}
	if g.host.V2 {
		return g.devicesV2(list, all)
	}
	dir := g.dir("devices")
	if dir == "" {
		return nil
	}
	if all {
		return nil // as the parent
	}
	deny, err := os.OpenFile(dir+"/devices.deny", os.O_WRONLY, 0)
	if err != nil {
		return fault.Internal.Errorf("cgroup: deny devices: %w", err)
	}
	defer deny.Close()
	allow, err := os.OpenFile(dir+"/devices.allow", os.O_WRONLY, 0)
	if err != nil {
		return fault.Internal.Errorf("cgroup: allow devices: %w", err)
	}
	defer allow.Close()
	if _, err := deny.WriteString("a"); err != nil {
		return fault.Internal.Errorf("cgroup: deny devices: %w", err)
	}
	for _, d := range list {
		file := deny
		if d.allow {
			file = allow
		}
		rule := string(d.typ) + " " + star(d.major) + ":" + star(d.minor) + " " + d.access
		if _, err := file.WriteString(rule); err != nil {
			return fault.Internal.Errorf("cgroup: set the device rule %q: %w", rule, err)
		}
	}
	return nil
}

func star(n int64) string {
	if n < 0 {
		return "*"
	}
	return strconv.FormatInt(n, 10)
}

// devicesV2 attaches a filter program: v2 has no device files.
func (g *Group) devicesV2(list []deviceRule, all bool) error {
	res := &cgroups.Resources{}
	if all {
		return nil
	}
	res.Devices = append(res.Devices, &devconfig.Rule{Type: devconfig.WildcardDevice, Major: -1, Minor: -1, Permissions: "rwm"})
	for _, d := range list {
		res.Devices = append(res.Devices, &devconfig.Rule{Type: devconfig.Type(d.typ), Major: d.major, Minor: d.minor,
			Permissions: devconfig.Permissions(d.access), Allow: d.allow})
	}
	if err := cgroups.DevicesSetV2(g.dir(""), res); err != nil {
		return fault.Internal.Errorf("cgroup %s: attach the device filter: %w", g.path, err)
	}
	return nil
}
