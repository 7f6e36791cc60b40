package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"machine/agent/fault"
	"machine/agent/model"
)

// rlimitTypes are --ulimit's names.
var rlimitTypes = map[string]string{
	"core": "RLIMIT_CORE", "cpu": "RLIMIT_CPU", "data": "RLIMIT_DATA", "fsize": "RLIMIT_FSIZE", "locks": "RLIMIT_LOCKS",
	"memlock": "RLIMIT_MEMLOCK", "msgqueue": "RLIMIT_MSGQUEUE", "nice": "RLIMIT_NICE", "nofile": "RLIMIT_NOFILE",
	"nproc": "RLIMIT_NPROC", "rss": "RLIMIT_RSS", "rtprio": "RLIMIT_RTPRIO", "rttime": "RLIMIT_RTTIME",
	"sigpending": "RLIMIT_SIGPENDING", "stack": "RLIMIT_STACK",
}

// bundle turns a record into what the runtime needs. The error is the
// request's fault where start should answer 400.
func (m *Manager) bundle(ctx context.Context, r *Record, netns string) (*model.Bundle, func(), error) {
	hc := r.HostConfig
	rootfs, err := m.o.Layers.Rootfs(r.ID)
	if err != nil {
		return nil, nil, err
	}
	rootfs.Readonly, rootfs.Mapped = hc.ReadonlyRootfs, r.Remap != nil
	sec, err := parseSecurity(hc, m.o.Defaults)
	if err != nil {
		return nil, nil, err
	}
	caps, err := capabilities(hc)
	if err != nil {
		return nil, nil, err
	}
	s := &specs.Spec{Version: specs.Version, Hostname: r.Config.Hostname, Domainname: r.Config.Domainname, Linux: &specs.Linux{}}
	if err := m.namespaces(r, s, netns); err != nil {
		return nil, nil, err
	}
	if err := m.resources(r, s); err != nil {
		return nil, nil, err
	}
	images, err := m.imageMounts(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	done, err := m.specMounts(r, s)
	if err != nil {
		return nil, nil, err
	}
	fail := func(err error) (*model.Bundle, func(), error) { done(); return nil, nil, err }
	s.Process = &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}}
	if s.Linux.Seccomp, err = seccompProfile(s, hc.Privileged, sec); err != nil {
		return fail(err)
	}
	log, err := logConfig(m.logPath(r), hc.LogConfig, r)
	if err != nil {
		return fail(err)
	}
	links, err := m.linkEnv(r)
	if err != nil {
		return fail(err)
	}
	init := m.o.Defaults.Init
	if hc.Init != nil {
		init = *hc.Init
	}
	b := &model.Bundle{
		ID: r.ID, Dir: m.taskDir(r.ID), Rootfs: rootfs, Images: images, Spec: s, NetNS: netns, Log: log,
		Init: init && !hc.PidMode.IsHost(), StdinOnce: r.Config.OpenStdin && r.Config.StdinOnce,
		Process: m.process(r, caps, sec),
	}
	b.Process.Env = append(links, b.Process.Env...)
	if hc.OomScoreAdj != 0 {
		b.Process.OOMScoreAdj = &hc.OomScoreAdj
	}
	b.Process.Umask = hc.Umask
	return b, done, nil
}

// process is the container's own program.
func (m *Manager) process(r *Record, caps []string, sec secOpts) model.Process {
	cfg := r.Config
	return model.Process{
		Args: append([]string{r.Path}, r.Args...), Env: environment(r), Cwd: cfg.WorkingDir, User: cfg.User,
		Groups: r.HostConfig.GroupAdd, TTY: cfg.Tty, OpenStdin: cfg.OpenStdin, ConsoleSize: r.HostConfig.ConsoleSize,
		Caps: caps, NoNewPrivileges: sec.noNewPrivs, Rlimits: m.rlimits(r.HostConfig),
		AppArmorProfile: appArmor(r.HostConfig, sec, m.o.Defaults.AppArmor),
	}
}

// appArmor names the profile to apply: one that the user names, or Docker's
// default where the kernel has it loaded. An empty name applies none.
func appArmor(hc *container.HostConfig, sec secOpts, have AppArmor) string {
	switch {
	case have.Kernel && sec.apparmor != "":
		return sec.apparmor
	case hc.Privileged || !have.Default:
		return ""
	}
	return "docker-default"
}

// environment is PATH, HOSTNAME, TERM and the container's own variables;
// HOME is added where the user is looked up.
func environment(r *Record) []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=" + r.Config.Hostname}
	if r.Config.Tty {
		env = append(env, "TERM=xterm")
	}
	return overrideEnv(env, r.Config.Env)
}

// overrideEnv sets variables; one without "=" is removed.
func overrideEnv(env, over []string) []string {
	at := map[string]int{}
	for i, e := range env {
		k, _, _ := strings.Cut(e, "=")
		at[k] = i
	}
	out := slices.Clone(env)
	for _, e := range over {
		k, _, hasValue := strings.Cut(e, "=")
		i, ok := at[k]
		switch {
		case !hasValue && ok:
			out[i] = ""
		case !hasValue:
		case ok:
			out[i] = e
		default:
			at[k] = len(out)
			out = append(out, e)
		}
	}
	return slices.DeleteFunc(out, func(s string) bool { return s == "" })
}

