package docker

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"machine/acceptance/engine"
)

func itoa(n int) string { return strconv.Itoa(n) }

func atoi(t testing.TB, s string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil {
		t.Fatalf("%q is no number", s)
	}
	return n
}

// TestF30ShimKilled: without its shim a container is dead, at once and
// wholly, whether the agent sees it happen or finds it later.
func TestF30ShimKilled(t *testing.T) {
	e := start(t)
	e.Run("run", "-d", "--name", "seen", "-p", "8080:80", "busybox", "sleep", "1000")
	e.Run("run", "-d", "--name", "later", "-v", "/anon", "busybox", "sh", "-c", "sleep 1001 & sleep 1002")
	e.Run("run", "-d", "--name", "other", "busybox", "sleep", "1003")
	e.HostRun("kill", "-9", shimOf(e, "seen"))
	e.Eventually("the container is dead", func() bool { return status(e, "seen") == "exited" })
	engine.Equal(t, "exit code", e.Run("inspect", "-f", "{{.State.ExitCode}} {{.State.Pid}} {{.State.OOMKilled}}", "seen"), "137 0 false")
	e.Run("start", "seen")
	engine.Contains(t, "its port was free again", e.Run("port", "seen"), "80/tcp -> 0.0.0.0:8080")
	shim := shimOf(e, "later")
	e.Kill()
	e.HostRun("kill", "-9", shim)
	e.Start()
	engine.Equal(t, "found later", status(e, "later"), "exited")
	e.Eventually("none of its processes is left", func() bool {
		out, _ := e.HostRun("pgrep", "-f", "^sleep 100[12]$")
		return out == ""
	})
	engine.Equal(t, "the others live", status(e, "other")+status(e, "seen"), "runningrunning")
	e.Run("start", "later")
	e.Audit()
}

// TestF32BrokenRecords: what cannot be read is set aside; the agent starts
// and all else works.
func TestF32BrokenRecords(t *testing.T) {
	e := start(t)
	garbage := map[string]string{"empty": "", "garbage": "\x00\x01garbage{{{", "torn": `{"ID":"`, "list": "[]", "null": "null", "bare": "{}"}
	var files []string
	for name := range garbage {
		id := e.Run("create", "--name", name, "busybox", "true")
		file := filepath.Join(e.Dir, "data/records/containers", id+".json")
		if _, err := os.Stat(file); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	e.Run("run", "-d", "--name", "fine", "busybox", "sleep", "1000")
	pid := pidOf(e, "fine")
	e.Kill()
	i := 0
	for _, text := range garbage {
		if err := os.WriteFile(files[i], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		i++
	}
	e.Start()
	engine.Equal(t, "the other one", e.Run("ps", "-a", "--format", "{{.Names}}"), "fine")
	engine.Equal(t, "runs on", pidOf(e, "fine"), pid)
	engine.Equal(t, "and works", e.Run("exec", "fine", "echo", "yes"), "yes")
	for _, f := range files {
		if _, err := os.Stat(f + ".broken"); err != nil {
			t.Errorf("a broken record was not set aside: %v", err)
		}
		if !strings.Contains(e.Log(), filepath.Base(f)) {
			t.Errorf("the log does not tell of %s", filepath.Base(f))
		}
		os.Remove(f + ".broken")
	}
	for name := range garbage { // its name is free, and nothing of it is in the way
		engine.Equal(t, name, e.Run("run", "--name", name, "busybox", "echo", name), name)
	}
	e.Restart()
	engine.Equal(t, "afterwards", fmt.Sprint(len(strings.Fields(e.Run("ps", "-aq")))), fmt.Sprint(len(garbage)+1))
	e.Audit()
}

// TestF32RunningRecord: nobody can stop or see a container whose record is
// lost, so it must not run on unseen.
func TestF32RunningRecord(t *testing.T) {
	e := start(t)
	id := e.Run("run", "-d", "--name", "lost", "-p", "8080:80", "busybox", "sleep", "1000")
	file := filepath.Join(e.Dir, "data/records/containers", id+".json")
	e.Kill()
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	e.Start()
	e.Eventually("its processes are ended", func() bool {
		out, _ := e.HostRun("pgrep", "-f", "^sleep 1000$")
		return out == ""
	})
	os.Remove(file + ".broken")
	e.Run("run", "-d", "--name", "lost", "-p", "8080:80", "busybox", "sleep", "1000")
	if err := os.RemoveAll(filepath.Join(e.Dir, "data/containers", id)); err != nil { // kept, for somebody to look at
		t.Error(err)
	}
	e.Audit()
}

// TestF33DiskFull: with no byte left for its data the agent stays up, and
// what frees space works.
func TestF33DiskFull(t *testing.T) {
	e := start(t)
	data := filepath.Join(e.Dir, "data")
	e.Kill()
	if out, err := e.HostRun("mount", "-t", "tmpfs", "-o", "size=48m,mode=710", "tmpfs", data); err != nil {
		t.Skipf("no tmpfs here: %v %s", err, out)
	}
	e.Start()
	e.Busybox()
	e.Run("run", "-d", "--name", "keep", "busybox", "sleep", "1000")
	e.Run("run", "-d", "--name", "stops", "busybox", "sleep", "1000")
	e.Run("create", "--name", "idle", "busybox", "true")
	e.Run("volume", "create", "spare")
	e.Run("exec", "keep", "sh", "-c", "dd if=/dev/zero of=/fill bs=64k 2>/dev/null; dd if=/dev/zero of=/fill2 bs=1 count=4096 2>/dev/null; true")
	pid := e.AgentPid()
	full, _ := e.HostRun("sh", "-c", "df -k "+data+" | tail -1 | awk '{print $4}'")
	engine.Equal(t, "space left", full, "0")
	if r := e.Try("run", "--name", "more", "busybox", "sh", "-c", "dd if=/dev/zero of=/x bs=1M count=1"); r.Code == 0 {
		t.Error("a container wrote a megabyte to a full disk")
	}
	engine.Equal(t, "listed", fmt.Sprint(strings.Contains(e.Run("ps", "-a"), "keep")), "true")
	e.Run("stop", "-t", "0", "stops")
	engine.Equal(t, "stopped", e.Run("inspect", "-f", "{{.State.Running}}", "stops"), "false")
	e.Run("kill", "keep")
	e.Eventually("the end is seen", func() bool { return e.Run("inspect", "-f", "{{.State.Running}}", "keep") == "false" })
	e.Run("rm", "idle")
	e.Run("volume", "rm", "spare")
	e.Run("container", "prune", "-f")
	e.Run("volume", "prune", "-a", "-f")
	engine.Equal(t, "all gone", e.Run("ps", "-aq"), "")
	engine.Equal(t, "the agent lived", fmt.Sprint(e.AgentPid()), fmt.Sprint(pid))
	engine.Equal(t, "space is back", e.Run("run", "--rm", "busybox", "sh", "-c", "dd if=/dev/zero of=/x bs=1M count=8 2>/dev/null && echo yes"), "yes")
	e.Restart()
	engine.Equal(t, "after a restart", e.Run("run", "--rm", "busybox", "echo", "yes"), "yes")
	if out, _ := e.HostRun("ls", data+"/containers", data+"/records/containers"); strings.Contains(out, "json") {
		t.Errorf("left behind: %s", out)
	}
}
