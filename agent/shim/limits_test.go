package shim

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"machine/agent/model"
	"machine/agent/runtime/cgroup"
)

func TestPauseStatsUpdate(t *testing.T) {
	b := newBench(t)
	k := b.start(b.bundle("sh", "-c", "while true; do echo x; sleep 0.01; done"))
	must(t, k.Pause())
	if f, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", k.Pid())); !strings.Contains(string(f), testParent) {
		t.Errorf("cgroup %s", f)
	}
	must(t, k.Resume())
	must(t, k.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(64 << 20))}, Pids: &specs.LinuxPids{Limit: ptr(int64(50))}}))
	st, err := k.Stats()
	must(t, err)
	if st.MemLimit != 64<<20 || st.PidsLimit != 50 || st.PidsCurrent == 0 || st.CPUTotal == 0 || st.MemUsage == 0 || !st.CgroupV2 && st.MemStats["hierarchical_memory_limit"] != 64<<20 {
		t.Errorf("got %+v", st)
	}
	pids, err := k.Pids()
	if err != nil || len(pids) == 0 || pids[0] != k.Pid() {
		t.Errorf("pids %v %v, want %d", pids, err, k.Pid())
	}
	root, err := k.Root()
	must(t, err)
	defer root.Close()
	if fd, err := unix.Openat(int(root.Fd()), "bin/busybox", unix.O_PATH, 0); err != nil {
		t.Error(err)
	} else {
		unix.Close(fd)
	}
}

func TestPausedIsKilled(t *testing.T) {
	b := newBench(t)
	k := b.start(b.bundle("sleep", "1000"))
	must(t, k.Pause())
	must(t, k.Kill(unix.SIGKILL))
	if st := await(t, k); st.Code != 137 {
		t.Errorf("exit %d", st.Code)
	}
}

func TestPausedIsDeleted(t *testing.T) {
	b := newBench(t)
	k := b.start(b.bundle("sleep", "1000"))
	must(t, k.Pause())
	must(t, k.Delete(ctxOf(t)))
	if st := await(t, k); st.Code != 137 {
		t.Errorf("exit %d", st.Code)
	}
}

// F39: the kernel's kill for memory is told, and only then.
func TestF39OOM(t *testing.T) {
	b := newBench(t)
	bu := b.bundle("sh", "-c", "x=0123456789abcdef; while true; do x=$x$x; done")
	bu.Spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr(int64(16 << 20)), Swap: ptr(int64(16 << 20))}
	k := b.start(bu)
	if st := await(t, k); !st.OOMKilled || st.Code != 137 {
		t.Errorf("got %+v", st)
	}
	k = b.start(b.bundle("false"))
	if st := await(t, k); st.OOMKilled || st.Code != 1 {
		t.Errorf("got %+v", st)
	}
}

// F40: a fork bomb stays within its pids limit, and its container dies.
func TestF40ForkBomb(t *testing.T) {
	b := newBench(t)
	bu := b.bundle("sh", "-c", "f() { f | f & }; f; sleep 1000")
	bu.Spec.Linux.Resources.Pids.Limit = ptr(int64(100))
	k := b.start(bu)
	deadline := time.Now().Add(20 * time.Second)
	for {
		st, err := k.Stats()
		must(t, err)
		if st.PidsCurrent > 100 {
			t.Errorf("%d processes", st.PidsCurrent)
		}
		if st.PidsCurrent >= 95 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the bomb has only %d processes", st.PidsCurrent)
		}
		time.Sleep(time.Millisecond)
	}
	must(t, k.Kill(unix.SIGKILL))
	await(t, k)
	must(t, k.Delete(ctxOf(t)))
}

// A limit of one process leaves room for the program: what makes the container
// does not count.
func TestTightLimits(t *testing.T) {
	b := newBench(t)
	bu := b.bundle("true")
	bu.Spec.Linux.Resources.Pids.Limit = ptr(int64(1))
	bu.Spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr(int64(1 << 20))}
	if _, _, st := b.run(bu); st.Code != 0 {
		t.Errorf("exit %d", st.Code)
	}
}

func TestCgroupNamespace(t *testing.T) {
	b := newBench(t)
	got := b.sh(`grep -E 'memory|^0::' /proc/self/cgroup | head -n 1`, func(bu *model.Bundle) {
		bu.Spec.Linux.Namespaces = append(bu.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	})
	if !strings.HasSuffix(got, ":/") {
		t.Errorf("got %q", got)
	}
}

// What version 2 does without controllers: joining, freezing, killing, device
// rules, namespaces.
func TestCgroupV2(t *testing.T) {
	b := newBench(t)
	root := "/sys/fs/cgroup/unified"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.procs"); err == nil {
		root = "/sys/fs/cgroup"
	}
	if _, err := os.Stat(root + "/cgroup.procs"); err != nil {
		t.Skip("no version 2 hierarchy")
	}
	b.s.cgroups = cgroup.Unified(root)
	bu := b.bundle("sh", "-c", "grep 0:: /proc/self/cgroup; ls /sys/fs/cgroup/cgroup.procs; mknod /tmp/mem c 1 1; head -c 1 /tmp/mem 2>&1; head -c 1 /dev/zero | wc -c; sleep 1000")
	bu.Spec.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}
	bu.Spec.Linux.Namespaces = append(bu.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	k := b.create(bu)
	s, err := k.Attach(model.AttachOptions{Stdout: true, Stderr: true})
	must(t, err)
	defer s.Close()
	wait := collect(s)
	must(t, k.Start(ctxOf(t)))
	out, _, _ := execIn(t, k, model.Process{Args: []string{"grep", "0::", "/proc/self/cgroup"}})
	if out != "0::/\n" {
		t.Errorf("exec: got %q", out)
	}
	must(t, k.Pause())
	must(t, k.Resume())
	if pids, err := k.Pids(); err != nil || len(pids) == 0 {
		t.Errorf("pids %v %v", pids, err)
	}
	if st, err := k.Stats(); err != nil || !st.CgroupV2 || st.CPUTotal == 0 {
		t.Errorf("stats %+v %v", st, err)
	}
	time.Sleep(100 * time.Millisecond)
	must(t, k.Delete(ctxOf(t)))
	out, errs := wait()
	want := "0::/\n/sys/fs/cgroup/cgroup.procs\nhead: /tmp/mem: Operation not permitted\n1\n"
	if out != want {
		t.Errorf("got %q %q, want %q", out, errs, want)
	}
}
