package docker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"machine/acceptance/engine"
)

// checkRoot runs the agent's check of its data root and wants an exit status.
func checkRoot(e *engine.Engine, status int, flags ...string) string {
	e.T.Helper()
	c := e.Host(append([]string{engine.Binary(e.T, "agent"), "check", "--data-root", filepath.Join(e.Dir, "data"), "--config-file", "/dev/null"}, flags...)...)
	out, _ := c.CombinedOutput()
	if got := c.ProcessState.ExitCode(); got != status {
		e.T.Errorf("check %v ended with %d, not %d:\n%s", flags, got, status, out)
	}
	return string(out)
}

// TestF32Check: a layer's record and a container's are lost. The agent starts
// without what needs them, a container that runs goes on, and check brings
// back the one and tells of the other.
func TestF32Check(t *testing.T) {
	e := start(t)
	e.Run("run", "-d", "--name", "runs", "busybox", "sleep", "1000")
	broken := e.Run("create", "--name", "broken", "busybox", "true")
	pid := pidOf(e, "runs")
	engine.Contains(t, "beside the engine", checkRoot(e, 0), "faults 0 (images 1, layers 1 ")
	engine.Contains(t, "mending beside the engine", checkRoot(e, 2, "--repair"), "is in use by another engine")
	e.Kill()
	records, err := filepath.Glob(filepath.Join(e.Dir, "data/overlay2/*/layer.json"))
	if err != nil || len(records) != 1 {
		t.Fatal(records, err)
	}
	for _, f := range append(records, filepath.Join(e.Dir, "data/records/containers", broken+".json")) {
		if err := os.WriteFile(f, []byte("\x00\x00"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	e.Start()
	engine.Equal(t, "images", e.Run("images", "-q"), "")
	engine.Equal(t, "the one that runs", pidOf(e, "runs"), pid)
	e.Fails(125, "No such image", "run", "--pull", "never", "busybox", "true")
	out := checkRoot(e, 1, "--quick")
	for _, what := range []string{"busybox:latest", "data/broken/", broken + ".json.broken"} {
		engine.Contains(t, "told while it runs", out, what)
	}
	e.Kill()
	out = checkRoot(e, 1, "--repair")
	engine.Contains(t, "mended", out, "put back: image busybox:latest")
	if strings.Count(out, "put back") != 2 {
		t.Errorf("told:\n%s", out)
	}
	e.Start()
	engine.Equal(t, "it works", e.Run("run", "--rm", "busybox", "echo", "yes"), "yes")
	engine.Equal(t, "the one that runs", pidOf(e, "runs"), pid)
	engine.Equal(t, "the one that runs", e.Run("exec", "runs", "echo", "yes"), "yes")
	e.Kill()
	engine.Contains(t, "let go", checkRoot(e, 0, "--discard"), "deleted")
	e.Start()
	engine.Contains(t, "at the end", checkRoot(e, 0), "faults 0 (images 1, layers 1 ")
	e.Audit()
}
