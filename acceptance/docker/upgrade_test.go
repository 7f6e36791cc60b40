//go:build upgrade

package docker

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"machine/acceptance/engine"
)

// oldAgent is the program of another commit, which "make upgrade-from" builds.
func oldAgent(t *testing.T) string {
	t.Helper()
	old := os.Getenv("UPGRADE_FROM")
	if old == "" {
		t.Skip("UPGRADE_FROM names no agent of another commit: make upgrade-from")
	}
	a, err1 := exec.Command(old, "--version").Output()
	b, err2 := exec.Command(engine.Binary(t, "agent"), "--version").Output()
	if err1 != nil || err2 != nil || string(a) == string(b) {
		t.Fatalf("the agents call themselves %q and %q: %v, %v", a, b, err1, err2)
	}
	return old
}

const counting = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"

// populate starts one container of each kind.
func populate(e *engine.Engine) {
	e.T.Helper()
	e.Run("network", "create", "net")
	e.Run("run", "-d", "--name", "web", "--network", "net", "-p", "8080:80", "-v", "vol:/v", "--restart", "always", "busybox", "sh", "-c",
		"echo hello >/tmp/index.html; httpd -p 80 -h /tmp; echo kept >/v/file; "+counting)
	e.Run("run", "-d", "--name", "local", "--log-driver", "local", "--init", "-m", "64m", "busybox", "sh", "-c", counting)
	e.Run("run", "-d", "-t", "-i", "--name", "term", "busybox", "sh")
	e.Run("run", "-d", "--name", "paused", "busybox", "sleep", "1000")
	e.Run("run", "-d", "--name", "seven", "--stop-signal", "USR1", "busybox", "sh", "-c", "trap 'exit 7' USR1; echo up; while :; do sleep 0.05; done")
	e.Run("run", "-d", "--name", "soon", "busybox", "sh", "-c", "while [ ! -e /go ]; do sleep 0.05; done; echo bye; exit 5")
	e.Run("run", "-d", "--name", "sick", "--health-cmd", "test -e /well", "--health-interval", "200ms", "--health-retries", "1", "busybox", "sleep", "1000")
	e.Try("run", "--name", "done", "busybox", "sh", "-c", "echo said; exit 3")
	e.Run("create", "--name", "made", "busybox", "echo", "later")
	e.Run("commit", "done", "snapshot:1")
	e.Eventually("the trap is set", func() bool { return e.Run("logs", "seven") == "up" })
	e.Run("pause", "paused")
}

