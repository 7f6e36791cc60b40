package engine

import (
	"os"
	"path/filepath"
	"strings"
)

// Audit removes all containers and then fails the test when anything of one
// is left: processes, mounts, network namespaces, links, packet filter
// entries, cgroups, files. The kernel and the agent may take a moment.
func (e *Engine) Audit() {
	e.T.Helper()
	if ids := strings.Fields(e.Run("ps", "-aq", "--no-trunc")); len(ids) > 0 {
		e.Run(append([]string{"rm", "-f", "-v"}, ids...)...)
	}
	var left []string
	for range 200 {
		if left = e.Leftovers(); len(left) == 0 {
			return
		}
		e.nap()
	}
	e.T.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
}

// Leftovers lists what Audit looks for, as it is now.
func (e *Engine) Leftovers() (left []string) {
	spare := 0 // the shim that waits for the next container, and its stage
	ps, _ := e.HostRun("ps", "-eo", "pid,args", "--no-headers")
	for line := range strings.Lines(ps) {
		line = strings.TrimSpace(line)
		_, args, _ := strings.Cut(line, " ")
		args = strings.TrimSpace(args)
		switch {
		case strings.HasPrefix(args, "sleep infinity"), strings.Contains(args, "/bin/agent --host"), strings.HasPrefix(args, "ps -eo"), strings.Contains(args, "<defunct>"):
		case (strings.HasPrefix(args, "shim 3 4 ") && strings.HasSuffix(args, " spare") || strings.HasPrefix(args, "warm ")) && spare < 2:
			spare++
		default:
			left = append(left, "process "+line)
		}
	}
	mounts, _ := e.HostRun("cat", "/proc/self/mounts")
	for line := range strings.Lines(mounts) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], e.Dir) {
			left = append(left, "mount "+strings.TrimSpace(line))
		}
	}
	links, _ := e.HostRun("ip", "-o", "link")
	for line := range strings.Lines(links) {
		if strings.Contains(line, "veth") {
			left = append(left, "link "+strings.TrimSpace(line))
		}
	}
	for _, pattern := range []string{"run/netns/*", "run/tasks/*", "data/containers/*", "data/records/containers/*", "run/network/endpoints/*.json"} {
		m, _ := filepath.Glob(filepath.Join(e.Dir, pattern))
		left = append(left, m...)
	}
	for _, d := range e.cgroupDirs() {
		subs, _ := filepath.Glob(d + "/*/")
		for _, s := range subs {
			left = append(left, "cgroup "+s)
		}
	}
	left = append(left, e.ports()...)
	return left
}

// ports are published ports that are still in the packet filter.
func (e *Engine) ports() (left []string) {
	out, err := e.HostRun("nft", "list", "ruleset")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(out) {
		if t := strings.TrimSpace(line); strings.HasPrefix(t, "elements") && strings.Contains(t, " : ") && strings.Contains(t, "172.") {
			left = append(left, "packet filter "+t)
		}
	}
	return left
}

// FDs is the number of open files of the agent.
func (e *Engine) FDs() int {
	d, err := os.ReadDir(filepath.Join("/proc", itoa(e.AgentPid()), "fd"))
	if err != nil {
		e.T.Fatal(err)
	}
	return len(d)
}
