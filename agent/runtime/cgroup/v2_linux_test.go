//go:build vm

package cgroup

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// The root of a cgroup namespace has processes, which must not keep the
// controllers from the containers.
func TestRootWithProcesses(t *testing.T) {
	top := group(t, nil)
	if !top.host.V2 {
		t.Fatal("this is for cgroup v2")
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	top.enter(t, cmd.Process.Pid)
	g, err := Unified(top.dir("")).Group("docker/x")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Create(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(32 << 20))}}); err != nil {
		t.Fatal(err)
	}
	if st, err := g.Stats(); err != nil || st.MemLimit != 32<<20 {
		t.Errorf("got %+v %v", st, err)
	}
	if got := strings.TrimSpace(read(top.dir("")+"/init", "cgroup.procs")); got != fmt.Sprint(cmd.Process.Pid) {
		t.Errorf("in init: %q", got)
	}
	if pids, err := top.Pids(); err != nil || len(pids) != 1 {
		t.Errorf("pids %v %v", pids, err)
	}
}
