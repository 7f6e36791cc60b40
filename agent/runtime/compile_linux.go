// Package runtime turns the description of a container into the program that
// the shim carries out. It knows no image and no network: it is given
// directories and a network namespace's path.
package runtime

import (
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/runtime/cgroup"
	"machine/agent/runtime/seccomp"
	"machine/agent/runtime/wire"
)

// A Compiler makes programs from bundles. It may be used by several goroutines.
type Compiler struct {
	filters seccomp.Cache
}

// Compile checks b and makes its program; g are the container's cgroups. What
// cannot be done is an Invalid error that names the setting.
func (c *Compiler) Compile(b *model.Bundle, g *cgroup.Group) (*wire.Program, error) {
	spec := b.Spec
	if spec == nil {
		spec = &specs.Spec{}
	}
	linux := spec.Linux
	if linux == nil {
		linux = &specs.Linux{}
	}
	if b.ID == "" || len(b.Rootfs.Lower) == 0 {
		return nil, fault.Invalid.Errorf("container %q: a bundle needs an id and a root file system", b.ID)
	}
	p := &wire.Program{
		ID: b.ID, Hostname: spec.Hostname, Domainname: spec.Domainname,
		Root:   wire.Root{Lower: b.Rootfs.Lower, Upper: b.Rootfs.Upper, Work: b.Rootfs.Work, Readonly: b.Rootfs.Readonly, Mapped: b.Rootfs.Mapped},
		Masked: linux.MaskedPaths, ReadonlyPaths: linux.ReadonlyPaths,
		CgroupProcs: g.ProcsFiles(), OOMFile: g.OOMFile(),
		Init: b.Init, StdinOnce: b.StdinOnce,
		Log: wire.Log{Driver: b.Log.Driver, Path: b.Log.Path, MaxSize: uint64(max(b.Log.MaxSize, 0)),
			MaxFiles: uint32(max(b.Log.MaxFiles, 1)), Compress: b.Log.Compress, Attrs: b.Log.Attrs},
	}
	if err := c.namespaces(b, linux, p); err != nil {
		return nil, err
	}
	proc, err := c.Process(&b.Process, linux.Seccomp)
	if err != nil {
		return nil, err
	}
	p.Process = *proc
	p.Process.UserNS = p.Clone&unix.CLONE_NEWUSER != 0 || joins(p, unix.CLONE_NEWUSER)
	p.Process.ExecInit = b.Init
	if err := mounts(b, spec, p, g); err != nil {
		return nil, err
	}
	devices(linux, p)
	if p.Sysctls, err = sysctls(linux.Sysctl); err != nil {
		return nil, err
	}
	if linux.RootfsPropagation != "" {
		prop, ok := propagation[linux.RootfsPropagation]
		if !ok {
			return nil, fault.Invalid.Errorf("unknown propagation %q of the root", linux.RootfsPropagation)
		}
		p.Propagation = prop
	}
	return p, nil
}

func joins(p *wire.Program, typ uint64) bool {
	for _, j := range p.Join {
		if j.Type == typ {
			return true
		}
	}
	return false
}

var namespaceTypes = map[specs.LinuxNamespaceType]uint64{
	specs.PIDNamespace: unix.CLONE_NEWPID, specs.IPCNamespace: unix.CLONE_NEWIPC, specs.UTSNamespace: unix.CLONE_NEWUTS,
	specs.UserNamespace: unix.CLONE_NEWUSER, specs.CgroupNamespace: unix.CLONE_NEWCGROUP,
}

func (c *Compiler) namespaces(b *model.Bundle, linux *specs.Linux, p *wire.Program) error {
	p.Clone = unix.CLONE_NEWNS
	switch b.NetNS {
	case "":
		p.Clone |= unix.CLONE_NEWNET
	case "host":
	default:
		p.Join = append(p.Join, wire.Join{Type: unix.CLONE_NEWNET, Path: b.NetNS})
	}
	for _, n := range linux.Namespaces {
		typ, ok := namespaceTypes[n.Type]
		switch {
		case n.Type == specs.NetworkNamespace || n.Type == specs.MountNamespace && n.Path == "":
		case !ok:
			return fault.Invalid.Errorf("a namespace of type %q is not supported here", n.Type)
		case n.Path != "":
			p.Join = append(p.Join, wire.Join{Type: typ, Path: n.Path})
		default:
			p.Clone |= typ
		}
	}
	// A name can only be given where it is not the host's.
	if p.Clone&unix.CLONE_NEWUTS == 0 {
		p.Hostname, p.Domainname = "", ""
	}
	if p.Clone&unix.CLONE_NEWUSER != 0 {
		if len(linux.UIDMappings) == 0 || len(linux.GIDMappings) == 0 {
			return fault.Invalid.Errorf("a user namespace needs maps of users and groups")
		}
		p.UIDMap, p.GIDMap = idMap(linux.UIDMappings), idMap(linux.GIDMappings)
	}
	p.RootUID, p.RootGID = rootOf(linux.UIDMappings), rootOf(linux.GIDMappings)
	if b.Rootfs.Mapped && !joins(p, unix.CLONE_NEWUSER) {
		return fault.Invalid.Errorf("a root with mapped ids needs a user namespace to join")
	}
	return nil
}