// takenOver goes through all that can be done to what populate made.
func takenOver(e *engine.Engine, pids map[string]string) {
	t := e.T.(*testing.T)
	t.Helper()
	for name, pid := range pids {
		engine.Equal(t, name+" runs on", pidOf(e, name), pid)
	}
	for _, name := range []string{"web", "local", "seven", "sick", "soon"} {
		engine.Equal(t, "exec in "+name, e.Run("exec", name, "echo", "yes"), "yes")
	}
	engine.Equal(t, "exec's code", itoa(e.Try("exec", "web", "sh", "-c", "exit 9").Code), "9")
	engine.Equal(t, "exec's input", e.Input("in\n", "exec", "-i", "web", "cat"), "in")
	engine.Equal(t, "volume", e.Run("exec", "web", "cat", "/v/file"), "kept")
	engine.Equal(t, "name", e.Run("run", "--rm", "--network", "net", "busybox", "wget", "-qO-", "http://web/"), "hello")
	if out, err := e.HostRun("curl", "-s", "-m", "5", "http://127.0.0.1:8080/"); err != nil || out != "hello" {
		t.Errorf("published port: %q, %v", out, err)
	}
	for _, name := range []string{"web", "local"} {
		from := strings.Count(e.Run("logs", name), "\n")
		e.Eventually("the log of "+name+" goes on", func() bool { return strings.Count(e.Run("logs", name), "\n") > from+5 })
		for i, l := range strings.Split(e.Run("logs", name), "\n") {
			if l != itoa(i+1) {
				t.Fatalf("%s: line %d of the log is %q", name, i+1, l)
			}
		}
	}
	engine.Contains(t, "stats", e.Run("stats", "--no-stream", "--format", "{{.MemUsage}}", "local"), "64MiB")
	engine.Contains(t, "top", e.Run("top", "local"), "sh -c")
	engine.Equal(t, "paused", status(e, "paused"), "paused")
	e.Run("unpause", "paused")
	engine.Equal(t, "thawed", e.Run("exec", "paused", "echo", "yes"), "yes")
	e.Run("exec", "soon", "touch", "/go")
	engine.Equal(t, "an end", e.Run("wait", "soon"), "5")
	engine.Equal(t, "its last word", e.Run("logs", "soon"), "bye")
	e.Run("exec", "sick", "touch", "/well")
	e.Eventually("health", func() bool { return e.Run("inspect", "-f", "{{.State.Health.Status}}", "sick") == "healthy" })
	e.Run("stop", "seven")
	engine.Equal(t, "stopped by its own signal", e.Run("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "seven"), "exited 7")
	engine.Equal(t, "ended before", e.Run("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "done"), "exited 3")
	engine.Equal(t, "said before", e.Run("logs", "done"), "said")
	engine.Equal(t, "made before", e.Run("start", "-a", "made"), "later")
	engine.Equal(t, "image made before", e.Run("run", "--rm", "snapshot:1", "echo", "yes"), "yes")
	copied := filepath.Join(e.Dir, "copied")
	e.Run("cp", "web:/v/file", copied)
	e.Run("cp", copied, "local:/tmp/copied")
	engine.Equal(t, "copied", e.Run("exec", "local", "cat", "/tmp/copied"), "kept")
	e.HostRun("kill", "-9", pids["web"])
	e.Eventually("the restart policy holds", func() bool {
		return e.Run("inspect", "-f", "{{.RestartCount}} {{.State.Running}}", "web") == "1 true"
	})
	for _, name := range []string{"local", "term", "seven", "web"} {
		e.Run("restart", "-t", "0", name)
		engine.Equal(t, "restarted "+name, e.Run("exec", name, "echo", "yes"), "yes")
	}
	e.Run("update", "-m", "48m", "--memory-swap", "48m", "local")
}

func pidsOf(e *engine.Engine) map[string]string {
	pids := map[string]string{}
	for _, name := range []string{"web", "local", "term", "paused", "seven", "soon", "sick"} {
		pids[name] = pidOf(e, name)
	}
	return pids
}

func cleared(e *engine.Engine) {
	e.T.Helper()
	e.Run("rm", "-f", "-v", "web", "local", "term", "paused", "seven", "soon", "sick", "done", "made")
	e.Run("volume", "rm", "vol")
	e.Run("network", "rm", "net")
	e.Run("rmi", "snapshot:1")
	e.Audit()
}

// TestF54FromOld: this tree's agent takes over what an older one runs, after
// an orderly end and after a kill.
func TestF54FromOld(t *testing.T) {
	for _, how := range []string{"terminated", "killed"} {
		t.Run(how, func(t *testing.T) {
			old := oldAgent(t)
			e := start(t)
			e.Terminate()
			e.Agent = old
			e.Start()
			populate(e)
			pids := pidsOf(e)
			if how == "killed" {
				e.Kill()
			} else {
				e.Terminate()
			}
			e.Agent = ""
			e.Start()
			takenOver(e, pids)
			cleared(e)
		})
	}
}

// TestF54FromNew: an older agent takes back what this tree's one runs, or says
// clearly that it cannot; then nothing is lost for this one.
func TestF54FromNew(t *testing.T) {
	old := oldAgent(t)
	e := start(t)
	populate(e)
	pids := pidsOf(e)
	e.Terminate()
	e.Agent = old
	if !e.Launch() {
		t.Logf("the older agent refuses:\n%s", e.Log())
		engine.Contains(t, "why", e.Log(), "newer")
		e.Agent = ""
		e.Start()
	}
	takenOver(e, pids)
	e.Terminate()
	e.Agent = ""
	e.Start() // and forward again
	for _, name := range []string{"local", "term", "seven", "web"} {
		engine.Equal(t, "exec in "+name, e.Run("exec", name, "echo", "yes"), "yes")
	}
	cleared(e)
}
