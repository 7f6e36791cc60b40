package shim

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"machine/agent/fault"
	"machine/agent/model"
)

// F29: a kill -9 of the agent, and of its whole process group, leaves the
// container running; what it puts out and how it ends is there for the next
// agent.
func TestF29AgentKilled(t *testing.T) {
	b := newBench(t)
	bu := b.bundle("sh", "-c", "echo before; sleep 0.5; echo after; exit 11")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SHIM_TEST_CHILD=agent", "SHIM_TEST_DIR="+b.dir, "SHIM_TEST_ID="+bu.ID)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.Output()
	if err == nil || !strings.Contains(string(out), "started") {
		t.Fatalf("got %s %v", out, err)
	}
	k, err := b.s.Load(ctxOf(t), bu.ID, bu.Dir)
	must(t, err)
	defer k.Delete(ctxOf(t))
	s, err := k.Attach(model.AttachOptions{Stdout: true})
	must(t, err)
	defer s.Close()
	got, _ := collect(s)()
	if st := await(t, k); st.Code != 11 || !strings.HasSuffix(got, "after\n") {
		t.Errorf("got %q %+v", got, st)
	}
	data, err := os.ReadFile(bu.Log.Path)
	if err != nil || strings.Count(string(data), "\n") != 2 {
		t.Errorf("log: %s %v", data, err)
	}
}

