package failpoint

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

func TestHit(t *testing.T) {
	if file := os.Getenv(Variable); file != "" {
		Hit("here")
		os.WriteFile(file, []byte("here\n"), 0o600)
		Hit("elsewhere")
		os.Stdout.WriteString("once\n")
		Hit("here")
		os.Exit(0)
	}
	Hit("here")
	c := exec.Command(os.Args[0], "-test.run", "TestHit")
	c.Env = append(os.Environ(), Variable+"="+filepath.Join(t.TempDir(), "point"))
	out, _ := c.Output()
	ws := c.ProcessState.Sys().(syscall.WaitStatus)
	if string(out) != "once\n" || !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Errorf("printed %q and ended with %v", out, c.ProcessState)
	}
}
