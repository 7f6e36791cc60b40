package shim

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"machine/agent/fault"
	"machine/agent/model"
)

func TestRun(t *testing.T) {
	b := newBench(t)
	bu := b.bundle("sh", "-c", "echo out; echo err >&2; exit 7")
	out, errs, st := b.run(bu)
	if out != "out\n" || errs != "err\n" || st.Code != 7 {
		t.Errorf("got %q %q %d, want out err 7", out, errs, st.Code)
	}
	data, err := os.ReadFile(bu.Log.Path)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(data); !strings.Contains(got, `{"log":"out\n","stream":"stdout","time":"`) || !strings.Contains(got, `{"log":"err\n","stream":"stderr","time":"`) {
		t.Errorf("log: %s", got)
	}
}

func TestInside(t *testing.T) {
	b := newBench(t)
	got := b.sh(`hostname; echo $$; id; ls /dev; cat /proc/self/status | grep -E "Cap|NoNew|Seccomp:"; ls /proc/self/fd; pwd; env; umask`)
	t.Log(got)
	for _, want := range []string{"box\n1\n", "uid=0(root) gid=0(root) groups=0(root),10(wheel)", "CapEff:\t00000000a80425fb", "CapInh:\t0000000000000000",
		"CapAmb:\t0000000000000000", "Seccomp:\t2", "HOME=/root", "0022"} {
		if !strings.Contains(got, want) {
			t.Errorf("misses %q", want)
		}
	}
}