// agentChild is the agent of the test above: it kills its own group.
func agentChild() int {
	dir, id := os.Getenv("SHIM_TEST_DIR"), os.Getenv("SHIM_TEST_ID")
	self, err := os.ReadFile(filepath.Join(dir, "shim"))
	if err != nil {
		self = shimBinary
	}
	t := &testing.T{}
	b := &bench{t: t, dir: dir}
	s, err := New(Options{Root: filepath.Join(dir, "tasks"), CgroupParent: testParent, Binary: self})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	bu := b.bundle("sh", "-c", "echo before; sleep 0.5; echo after; exit 11")
	bu.ID, bu.Dir = id, filepath.Join(dir, id, "task")
	bu.Rootfs.Upper, bu.Rootfs.Work = filepath.Join(dir, id, "upper"), filepath.Join(dir, id, "work")
	bu.Log.Path = filepath.Join(dir, id, "log.json")
	k, err := s.Create(ctxOf(t), bu)
	if err == nil {
		err = k.Start(ctxOf(t))
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("started")
	_ = unix.Kill(0, unix.SIGKILL)
	return 0
}

// F38: a signal goes to the container or to nobody, whoever has its number by
// now.
func TestF38NumberReused(t *testing.T) {
	b := newBench(t)
	k := b.start(b.bundle("true"))
	await(t, k)
	for range 1000 {
		if err := k.Kill(unix.SIGKILL); !fault.Is(err, fault.Conflict) {
			t.Fatalf("got %v", err)
		}
	}
	if _, err := k.Root(); !fault.Is(err, fault.Conflict) {
		t.Errorf("root: got %v", err)
	}
	if _, err := k.Exec(ctxOf(t), model.Process{Args: []string{"true"}}); err == nil {
		t.Error("exec in an ended container")
	}
}

// F42: a client that does not read holds up nobody, and loses nothing either.
func TestF42StuckReader(t *testing.T) {
	b := newBench(t)
	b.probe()
	bu := b.bundle("/probe", "flood")
	k := b.create(bu)
	stuck, err := k.Attach(model.AttachOptions{Stdout: true})
	must(t, err)
	defer stuck.Close()
	s, err := k.Attach(model.AttachOptions{Stderr: true})
	must(t, err)
	defer s.Close()
	must(t, k.Start(ctxOf(t)))
	_, errs := collect(s)()
	await(t, k)
	if worst, err := strconv.Atoi(strings.TrimSpace(errs)); err != nil || worst > 2000 { // one that waits for the reader waits for ever
		t.Errorf("a line took %q ms", errs)
	}
	if kb := rss(k.(*task).shim); kb > 8<<10 {
		t.Errorf("the shim has %d kB", kb)
	}
	out, _ := collect(stuck)()
	if len(out) != 300*100*100 {
		t.Errorf("the slow client got %d bytes", len(out))
	}
}

func rss(pid int) (kb int) {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for _, l := range strings.Split(string(data), "\n") {
		if v, ok := strings.CutPrefix(l, "VmRSS:"); ok {
			fmt.Sscan(v, &kb)
		}
	}
	return kb
}

// A client that reads late still gets all, also when the container was removed
// at once.
func TestLateReader(t *testing.T) {
	b := newBench(t)
	k := b.create(b.bundle("seq", "1", "900000"))
	s, err := k.Attach(model.AttachOptions{Stdout: true, Stderr: true})
	must(t, err)
	defer s.Close()
	must(t, k.Start(ctxOf(t)))
	await(t, k)
	must(t, k.Delete(ctxOf(t)))
	time.Sleep(100 * time.Millisecond)
	if out, _ := collect(s)(); !strings.HasSuffix(out, "\n900000\n") {
		t.Errorf("got %d bytes", len(out))
	}
}

// F42: what has no newline takes no memory.
func TestF42NoNewline(t *testing.T) {
	b := newBench(t)
	bu := b.bundle("dd", "if=/dev/zero", "bs=1M", "count=40")
	k := b.start(bu)
	worst := 0
	for {
		select {
		case <-k.Done():
			if worst > 16<<10 {
				t.Errorf("the shim had %d kB", worst)
			}
			return
		case <-time.After(5 * time.Millisecond):
			worst = max(worst, rss(k.(*task).shim))
		}
	}
}

// F43: a storm of execs leaves nothing behind.
func TestF43ExecStorm(t *testing.T) {
	b := newBench(t)
	k := b.start(b.bundle("sleep", "1000")).(*task)
	count := func() (ours, theirs int) {
		a, _ := os.ReadDir("/proc/self/fd")
		c, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", k.shim))
		return len(a), len(c)
	}
	execIn(t, k, model.Process{Args: []string{"true"}})
	ours, theirs := count()
	for range 5 {
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				e, err := k.Exec(ctxOf(t), model.Process{Args: []string{"sh", "-c", fmt.Sprintf("echo %d; exit %d", i, i)}, Env: []string{"PATH=/bin"}, TTY: i%5 == 0})
				if err != nil {
					t.Errorf("exec: %v", err)
					return
				}
				s, _ := e.Attach()
				wait := collect(s)
				st, err := e.Wait(ctxOf(t))
				out, _ := wait()
				if strings.TrimSpace(out) != fmt.Sprint(i) || st.Code != i || err != nil {
					t.Errorf("exec %d: got %q %d %v", i, out, st.Code, err)
				}
				e.Release()
			})
		}
		wg.Wait()
	}
	if _, err := k.Exec(ctxOf(t), model.Process{Args: []string{"nonesuch"}}); err == nil {
		t.Error("nonesuch ran")
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		o, th := count()
		if o <= ours && th <= theirs+2 { // the Go runtime opens two of its own at the first collection
			break
		}
		if time.Now().After(deadline) {
			list, _ := exec.Command("ls", "-l", fmt.Sprintf("/proc/%d/fd", k.shim)).Output()
			t.Fatalf("descriptors: %d and %d, had %d and %d\n%s", o, th, ours, theirs, list)
		}
		time.Sleep(10 * time.Millisecond)
	}
	for {
		p, err := k.Pids()
		if err == nil && len(p) == 1 {
			break
		}
		if time.Now().After(deadline) { // the last one's set-up process may still be dying
			t.Fatalf("processes: %v %v", p, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if len(k.execs) != 0 {
		t.Errorf("%d execs are remembered", len(k.execs))
	}
}

// F44: the minimal init reaps orphans by the thousand.
func TestF44Zombies(t *testing.T) {
	b := newBench(t)
	b.probe()
	bu := b.bundle("sh", "-c", "/probe zombies; sleep 1000")
	bu.Init = true
	k := b.create(bu)
	s, err := k.Attach(model.AttachOptions{Stdout: true})
	must(t, err)
	defer s.Close()
	must(t, k.Start(ctxOf(t)))
	s.Stdout.Read(make([]byte, 5))
	deadline := time.Now().Add(10 * time.Second)
	for {
		st, err := k.Stats()
		must(t, err)
		if st.PidsCurrent < 20 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d processes stay", st.PidsCurrent)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Nothing is left of a container that could not be made.
func TestFailedCreateLeavesNothing(t *testing.T) {
	b := newBench(t)
	for range 10 {
		bu := b.bundle("true")
		bu.Spec.Mounts = append(bu.Spec.Mounts, bind("/nonesuch", "/x"))
		if _, err := b.s.Create(ctxOf(t), bu); err == nil || !strings.Contains(err.Error(), "no such file or directory") {
			t.Fatalf("got %v", err)
		}
		for c := range b.s.cgroups.Controllers() {
			if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", c, testParent, bu.ID)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("cgroup stays: %v", err)
			}
		}
		if e, _ := os.ReadDir(bu.Dir); len(e) != 0 {
			t.Errorf("files stay: %v", e)
		}
	}
}

// Logs are rotated, compressed, and read as one.
func TestRotatedLogs(t *testing.T) {
	b := newBench(t)
	bu := b.bundle("sh", "-c", "seq 1 20000; sleep 1000")
	bu.Log.MaxSize, bu.Log.MaxFiles, bu.Log.Compress = 200000, 20, true
	b.start(bu)
	deadline := time.Now().Add(20 * time.Second)
	for {
		if m, _ := filepath.Glob(bu.Log.Path + ".*.gz"); len(m) >= 5 {
			break
		}
		if time.Now().After(deadline) {
			m, _ := filepath.Glob(bu.Log.Path + "*")
			t.Fatalf("files: %v", m)
		}
		time.Sleep(10 * time.Millisecond)
	}
	for {
		m, _ := filepath.Glob(bu.Log.Path + ".gz.*")
		if len(m) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left over: %v", m)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// The agent is spared when memory is short; its containers are not.
func TestOOMScore(t *testing.T) {
	b := newBench(t)
	old, err := os.ReadFile("/proc/self/oom_score_adj")
	must(t, err)
	must(t, os.WriteFile("/proc/self/oom_score_adj", []byte("77"), 0o644))
	defer os.WriteFile("/proc/self/oom_score_adj", old, 0o644)
	for _, want := range []int{0, 300} {
		bu := b.bundle("sh", "-c", "cat /proc/self/oom_score_adj; sleep 1000")
		if want != 0 {
			bu.Process.OOMScoreAdj = &want
		}
		k := b.start(bu)
		out, _, _ := execIn(t, k, model.Process{Args: []string{"cat", "/proc/1/oom_score_adj", "/proc/self/oom_score_adj"}})
		if strings.Join(strings.Fields(out), " ") != fmt.Sprint(want, " ", want) {
			t.Errorf("got %q, want %d", out, want)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	b := newBench(t)
	var wg sync.WaitGroup
	for i := range 30 {
		bu := b.bundle("sh", "-c", fmt.Sprintf("echo %d", i))
		wg.Go(func() {
			k, err := b.s.Create(ctxOf(t), bu)
			if err != nil {
				t.Error(err)
				return
			}
			if err := k.Start(ctxOf(t)); err != nil {
				t.Error(err)
			}
			<-k.Done()
			if st := k.Exit(); st.Code != 0 {
				t.Errorf("exit %d", st.Code)
			}
			if err := k.Delete(ctxOf(t)); err != nil {
				t.Error(err)
			}
			if err := k.Delete(ctxOf(t)); err != nil {
				t.Errorf("again: %v", err)
			}
		})
	}
	wg.Wait()
}
