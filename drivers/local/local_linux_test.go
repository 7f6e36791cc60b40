package local_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"machine/acceptance/hosts"
	"machine/drivers/driverstest"
	"machine/drivers/local"
)

func TestSuite(t *testing.T) {
	hosts.Isolated(t)
	agent := hosts.FakeAgent(t, "fake")
	driverstest.Run(t, driverstest.Case{
		Kind: local.Kind(), Store: hosts.RealStore(t), Agent: func() (string, error) { return agent, nil },
	})
	if out, _ := exec.Command("ip", "-o", "link").Output(); strings.Contains(string(out), "mach") {
		t.Errorf("links are left:\n%s", out)
	}
}

// TestF26StalePid: a record whose number is another process's now is not ours.
func TestF26StalePid(t *testing.T) {
	hosts.Isolated(t)
	agent, store := hosts.FakeAgent(t, "fake"), hosts.RealStore(t)
	dir := filepath.Join(store, "machines", "m")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	sleep := exec.Command("sleep", "600")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sleep.Process.Kill(); _ = sleep.Wait() }()
	rec := `{"PID":` + strconv.Itoa(sleep.Process.Pid) + `,"Start":1}`
	if err := os.WriteFile(filepath.Join(dir, "host.pid"), []byte(rec), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(agent, "host", "status", "--dir", dir).CombinedOutput()
	if err != nil || strings.Contains(string(out), `"Running":true`) {
		t.Errorf("status: %s, %v", out, err)
	}
	if out, err := exec.Command(agent, "host", "kill", "--dir", dir).CombinedOutput(); err != nil {
		t.Errorf("kill: %s, %v", out, err)
	}
	if err := sleep.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("another process was hit: %v", err)
	}
}