func (m *Manager) rlimits(hc *container.HostConfig) (out []specs.POSIXRlimit) {
	set := map[string]*container.Ulimit{}
	for _, u := range m.o.Defaults.Ulimits {
		set[u.Name] = u
	}
	for _, u := range hc.Ulimits {
		set[u.Name] = u
	}
	for name, u := range set {
		out = append(out, specs.POSIXRlimit{Type: rlimitTypes[name], Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	return out
}

// namespaces decides which namespaces are new, shared or the host's.
func (m *Manager) namespaces(r *Record, s *specs.Spec, netns string) error {
	hc := r.HostConfig
	add := func(t specs.LinuxNamespaceType, path string) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: path})
	}
	add(specs.MountNamespace, "")
	if !hc.UTSMode.IsHost() {
		add(specs.UTSNamespace, "")
	} else {
		s.Hostname, s.Domainname = "", ""
	}
	switch {
	case hc.PidMode.IsHost():
	case hc.PidMode.IsContainer():
		p, err := m.nsOf(r, strings.TrimPrefix(string(hc.PidMode), "container:"), "pid")
		if err != nil {
			return err
		}
		add(specs.PIDNamespace, p)
	default:
		add(specs.PIDNamespace, "")
	}
	switch {
	case hc.IpcMode.IsHost():
	case hc.IpcMode.IsContainer():
		id := strings.TrimPrefix(string(hc.IpcMode), "container:")
		if c, err := m.find(id); err == nil && c.rec.Load().HostConfig.IpcMode == "private" {
			return fault.Invalid.Errorf("cannot join IPC namespace of container %s: non-shareable IPC (hint: use IpcMode:shareable for the donor container)", id)
		}
		p, err := m.nsOf(r, id, "ipc")
		if err != nil {
			return err
		}
		add(specs.IPCNamespace, p)
	default:
		add(specs.IPCNamespace, "")
	}
	if hc.CgroupnsMode == "private" {
		add(specs.CgroupNamespace, "")
	}
	if r.Remap != nil { // the one that owns the network namespace
		add(specs.UserNamespace, netns)
		s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: r.Remap.UID, Size: r.Remap.Size}}
		s.Linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: r.Remap.GID, Size: r.Remap.Size}}
	}
	s.Linux.Sysctl = hc.Sysctls
	return checkSysctls(hc)
}

// nsOf is the path of a running container's namespace that r is to join.
func (m *Manager) nsOf(r *Record, id, kind string) (string, error) {
	c, err := m.find(id)
	if err != nil {
		return "", err
	}
	o := c.rec.Load()
	if o.State.Status != container.StateRunning || o.State.Pid == 0 {
		return "", fault.Conflict.Errorf("cannot join %s of a non running container: %s", strings.ToUpper(kind), o.ID)
	}
	if r.Remap != nil && o.SandboxKey != r.SandboxKey {
		return "", fault.Invalid.Errorf("cannot join %s of container %s: it runs in another user namespace (hint: share its network with --network=container:%s, too, or use --userns=host for both)", strings.ToUpper(kind), id, id)
	}
	return fmt.Sprintf("/proc/%d/ns/%s", o.State.Pid, kind), nil
}

// checkSysctls refuses settings that are not the container's own.
func checkSysctls(hc *container.HostConfig) error {
	for k := range hc.Sysctls {
		k = strings.ReplaceAll(k, "/", ".")
		switch {
		case strings.HasPrefix(k, "net."):
			if hc.NetworkMode.IsHost() {
				return fault.Invalid.Errorf("sysctl '%s' not allowed in host network namespace", k)
			}
		case strings.HasPrefix(k, "fs.mqueue."), slices.Contains([]string{"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced"}, k):
			if hc.IpcMode.IsHost() {
				return fault.Invalid.Errorf("sysctl '%s' not allowed in host ipc namespace", k)
			}
		case k == "kernel.domainname" || k == "kernel.hostname":
			if hc.UTSMode.IsHost() {
				return fault.Invalid.Errorf("sysctl '%s' not allowed in host UTS namespace", k)
			}
		default:
			return fault.Invalid.Errorf("invalid sysctl: %q is not in a separate kernel namespace", k)
		}
	}
	return nil
}