// rootOf is the host's id for 0.
func rootOf(list []specs.LinuxIDMapping) uint32 {
	for _, m := range list {
		if m.ContainerID == 0 {
			return m.HostID
		}
	}
	return 0
}

func idMap(list []specs.LinuxIDMapping) string {
	var b strings.Builder
	for _, m := range list {
		b.WriteString(strconv.FormatUint(uint64(m.ContainerID), 10) + " " + strconv.FormatUint(uint64(m.HostID), 10) + " " +
			strconv.FormatUint(uint64(m.Size), 10) + "\n")
	}
	return b.String()
}

// Process checks one process and makes its program. profile may be nil.
func (c *Compiler) Process(m *model.Process, profile *specs.LinuxSeccomp) (*wire.Process, error) {
	if len(m.Args) == 0 {
		return nil, fault.Invalid.Errorf("no command specified")
	}
	for _, list := range [][]string{m.Args, m.Env, {m.Cwd, m.User}, m.Groups} {
		for _, s := range list {
			if strings.ContainsRune(s, 0) {
				return nil, fault.Invalid.Errorf("%q contains a NUL character", s)
			}
		}
	}
	if m.Cwd != "" && !strings.HasPrefix(m.Cwd, "/") {
		return nil, fault.Invalid.Errorf("the working directory '%s' is invalid, it needs to be an absolute path", m.Cwd)
	}
	p := &wire.Process{Args: m.Args, Env: m.Env, Cwd: m.Cwd, User: m.User, Groups: m.Groups, TTY: m.TTY, Stdin: m.OpenStdin,
		Rows: uint32(min(m.ConsoleSize[0], 65535)), Cols: uint32(min(m.ConsoleSize[1], 65535)),
		NoNewPrivs: m.NoNewPrivileges, AppArmor: m.AppArmorProfile}
	if m.OOMScoreAdj != nil {
		p.HasOOM, p.OOMScoreAdj = true, *m.OOMScoreAdj
	}
	if m.Umask != nil {
		p.HasUmask, p.Umask = true, *m.Umask&0o777
	}
	for _, name := range m.Caps {
		bit, ok := capabilities[name]
		if !ok {
			return nil, fault.Invalid.Errorf("unknown capability %q", name)
		}
		p.Caps |= 1 << bit
	}
	for _, r := range m.Rlimits {
		n, ok := rlimits[r.Type]
		if !ok {
			return nil, fault.Invalid.Errorf("unknown resource limit %q", r.Type)
		}
		p.Rlimits = append(p.Rlimits, wire.Rlimit{Resource: n, Soft: r.Soft, Hard: r.Hard})
	}
	if m.NoSeccomp {
		return p, nil
	}
	var err error
	p.Seccomp, p.SeccompFlags, err = c.filters.Compile(profile)
	return p, err
}

func sysctls(m map[string]string) ([]wire.KV, error) {
	var out []wire.KV
	for k, v := range m {
		// Docker takes both a.b.c and a/b/c; the first separator decides.
		if strings.IndexByte(k, '/') >= 0 && (strings.IndexByte(k, '.') < 0 || strings.IndexByte(k, '/') < strings.IndexByte(k, '.')) {
			k = strings.NewReplacer("/", ".", ".", "/").Replace(k)
		}
		path := strings.NewReplacer(".", "/", "/", ".").Replace(k)
		for _, part := range strings.Split(path, "/") {
			if part == "" || part == "." || part == ".." {
				return nil, fault.Invalid.Errorf("sysctl %q is no valid name", k)
			}
		}
		out = append(out, wire.KV{Key: path, Value: v})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Key < out[j].Key })
	return out, nil
}

var defaultNodes = []wire.Device{
	{Path: "/dev/null", Type: 'c', Major: 1, Minor: 3, Mode: 0o666},
	{Path: "/dev/random", Type: 'c', Major: 1, Minor: 8, Mode: 0o666},
	{Path: "/dev/full", Type: 'c', Major: 1, Minor: 7, Mode: 0o666},
	{Path: "/dev/tty", Type: 'c', Major: 5, Minor: 0, Mode: 0o666},
	{Path: "/dev/zero", Type: 'c', Major: 1, Minor: 5, Mode: 0o666},
	{Path: "/dev/urandom", Type: 'c', Major: 1, Minor: 9, Mode: 0o666},
}

func devices(linux *specs.Linux, p *wire.Program) {
	for _, m := range p.Mounts {
		if m.Dest == "/dev" && m.Kind == wire.MountBind {
			return // the host's /dev has them all
		}
	}
	given := map[string]bool{}
	for _, d := range linux.Devices {
		path := filepath.Clean(d.Path)
		if given[path] || !strings.HasPrefix(path, "/") || d.Type == "" {
			continue
		}
		given[path] = true
		w := wire.Device{Path: path, Type: uint32(d.Type[0]), Major: uint32(d.Major), Minor: uint32(d.Minor), Mode: 0o666}
		if w.Type == 'u' {
			w.Type = 'c'
		}
		if d.FileMode != nil {
			w.Mode = uint32(*d.FileMode) & 0o7777
		}
		if d.UID != nil {
			w.UID = *d.UID
		}
		if d.GID != nil {
			w.GID = *d.GID
		}
		p.Devices = append(p.Devices, w)
	}
	for _, d := range defaultNodes {
		if !given[d.Path] {
			p.Devices = append(p.Devices, d)
		}
	}
}
