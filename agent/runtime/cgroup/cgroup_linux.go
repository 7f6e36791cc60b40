// Package cgroup makes, limits, measures and removes the cgroups of containers,
// in both hierarchies of Linux (cgroups(7)): version 1 with a hierarchy per
// controller, and the unified version 2.
package cgroup

import (
	"bufio"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"machine/agent/fault"
	"machine/agent/sysfile"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// A Host is the computer's cgroup set-up.
type Host struct {
	V2    bool
	root  string            // of v2
	v1    map[string]string // controller to hierarchy
	order []string          // the distinct hierarchies' controllers, "cpu,cpuacct"
}

// Detect finds how the host's cgroups are mounted. It is Unavailable when no
// usable hierarchy is mounted.
func Detect() (*Host, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := &Host{v1: map[string]string{}}
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		h.mount(sc.Text())
	}
	if err := sc.Err(); err != nil {
		return nil, err
	}
	if len(h.v1) > 0 && (h.v1["memory"] != "" || h.v1["pids"] != "" || h.v1["devices"] != "") {
		return h, nil
	}
	if h.root == "" {
		return nil, fault.Unavailable.Errorf("no cgroup hierarchy is mounted: mount cgroup2 at /sys/fs/cgroup")
	}
	h.V2, h.v1, h.order = true, nil, nil
	return h, nil
}

// Unified is the version 2 hierarchy that is mounted at root, also on a host
// whose controllers are with version 1.
func Unified(root string) *Host { return &Host{V2: true, root: root} }

// mount takes one line of mountinfo(5).
func (h *Host) mount(line string) {
	left, right, ok := strings.Cut(line, " - ")
	l, r := strings.Fields(left), strings.Fields(right)
	if !ok || len(l) < 5 || len(r) < 3 || !strings.HasPrefix(l[4], "/sys/fs/cgroup") {
		return
	}
	switch r[0] {
	case "cgroup2":
		if h.root == "" {
			h.root = l[4]
		}
	case "cgroup":
		var names []string
		for _, o := range strings.Split(r[2], ",") {
			switch o {
			case "cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb", "net_cls", "net_prio", "perf_event", "rdma":
				names = append(names, o)
			case "name=systemd":
				names = append(names, "systemd")
			}
		}
		for _, n := range names {
			if h.v1[n] == "" {
				h.v1[n] = l[4]
			}
		}
		if len(names) > 0 && h.v1[names[0]] == l[4] {
			h.order = append(h.order, strings.Join(names, ","))
		}
	}
}

// Controllers lists the controllers that are there.
func (h *Host) Controllers() map[string]bool {
	m := map[string]bool{}
	for c := range h.v1 {
		m[c] = true
	}
	if h.V2 {
		b, _ := os.ReadFile(filepath.Join(h.root, "cgroup.controllers"))
		for _, c := range strings.Fields(string(b)) {
			m[c] = true
		}
	}
	return m
}

// A Group is one container's cgroups: the same path in every hierarchy.
type Group struct {
	host *Host
	path string // below the hierarchies' roots
}

// Group names the cgroups at path, which need not exist. A path that is not
// clean and relative is Invalid.
func (h *Host) Group(path string) (*Group, error) {
	p := filepath.Clean("/" + path)[1:]
	if p == "" || len(p) > 1024 || strings.ContainsAny(p, "\n\x00") {
		return nil, fault.Invalid.Errorf("cgroup path %q cannot be used", path)
	}
	return &Group{h, p}, nil
}

func (g *Group) dir(controller string) string {
	if g.host.V2 {
		return filepath.Join(g.host.root, g.path)
	}
	m := g.host.v1[controller]
	if m == "" {
		return ""
	}
	return filepath.Join(m, g.path)
}

// dirs are the group's directories, one per hierarchy.
func (g *Group) dirs() []string {
	if g.host.V2 {
		return []string{g.dir("")}
	}
	var out []string
	for _, names := range g.host.order {
		first, _, _ := strings.Cut(names, ",")
		out = append(out, g.dir(first))
	}
	return out
}