// specMounts are the standard mounts, the container's files and the user's
// mounts, parents before children.
func (m *Manager) specMounts(r *Record, s *specs.Spec) (func(), error) {
	hc := r.HostConfig
	std := standardMounts(hc, r.Remap != nil)
	var user []specs.Mount
	var closers []func()
	done := func() {
		for _, f := range closers {
			f()
		}
	}
	for _, f := range []string{"resolv.conf", "hostname", "hosts"} {
		user = append(user, specs.Mount{Destination: "/etc/" + f, Source: filepath.Join(m.dir(r.ID), f), Type: "bind", Options: []string{"rbind", "rprivate"}})
	}
	for _, mt := range r.Mounts {
		sm, closer, err := specMount(mt)
		if err != nil {
			done()
			return nil, err
		}
		if closer != nil {
			closers = append(closers, closer)
		}
		user = append(user, sm)
	}
	covered := map[string]bool{}
	for _, u := range user {
		covered[u.Destination] = true
	}
	std = slices.DeleteFunc(std, func(x specs.Mount) bool { return covered[x.Destination] })
	user = dedupe(user)
	slices.SortStableFunc(user, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	s.Mounts = append(std, user...)
	return done, nil
}

// dedupe keeps the last mount of each destination: a user's /etc/hosts wins.
func dedupe(in []specs.Mount) (out []specs.Mount) {
	last := map[string]int{}
	for i, x := range in {
		last[x.Destination] = i
	}
	for i, x := range in {
		if last[x.Destination] == i {
			out = append(out, x)
		}
	}
	return out
}

func standardMounts(hc *container.HostConfig, mapped bool) []specs.Mount {
	ro := "ro"
	if hc.Privileged {
		ro = "rw"
	}
	std := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", ro}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{ro, "nosuid", "noexec", "nodev"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
	}
	if mapped && hc.IpcMode.IsHost() { // only its owner may mount it anew
		std[5] = specs.Mount{Destination: "/dev/mqueue", Type: "bind", Source: "/dev/mqueue", Options: []string{"bind", "rprivate", "nosuid", "noexec", "nodev"}}
		if _, err := os.Stat("/dev/mqueue"); err != nil {
			std = std[:5]
		}
	}
	switch {
	case hc.IpcMode == "none":
	case hc.IpcMode.IsHost():
		std = append(std, specs.Mount{Destination: "/dev/shm", Type: "bind", Source: "/dev/shm", Options: []string{"rbind", "rprivate"}})
	default:
		std = append(std, specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=" + strconv.FormatInt(hc.ShmSize, 10)}})
	}
	return std
}

// specMount is one user mount; the closer ends what had to be opened for it.
func specMount(mt Mount) (specs.Mount, func(), error) {
	out := specs.Mount{Destination: mt.Destination, Source: mt.Source, Type: "bind"}
	switch mt.Type {
	case mount.TypeTmpfs:
		out.Type, out.Source = "tmpfs", "tmpfs"
		out.Options = []string{"noexec", "nosuid", "nodev"}
		for o := range strings.SplitSeq(mt.TmpfsData, ",") {
			if o != "" {
				out.Options = append(out.Options, o)
			}
		}
		return out, nil, nil
	case mount.TypeImage:
		out.Source, out.Options = mt.Subpath, []string{"rbind", "rprivate", "ro"}
		return out, nil, nil
	}
	bind := "rbind"
	if mt.NonRec {
		bind = "bind"
	}
	prop := string(mt.Propagation)
	if prop == "" {
		prop = "rprivate"
	}
	out.Options = []string{bind, prop}
	if !mt.RW {
		ro := "rro"
		if mt.RONonRec || mt.NonRec {
			ro = "ro"
		}
		out.Options = append(out.Options, ro)
	}
	if mt.Type == mount.TypeVolume && mt.Subpath != "" {
		p, err := subpath(mt.Source, mt.Subpath)
		if err != nil {
			return out, nil, fault.Invalid.Errorf("volume %s: subpath %q: %w", mt.Name, mt.Subpath, err)
		}
		out.Source = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), p.Fd())
		return out, func() { p.Close() }, nil
	}
	return out, nil, nil
}

// subpath opens a path inside a volume without leaving it. The handle is good
// for mounting only: what is there is not opened, since a pipe would wait and
// a device act.
func subpath(dir, sub string) (*os.File, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	for range 1000 {
		fd, err := unix.Openat2(root, sub, &how)
		switch err {
		case nil:
			return os.NewFile(uintptr(fd), sub), nil
		case unix.EAGAIN, unix.EINTR: // a rename at the same time
		case unix.EXDEV:
			return nil, errors.New("path escapes from the volume")
		default:
			return nil, err
		}
	}
	return nil, unix.EAGAIN
}

// imageMounts are the layers of the images that are mounted, by destination.
func (m *Manager) imageMounts(ctx context.Context, r *Record) (map[string]model.Rootfs, error) {
	var out map[string]model.Rootfs
	for _, mt := range r.Mounts {
		if mt.Type != mount.TypeImage {
			continue
		}
		img, err := m.o.Images.Get(ctx, mt.Image)
		if err != nil {
			return nil, err
		}
		root, err := m.o.Layers.ImageRootfs(img.TopLayer)
		if err != nil {
			return nil, err
		}
		if out == nil {
			out = map[string]model.Rootfs{}
		}
		root.Mapped = r.Remap != nil
		out[mt.Destination] = root
	}
	return out, nil
}