func TestStdin(t *testing.T) {
	b := newBench(t)
	bu := b.bundle("cat")
	bu.Process.OpenStdin, bu.StdinOnce = true, true
	k := b.create(bu)
	s, err := k.Attach(model.AttachOptions{Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	wait := collect(s)
	if err := k.Start(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	want := strings.Repeat("0123456789abcdef\n", 100000)
	if _, err := io.WriteString(s.Stdin, want); err != nil {
		t.Fatal(err)
	}
	s.Stdin.Close()
	if st := await(t, k); st.Code != 0 {
		t.Errorf("exit %d", st.Code)
	}
	if out, _ := wait(); out != want {
		t.Errorf("got %d bytes, want %d", len(out), len(want))
	}
}

func TestKill(t *testing.T) {
	b := newBench(t)
	k := b.start(b.bundle("sh", "-c", "trap 'exit 3' TERM; while true; do sleep 0.1; done"))
	time.Sleep(50 * time.Millisecond)
	if err := k.Kill(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if st := await(t, k); st.Code != 3 {
		t.Errorf("exit %d, want 3", st.Code)
	}
	k = b.start(b.bundle("sleep", "1000"))
	if err := k.Kill(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if st := await(t, k); st.Code != 137 {
		t.Errorf("exit %d, want 137", st.Code)
	}
	if err := k.Kill(unix.SIGKILL); err == nil {
		t.Error("killing an ended container gave no error")
	}
}

func TestExec(t *testing.T) {
	b := newBench(t)
	k := b.start(b.bundle("sleep", "1000"))
	out, errs, st := execIn(t, k, model.Process{Args: []string{"sh", "-c", "echo hi; echo there >&2; id; ps; cat /proc/self/status | grep -E 'Cap|Secc'; exit 5"}, Caps: defaultCaps})
	if st.Code != 5 || !strings.HasPrefix(out, "hi\n") || errs != "there\n" {
		t.Errorf("got %q %q %d", out, errs, st.Code)
	}
	if !strings.Contains(out, "CapInh:\t0000000000000000") || !strings.Contains(out, "Seccomp:\t2") {
		t.Errorf("got %s", out)
	}
	t.Log(out)
	_, err := k.Exec(ctxOf(t), model.Process{Args: []string{"nonesuch"}, Env: []string{"PATH=/bin"}})
	if err == nil || !strings.Contains(err.Error(), `exec: "nonesuch": executable file not found in $PATH`) {
		t.Errorf("error %v", err)
	}
}

func TestTTY(t *testing.T) {
	b := newBench(t)
	bu := b.bundle("sh", "-c", "tty; stty size; read x; echo got $x; stty size")
	bu.Process.TTY, bu.Process.OpenStdin, bu.Process.ConsoleSize = true, true, [2]uint{24, 80}
	k := b.create(bu)
	s, err := k.Attach(model.AttachOptions{Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	wait := collect(s)
	if err := k.Start(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	if err := k.Resize(40, 100); err != nil {
		t.Error(err)
	}
	io.WriteString(s.Stdin, "word\n")
	await(t, k)
	out, _ := wait()
	for _, want := range []string{"/dev/pts/0", "got word", "40 100"} {
		if !strings.Contains(out, want) {
			t.Errorf("got %q, want %q in it", out, want)
		}
	}
}

func TestExecTTY(t *testing.T) {
	b := newBench(t)
	k := b.start(b.bundle("sleep", "1000"))
	out, _, st := execIn(t, k, model.Process{Args: []string{"sh", "-c", "tty; stty size; exit 4"}, TTY: true, ConsoleSize: [2]uint{30, 90}, Caps: defaultCaps})
	if st.Code != 4 || !strings.Contains(out, "/dev/pts/") || !strings.Contains(out, "30 90") {
		t.Errorf("got %q %d", out, st.Code)
	}
}

func TestStartErrors(t *testing.T) {
	b := newBench(t)
	b.write("plain", "x", 0o644)
	b.write("junk", "\x01\x02", 0o755)
	for _, c := range []struct{ arg, want string }{
		{"nonesuch", `exec: "nonesuch": executable file not found in $PATH`},
		{"/nonesuch", `exec: "/nonesuch": stat /nonesuch: no such file or directory`},
		{"/plain", `exec: "/plain": permission denied`},
		{"/bin", `exec: "/bin": is a directory`},
		{"/junk", `exec /junk: exec format error`},
	} {
		k := b.create(b.bundle(c.arg))
		err := k.Start(ctxOf(t))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", c.arg, err, c.want)
		}
		await(t, k)
	}
}

func TestLoad(t *testing.T) {
	b := newBench(t)
	bu := b.bundle("sh", "-c", "until [ -e /tmp/go ]; do sleep 0.05; done; exit 9")
	k := b.start(bu)
	bu2 := b.bundle("sh", "-c", "exit 8")
	k2 := b.start(bu2)
	await(t, k2)
	other := b.shim()
	again, err := other.Load(ctxOf(t), bu.ID, bu.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if again.Pid() != k.Pid() {
		t.Errorf("pid %d, want %d", again.Pid(), k.Pid())
	}
	if out, _, _ := execIn(t, again, model.Process{Args: []string{"echo", "hi"}}); out != "hi\n" {
		t.Errorf("exec after load: %q", out)
	}
	execIn(t, again, model.Process{Args: []string{"touch", "/tmp/go"}, Env: []string{"PATH=/bin"}})
	if st := await(t, again); st.Code != 9 {
		t.Errorf("exit %d, want 9", st.Code)
	}
	if st := await(t, k); st.Code != 9 {
		t.Errorf("exit %d, want 9", st.Code)
	}
	ended, err := other.Load(ctxOf(t), bu2.ID, bu2.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if st := await(t, ended); st.Code != 8 {
		t.Errorf("exit %d, want 8", st.Code)
	}
}

// A container that was made but not started when the agent died is removed.
func TestLoadNeverStarted(t *testing.T) {
	b := newBench(t)
	bu := b.bundle("true")
	k := b.create(bu)
	if _, err := b.shim().Load(ctxOf(t), bu.ID, bu.Dir); !fault.Is(err, fault.NotFound) {
		t.Errorf("got %v", err)
	}
	await(t, k)
}

// The process that waits for the next container may die: the container does
// not mind. It ends with the Shim.
// childOf finds the one child of a process, whichever of its threads made it.
func childOf(pid int) string {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	var all strings.Builder
	for _, name := range files {
		list, _ := os.ReadFile(name)
		all.Write(list)
	}
	return strings.TrimSpace(all.String())
}

func TestSpare(t *testing.T) {
	b := newBench(t)
	waitFor := func() spawned {
		for range 5000 {
			if p, have := b.s.spare.Peek(); have {
				return p
			}
			time.Sleep(time.Millisecond)
		}
		t.Fatal("no spare shim")
		return spawned{}
	}
	first := waitFor()
	must(t, unix.Kill(first.pid, unix.SIGKILL))
	for first.alive() {
		time.Sleep(time.Millisecond)
	}
	k := b.start(b.bundle("sh", "-c", "exit 3"))
	<-k.Done()
	if c := k.Exit().Code; c != 3 {
		t.Errorf("exit code %d", c)
	}
	must(t, k.Delete(ctxOf(t)))
	second := waitFor()
	if second.pid == first.pid {
		t.Fatal("the dead one is offered again")
	}
	// Its stage waits, too, and becomes the container's process.
	stage := ""
	for range 5000 {
		stage = childOf(second.pid)
		line, _ := os.ReadFile("/proc/" + stage + "/cmdline")
		if strings.HasPrefix(string(line), "warm\x00") {
			break
		}
		time.Sleep(time.Millisecond)
	}
	k = b.create(b.bundle("true"))
	if stage != strconv.Itoa(k.Pid()) {
		t.Errorf("the stage that waited is %q, the container's process %d", stage, k.Pid())
	}
	must(t, k.Start(ctxOf(t)))
	<-k.Done()
	must(t, k.Delete(ctxOf(t)))
	second = waitFor()
	b.s.Close()
	if err := unix.Kill(second.pid, 0); err != unix.ESRCH {
		t.Errorf("after Close the spare's process is there: %v", err)
	}
}

// TestNoStageAhead: where containers get a user namespace, a shim does not make
// a stage that would only be killed.
func TestNoStageAhead(t *testing.T) {
	b := newBench(t)
	for mode, remapped := range map[string]bool{"warm": false, "init": true} {
		s, err := New(Options{Root: b.dir, CgroupParent: testParent, Binary: shimBinary, Remapped: remapped})
		must(t, err)
		k, err := s.Create(ctxOf(t), b.bundle("true"))
		must(t, err)
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", k.Pid()))
		must(t, err)
		if got, _, _ := strings.Cut(string(line), "\x00"); got != mode {
			t.Errorf("remapped %v: the container's process was made as %q, want %q", remapped, got, mode)
		}
		must(t, k.Delete(ctxOf(t)))
		s.Close()
	}
}