// Create makes the group, and its parents, and sets r. It is safe to repeat;
// after an error what was made is removed again.
func (g *Group) Create(r *specs.LinuxResources) (err error) {
	defer func() {
		if err != nil {
			_ = g.remove()
		}
	}()
	if g.host.V2 {
		if err := g.createV2(); err != nil {
			return err
		}
	} else {
		for _, dir := range g.dirs() {
			if err := mkdir(dir); err != nil {
				return fault.Internal.Errorf("make cgroup %s: %w", dir, err)
			}
		}
		if err := fillCpuset(g.dir("cpuset"), g.host.v1["cpuset"]); err != nil {
			return fault.Internal.Errorf("cgroup %s: fill cpuset: %w", g.path, err)
		}
	}
	if err := g.devices(r); err != nil {
		return err
	}
	return g.Set(r)
}

func mkdir(dir string) error {
	err := unix.Mkdir(dir, 0o755)
	if err == unix.ENOENT {
		// Groups below those that we make start with their parents' CPUs and
		// nodes (cpusets(7)), so that they need not be told.
		if os.MkdirAll(filepath.Dir(dir), 0o755) == nil {
			_ = write(filepath.Dir(dir), "cgroup.clone_children", "1")
		}
		err = unix.Mkdir(dir, 0o755)
	}
	if err == unix.EEXIST {
		err = nil
	}
	return err
}

// fillCpuset gives an empty cpuset its parent's CPUs and nodes: until then no
// process may enter it.
func fillCpuset(dir, root string) error {
	if dir == "" || dir == root || len(dir) <= len(root) {
		return nil
	}
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		if strings.TrimSpace(read(dir, f)) != "" {
			continue
		}
		parent := filepath.Dir(dir)
		have := strings.TrimSpace(read(parent, f))
		if have == "" {
			if err := fillCpuset(parent, root); err != nil {
				return err
			}
			have = strings.TrimSpace(read(parent, f))
		}
		if err := write(dir, f, have); err != nil {
			return err
		}
	}
	return nil
}

func (g *Group) createV2() error {
	dir := g.dir("")
	if err := mkdir(dir); err != nil {
		return fault.Internal.Errorf("make cgroup %s: %w", dir, err)
	}
	// Parents hand their controllers down, from the root.
	parts := strings.Split(g.path, "/")
	at := g.host.root
	for i := 0; i < len(parts); i++ {
		var add []string
		have := " " + read(at, "cgroup.subtree_control") + " "
		for _, c := range strings.Fields(read(at, "cgroup.controllers")) {
			if !strings.Contains(strings.ReplaceAll(have, "\n", " "), " "+c+" ") {
				add = append(add, "+"+c)
			}
		}
		if i == 0 && len(add) > 0 {
			if err := g.host.vacate(); err != nil {
				return err
			}
		}
		for _, c := range add { // one by one: one that fails spoils no other
			_ = write(at, "cgroup.subtree_control", c)
		}
		at = filepath.Join(at, parts[i])
	}
	return nil
}

// vacate moves the processes out of the root, into a group "init" below it: a
// group with processes cannot hand memory and io down (cgroups(7), "no internal
// processes"). Only the computer's own root may do both; that of a cgroup
// namespace, which an engine in a container has, may not. It must be done
// before any controller is handed down, for the rest is refused afterwards.
func (h *Host) vacate() error {
	if _, err := os.Stat(h.root + "/cgroup.type"); err != nil {
		return nil // the computer's own
	}
	dir := filepath.Join(h.root, "init")
	for range 10 { // they may fork meanwhile
		pids := strings.Fields(read(h.root, "cgroup.procs"))
		if len(pids) == 0 {
			return nil
		}
		if err := mkdir(dir); err != nil {
			return fault.Internal.Errorf("make cgroup %s: %w", dir, err)
		}
		for _, pid := range pids {
			if pid == "0" { // one of another PID namespace: nobody's to move
				continue
			}
			if err := write(dir, "cgroup.procs", pid); err != nil && err != unix.ESRCH {
				return fault.Unavailable.Errorf("cgroup: process %s of %s cannot be moved to %s: %w", pid, h.root, dir, err)
			}
		}
	}
	return nil
}

