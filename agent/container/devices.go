package container

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"machine/agent/fault"
)

func ptr[T any](v T) *T { return &v }

// defaultDeviceRules are what a container may use: Docker's list.
func defaultDeviceRules() []specs.LinuxDeviceCgroup {
	dev := func(t string, major, minor int64, access string) specs.LinuxDeviceCgroup {
		d := specs.LinuxDeviceCgroup{Allow: true, Type: t, Access: access}
		if major >= 0 {
			d.Major = ptr(major)
		}
		if minor >= 0 {
			d.Minor = ptr(minor)
		}
		return d
	}
	return []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		dev("c", -1, -1, "m"), dev("b", -1, -1, "m"), // mknod of all, use of none
		dev("c", 1, 5, "rwm"), dev("c", 1, 3, "rwm"), // zero null
		dev("c", 1, 9, "rwm"), dev("c", 1, 8, "rwm"), // urandom random
		dev("c", 1, 7, "rwm"),                        // full
		dev("c", 5, 0, "rwm"), dev("c", 5, 1, "rwm"), // tty console
		dev("c", 136, -1, "rwm"), dev("c", 5, 2, "rwm"), // pts ptmx
	}
}

// the devices that every container has.
func defaultDevices() []specs.LinuxDevice {
	var out []specs.LinuxDevice
	for _, d := range []struct {
		path         string
		major, minor int64
	}{{"/dev/null", 1, 3}, {"/dev/zero", 1, 5}, {"/dev/full", 1, 7}, {"/dev/random", 1, 8}, {"/dev/urandom", 1, 9}, {"/dev/tty", 5, 0}} {
		out = append(out, specs.LinuxDevice{Path: d.path, Type: "c", Major: d.major, Minor: d.minor, FileMode: ptr(os.FileMode(0o666)), UID: ptr(uint32(0)), GID: ptr(uint32(0))})
	}
	return out
}

var ruleForm = regexp.MustCompile(`^([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})$`)

// deviceRules parses --device-cgroup-rule.
func deviceRules(hc *container.HostConfig) ([]specs.LinuxDeviceCgroup, error) {
	var out []specs.LinuxDeviceCgroup
	for _, s := range hc.DeviceCgroupRules {
		f := ruleForm.FindStringSubmatch(s)
		if f == nil {
			return nil, fault.Invalid.Errorf("invalid device cgroup rule format: '%s'", s)
		}
		d := specs.LinuxDeviceCgroup{Allow: true, Type: f[1], Access: f[4]}
		for i, p := range []**int64{&d.Major, &d.Minor} {
			if f[2+i] == "*" {
				continue
			}
			n, err := strconv.ParseInt(f[2+i], 10, 32)
			if err != nil {
				return nil, fault.Invalid.Errorf("invalid device cgroup rule '%s': %w", s, err)
			}
			*p = &n
		}
		out = append(out, d)
	}
	return out, nil
}

// devices looks up --device mappings on the host; a directory stands for all
// devices below it.
func devices(hc *container.HostConfig) (nodes []specs.LinuxDevice, rules []specs.LinuxDeviceCgroup, err error) {
	for _, d := range hc.Devices {
		access := d.CgroupPermissions
		if access == "" {
			access = "rwm"
		}
		if strings.Trim(access, "rwm") != "" {
			return nil, nil, fault.Invalid.Errorf("invalid device mode: %s", access)
		}
		inside := d.PathInContainer
		if inside == "" {
			inside = d.PathOnHost
		}
		found := false
		err := filepath.WalkDir(d.PathOnHost, func(p string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			node, rule, ok := device(p)
			if !ok {
				return nil
			}
			found = true
			rel, _ := filepath.Rel(d.PathOnHost, p)
			node.Path = filepath.Join(inside, rel)
			rule.Access = access
			nodes, rules = append(nodes, node), append(rules, rule)
			return nil
		})
		if err == nil && !found {
			err = errors.New("not a device node")
		}
		if err != nil {
			return nil, nil, fault.Invalid.Errorf("error gathering device information while adding custom device %q: %w", d.PathOnHost, err)
		}
	}
	return nodes, rules, nil
}

// device describes a host's device node.
func device(path string) (specs.LinuxDevice, specs.LinuxDeviceCgroup, bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return specs.LinuxDevice{}, specs.LinuxDeviceCgroup{}, false
	}
	t := ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		t = "c"
	case unix.S_IFBLK:
		t = "b"
	default:
		return specs.LinuxDevice{}, specs.LinuxDeviceCgroup{}, false
	}
	major, minor := int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	return specs.LinuxDevice{Path: path, Type: t, Major: major, Minor: minor, FileMode: ptr(os.FileMode(st.Mode & 0o7777)), UID: &st.Uid, GID: &st.Gid},
		specs.LinuxDeviceCgroup{Allow: true, Type: t, Major: &major, Minor: &minor}, true
}

// hostDevices are all nodes of the host's /dev, for privileged containers.
func hostDevices() []specs.LinuxDevice {
	var out []specs.LinuxDevice
	filepath.WalkDir("/dev", func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		switch p {
		case "/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/.lxc", "/dev/.lxd-mounts", "/dev/.udev":
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil // /dev/fd is a link: SkipDir would skip all that comes after it
		case "/dev/console", "/dev/ptmx":
			return nil
		}
		if node, _, ok := device(p); ok && e.Type()&fs.ModeSymlink == 0 {
			out = append(out, node)
		}
		return nil
	})
	return out
}
