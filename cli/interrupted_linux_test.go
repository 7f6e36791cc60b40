package cli_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"machine/acceptance/hosts"
)

// TestInterrupted cuts creates off at random moments, by Ctrl-C or SIGKILL, and
// counts what is left: hosts, keys and files of machines that no record knows,
// and stores that are not sound. INTERRUPTED is how many (make interrupted),
// INTERRUPTED_SEED repeats a run.
func TestInterrupted(t *testing.T) {
	hosts.Isolated(t)
	n := 10
	if s := os.Getenv("INTERRUPTED"); s != "" {
		n, _ = strconv.Atoi(s)
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("INTERRUPTED_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	bin := build(t)
	t.Setenv("MACHINE_AGENT", hosts.FakeAgent(t, "fake-1"))
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	store := newStore(t)
	h := hosts.New(t)
	whole := wholeCreate(t, bin)
	c := counts{}
	for i := range n {
		local, kill := rng.IntN(4) > 0, rng.IntN(2) == 0
		args := []string{"create", "-d", "local", "--context", "dev"}
		if !local {
			args = []string{"create", "-d", "generic", "--generic-ip-address", h.IP, "--generic-ssh-key", h.Key, "--context", "dev"}
		}
		at := time.Duration(rng.Int64N(int64(whole) * 5 / 4))
		c.cut(bin, args, at, kill)
		c.cleanUp(t, store, rng.IntN(2) == 0)
		c.audit(t, store)
		if t.Failed() {
			t.Fatalf("round %d (%v at %v, kill %v), seed %d", i, args[2], at, kill, seed)
		}
	}
	fmt.Printf("interrupted: %d creates, %d by SIGINT, %d by SIGKILL, %d whole before that; %d resumed, %d removed; leaked: 0 hosts, 0 keys, 0 files (seed %d)\n",
		n, c.ints, c.kills, c.whole, c.resumed, c.removed, seed)
}

type counts struct{ ints, kills, whole, resumed, removed int }

// wholeCreate tells how long a create takes when it is left alone.
func wholeCreate(t *testing.T, bin string) time.Duration {
	t.Helper()
	start := time.Now()
	if out, err := exec.Command(bin, "create", "-d", "local", "dev").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	took := time.Since(start)
	must(t, "rm", "-y", "dev")
	return took
}

func (c *counts) cut(bin string, args []string, at time.Duration, kill bool) {
	cmd := exec.Command(bin, args...)
	if cmd.Start() != nil {
		return
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err == nil {
			c.whole++
		}
		return
	case <-time.After(at):
	}
	if kill {
		c.kills++
		_ = cmd.Process.Kill()
	} else {
		c.ints++
		_ = cmd.Process.Signal(os.Interrupt)
	}
	<-done
}

// cleanUp does what the next user would: go on, or remove.
func (c *counts) cleanUp(t *testing.T, store string, resume bool) {
	t.Helper()
	must(t, "ls", "-q") // the store can be read after each
	if _, err := os.Stat(filepath.Join(store, "machines/dev")); err != nil {
		return
	}
	if _, err := os.Stat(filepath.Join(store, "machines/dev/config.json")); resume && err == nil {
		code, out, errs := machine(t, "create", "--resume", "dev")
		if code != 0 && !strings.Contains(errs, "nothing to resume") {
			t.Errorf("resume: %s %s", out, errs)
		}
		must(t, "config", "dev")
		c.resumed++
	}
	must(t, "rm", "-y", "dev")
	c.removed++
}

// audit looks for what is left of machines when there is none.
func (c *counts) audit(t *testing.T, store string) {
	t.Helper()
	noTrace(t)
	noProcess(t)
	for _, dir := range []string{filepath.Join(store, "machines"), filepath.Join(os.Getenv("DOCKER_CONFIG"), "contexts/meta"), filepath.Join(os.Getenv("DOCKER_CONFIG"), "contexts/tls")} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if e.Name() != ".locks" {
				t.Errorf("left: %s", filepath.Join(dir, e.Name()))
			}
		}
	}
	_ = filepath.WalkDir(store, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && (strings.Contains(d.Name(), ".tmp") || strings.Contains(d.Name(), "id_ed25519")) {
			t.Errorf("left: %s", path)
		}
		return nil
	})
}