// ProcsFiles are the files that a thread (v1) or process (v2) writes 0 to, to
// enter the group.
func (g *Group) ProcsFiles() []string {
	name := "tasks"
	if g.host.V2 {
		name = "cgroup.procs"
	}
	out := g.dirs()
	for i := range out {
		out[i] = filepath.Join(out[i], name)
	}
	return out
}

// OOMFile counts the kernel's kills for memory in its line "oom_kill"; empty
// without a memory controller.
func (g *Group) OOMFile() string {
	d := g.dir("memory")
	switch {
	case d == "":
		return ""
	case g.host.V2:
		return filepath.Join(d, "memory.events")
	}
	return filepath.Join(d, "memory.oom_control")
}

// Dirs lists the directory of each hierarchy by its controllers' names
// ("cpu,cpuacct"); with v2 the only name is empty.
func (g *Group) Dirs() (names, dirs []string) {
	if g.host.V2 {
		return []string{""}, g.dirs()
	}
	return g.host.order, g.dirs()
}

// Pids lists the processes in the group and below, in our PID namespace.
func (g *Group) Pids() ([]int, error) {
	dir := g.dir("pids")
	for _, c := range []string{"freezer", "memory", "cpu", "systemd"} {
		if dir == "" {
			dir = g.dir(c)
		}
	}
	var out []int
	err := walkPids(dir, &out)
	return out, err
}

func walkPids(dir string, out *[]int) error {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, unix.ENODEV) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	for _, f := range strings.Fields(string(b)) {
		if n, err := strconv.Atoi(f); err == nil && n > 0 {
			*out = append(*out, n)
		}
	}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			if err := walkPids(filepath.Join(dir, e.Name()), out); err != nil {
				return err
			}
		}
	}
	return nil
}

// Kill kills every process of the group, and of groups below.
func (g *Group) Kill() error {
	if g.host.V2 && write(g.dir(""), "cgroup.kill", "1") == nil {
		return nil
	}
	pids, err := g.Pids()
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	return err
}

// Delete kills what is left in the group and removes it. It tries for as long
// as ctx allows, since a dying process keeps its cgroup busy for a while. Safe
// to repeat.
func (g *Group) Delete(ctx context.Context) error {
	wait := time.Millisecond
	for first := true; ; first = false {
		err := g.remove()
		if err == nil {
			return nil
		}
		if first {
			_ = g.thaw()
		}
		_ = g.Kill()
		select {
		case <-ctx.Done():
			return fault.Internal.Errorf("remove cgroup %s: %w", g.path, err)
		case <-time.After(wait):
		}
		wait = min(2*wait, 100*time.Millisecond)
	}
}

func (g *Group) remove() error {
	var errs []error
	for _, dir := range g.dirs() {
		errs = append(errs, rmdir(dir))
	}
	return errors.Join(errs...)
}

// rmdir removes a group and the groups below it, which an engine in the
// container may have made.
func rmdir(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err == unix.EBUSY || err == unix.ENOTEMPTY {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if e.IsDir() {
				_ = rmdir(filepath.Join(dir, e.Name()))
			}
		}
		err = unix.Rmdir(dir)
		if err == unix.ENOENT {
			return nil
		}
	}
	return err
}

func write(dir, file, value string) error {
	return sysfile.Put(dir+"/"+file, value)
}

func read(dir, file string) string {
	b, _ := sysfile.Read(dir+"/"+file, 16<<10)
	return string(b)
}
