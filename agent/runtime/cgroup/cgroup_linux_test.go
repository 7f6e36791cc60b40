package cgroup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"machine/agent/fault"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func ptr[T any](v T) *T { return &v }

func group(t *testing.T, r *specs.LinuxResources) *Group {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	h, err := Detect()
	if err != nil {
		t.Skip(err)
	}
	g, err := h.Group(fmt.Sprintf("machine-test/cg-%d-%s", os.Getpid(), t.Name()))
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Create(r); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := g.Delete(ctx); err != nil {
			t.Error(err)
		}
		if err := g.Delete(ctx); err != nil {
			t.Errorf("again: %v", err)
		}
	})
	return g
}

func (g *Group) enter(t *testing.T, pid int) {
	t.Helper()
	for _, d := range g.dirs() {
		if err := write(d, "cgroup.procs", fmt.Sprint(pid)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLimits(t *testing.T) {
	g := group(t, &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(32 << 20)), Swap: ptr(int64(48 << 20)), Reservation: ptr(int64(16 << 20))},
		CPU:    &specs.LinuxCPU{Shares: ptr(uint64(512)), Quota: ptr(int64(50000)), Period: ptr(uint64(100000)), Cpus: "0"},
		Pids:   &specs.LinuxPids{Limit: ptr(int64(77))}})
	st, err := g.Stats()
	if err != nil || st.MemLimit != 32<<20 || st.PidsLimit != 77 {
		t.Errorf("got %+v %v", st, err)
	}
	for _, m := range []int64{64 << 20, 8 << 20, -1} {
		if err := g.Set(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(m), Swap: ptr(m)}}); err != nil {
			t.Errorf("memory %d: %v", m, err)
		}
	}
	if err := g.Set(&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(20000)), Period: ptr(uint64(10000))}}); err != nil {
		t.Error(err)
	}
	if err := g.Set(&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "4000"}}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a CPU that is not there: %v", err)
	}
}

// CVE-2018-20699: absurd lists are refused before anybody expands them.
func TestS39CPULists(t *testing.T) {
	for _, good := range []string{"0", "0-3", "0,2-4,7", "8191"} {
		if err := CheckCPUList(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"0-99999999999", "3-1", "-1", "a", "1,", ",", "0-", "1-2-3", "9999", strings.Repeat("1,", 4000) + "1"} {
		if CheckCPUList(bad) == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestFreezeKill(t *testing.T) {
	g := group(t, nil)
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	g.enter(t, cmd.Process.Pid)
	if err := g.Freeze(); err != nil || !g.frozen() {
		t.Errorf("freeze: %v", err)
	}
	if pids, err := g.Pids(); err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
		t.Errorf("pids: %v %v", pids, err)
	}
	if err := g.Thaw(); err != nil || g.frozen() {
		t.Errorf("thaw: %v", err)
	}
	if err := g.Freeze(); err != nil {
		t.Error(err)
	}
	// Deleting a frozen group thaws it and kills what is in it.
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := g.Delete(ctx); err != nil {
		t.Error(err)
	}
	<-done
}

func TestDevices(t *testing.T) {
	g := group(t, &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Major: ptr(int64(10)), Minor: ptr(int64(229)), Access: "rw"}}})
	if g.host.V2 {
		t.Skip("v1 only")
	}
	list := read(g.dir("devices"), "devices.list")
	for _, want := range []string{"c 1:3 rwm", "c 136:* rwm", "c 10:229 rw", "b *:* m"} {
		if !strings.Contains(list, want) {
			t.Errorf("%q is not in %s", want, list)
		}
	}
	if strings.Contains(list, "a *:*") {
		t.Errorf("all is allowed: %s", list)
	}
	for _, bad := range []specs.LinuxDeviceCgroup{{Type: "x", Access: "r"}, {Type: "c", Access: "q"}} {
		if _, _, err := rules(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{bad}}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestNestedGroupsAreRemoved(t *testing.T) {
	g := group(t, nil)
	for _, d := range g.dirs() {
		if err := unix.Mkdir(d+"/inner", 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPaths(t *testing.T) {
	h := &Host{}
	for in, want := range map[string]string{"/docker/x": "docker/x", "a/../../b": "b", "x//y": "x/y"} {
		if g, err := h.Group(in); err != nil || g.path != want {
			t.Errorf("%s: got %v %v", in, g, err)
		}
	}
	for _, bad := range []string{"", "/", "..", "a\nb"} {
		if _, err := h.Group(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
