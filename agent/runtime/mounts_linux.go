package runtime

import (
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/runtime/cgroup"
	"machine/agent/runtime/wire"
)

var propagation = map[string]uint64{
	"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE | unix.MS_REC,
	"slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC,
	"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED | unix.MS_REC,
	"unbindable": unix.MS_UNBINDABLE, "runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

// attrOptions are the mount options that are attributes of a mount, with what
// they set and clear.
var attrOptions = map[string][2]uint64{
	"ro": {unix.MOUNT_ATTR_RDONLY, 0}, "rw": {0, unix.MOUNT_ATTR_RDONLY},
	"nosuid": {unix.MOUNT_ATTR_NOSUID, 0}, "suid": {0, unix.MOUNT_ATTR_NOSUID},
	"nodev": {unix.MOUNT_ATTR_NODEV, 0}, "dev": {0, unix.MOUNT_ATTR_NODEV},
	"noexec": {unix.MOUNT_ATTR_NOEXEC, 0}, "exec": {0, unix.MOUNT_ATTR_NOEXEC},
	"nodiratime": {unix.MOUNT_ATTR_NODIRATIME, 0}, "diratime": {0, unix.MOUNT_ATTR_NODIRATIME},
	"noatime":     {unix.MOUNT_ATTR_NOATIME, unix.MOUNT_ATTR__ATIME},
	"strictatime": {unix.MOUNT_ATTR_STRICTATIME, unix.MOUNT_ATTR__ATIME},
	"relatime":    {0, unix.MOUNT_ATTR__ATIME},
	"nosymfollow": {unix.MOUNT_ATTR_NOSYMFOLLOW, 0},
	"defaults":    {}, "async": {}, "sync": {}, "atime": {}, "norelatime": {}, "bind": {}, "rbind": {}, "copy": {}, "nocopy": {},
	"z": {}, "Z": {}, "consistent": {}, "cached": {}, "delegated": {},
}

func mounts(b *model.Bundle, spec *specs.Spec, p *wire.Program, g *cgroup.Group) error {
	for i := range spec.Mounts {
		s := spec.Mounts[i]
		img, isImage := b.Images[s.Destination]
		inside := strings.Trim(s.Source, "/")
		if isImage {
			s.Source = "/"
		}
		m, err := mount(&s)
		if err != nil {
			return err
		}
		if isImage {
			m.Lower, m.Sub = img.Lower, inside
		}
		if m.Kind == wire.MountCgroup && p.Clone&unix.CLONE_NEWCGROUP == 0 || m.Kind == wire.MountCgroup && !v2(g) {
			names, dirs := g.Dirs()
			for j := range names {
				m.Cgroup = append(m.Cgroup, wire.KV{Key: names[j], Value: dirs[j]})
			}
		}
		p.Mounts = append(p.Mounts, *m)
	}
	return nil
}

func v2(g *cgroup.Group) bool {
	names, _ := g.Dirs()
	return len(names) == 1 && names[0] == ""
}

func mount(s *specs.Mount) (*wire.Mount, error) {
	dest := filepath.Clean("/" + s.Destination)
	if s.Destination == "" || dest == "/" {
		return nil, fault.Invalid.Errorf("invalid mount: destination %q can't be '/'", s.Destination)
	}
	m := &wire.Mount{Type: s.Type, Source: s.Source, Dest: dest, Kind: wire.MountFS}
	if s.Type == "bind" {
		m.Kind = wire.MountBind
	}
	for _, o := range s.Options {
		switch o {
		case "bind":
			m.Kind = wire.MountBind
		case "rbind":
			m.Kind, m.Recursive = wire.MountBind, true
		case "rro":
			m.Set |= unix.MOUNT_ATTR_RDONLY
			m.AttrRec = true
			continue
		case "tmpcopyup":
			m.CopyUp = true
			continue
		}
		if a, ok := attrOptions[o]; ok {
			m.Set = m.Set&^a[1] | a[0]
			m.Clear = m.Clear&^a[0] | a[1]
			continue
		}
		if prop, ok := propagation[o]; ok {
			m.Propagation = prop &^ unix.MS_REC
			continue
		}
		m.Data = append(m.Data, o)
	}
	if m.Kind == wire.MountBind {
		return m, bindOptions(m)
	}
	m.Clear = 0
	switch s.Type {
	case "cgroup", "cgroup2":
		m.Kind = wire.MountCgroup
	case "proc", "sysfs", "tmpfs", "devpts", "mqueue", "ramfs", "hugetlbfs", "overlay", "bpf", "debugfs", "tracefs", "securityfs":
	case "":
		return nil, fault.Invalid.Errorf("invalid mount: no type for %s", dest)
	}
	return m, nil
}

func bindOptions(m *wire.Mount) error {
	if !strings.HasPrefix(m.Source, "/") {
		return fault.Invalid.Errorf("invalid mount: the source %q of %s is not absolute", m.Source, m.Dest)
	}
	if len(m.Data) > 0 {
		return fault.Invalid.Errorf("invalid mount: unknown option %q of %s", m.Data[0], m.Dest)
	}
	// The clear that "rw" asks for would fail on a read-only file system's
	// locked mount for no gain: a fresh clone keeps what its source has.
	m.Clear &= unix.MOUNT_ATTR__ATIME
	if m.Set&^unix.MOUNT_ATTR__ATIME == m.Set && m.Clear != 0 && m.Set&unix.MOUNT_ATTR__ATIME == 0 {
		m.Clear = 0 // relatime is what every mount has
	}
	m.AttrRec = true // read-only holds for what is mounted below, too
	return nil
}
