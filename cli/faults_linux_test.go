package cli_test

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"machine/acceptance/hosts"
	"machine/certs"
)

// build makes the real program, for tests that kill it.
func build(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "machine")
	cmd := exec.Command("go", "build", "-o", out, "machine/cli/machine")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, msg)
	}
	return out
}

// TestF21FirstRunRace: sixteen programs meet an empty store at once; one CA
// comes out, and a client certificate that it signed.
func TestF21FirstRunRace(t *testing.T) {
	bin, store := build(t), newStore(t)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			out, err := exec.Command(bin, "create", "-d", "none", "--url", "tcp://127.0.0.1:1", fmt.Sprintf("m%d", i)).CombinedOutput()
			if err != nil {
				t.Errorf("create m%d: %v: %s", i, err, out)
			}
		})
	}
	wg.Wait()
	ca, err1 := os.ReadFile(filepath.Join(store, "certs/ca.pem"))
	cl, err2 := os.ReadFile(filepath.Join(store, "certs/cert.pem"))
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if err := certs.Check(ca, cl, x509.ExtKeyUsageClientAuth, nil, time.Now()); err != nil {
		t.Error(err)
	}
	for i := range 16 {
		if got, _ := os.ReadFile(filepath.Join(store, "machines", fmt.Sprintf("m%d", i), "ca.pem")); !bytes.Equal(got, ca) {
			t.Errorf("m%d has another CA", i)
		}
	}
}

// TestF19DuplicateName: of many creates of one name, one wins.
func TestF19DuplicateName(t *testing.T) {
	bin := build(t)
	newStore(t)
	var wins atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			out, err := exec.Command(bin, "create", "-d", "none", "--url", fmt.Sprintf("tcp://127.0.0.1:%d", i+1), "m").CombinedOutput()
			if err == nil {
				wins.Add(1)
			} else if !strings.Contains(string(out), `Docker machine "m" already exists`) {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	wg.Wait()
	if wins.Load() != 1 {
		t.Errorf("%d creates won", wins.Load())
	}
}

// TestF2KillInCreate kills create at many moments. Whatever is left, it can be
// resumed or removed, and nothing stays in the kernel.
func TestF2KillInCreate(t *testing.T) {
	hosts.Isolated(t)
	bin := build(t)
	t.Setenv("MACHINE_AGENT", hosts.FakeAgent(t, "fake-1"))
	for i := range 12 {
		store := newStore(t)
		cmd := exec.Command(bin, "create", "-d", "local", "dev")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(10+i*35) * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		names := strings.TrimSpace(must(t, "ls", "-q"))
		_, dirErr := os.Stat(filepath.Join(store, "machines/dev"))
		switch {
		case names == "dev" && i%2 == 0:
			code, out, errs := machine(t, "create", "--resume", "dev")
			if code != 0 && !strings.Contains(errs, "nothing to resume") {
				t.Errorf("resume after %d: %s %s", i, out, errs)
			}
			must(t, "config", "dev")
			must(t, "rm", "-y", "dev")
		case dirErr == nil:
			must(t, "rm", "-y", "dev")
		}
		if _, err := os.Stat(filepath.Join(store, "machines/dev")); err == nil {
			t.Errorf("kill %d: the machine's folder is left", i)
		}
		noTrace(t)
		noProcess(t)
	}
}

// TestF1CtrlC interrupts create at many moments: it ends within 2 s, says so by
// its exit code, and what is left can be resumed or removed.
func TestF1CtrlC(t *testing.T) {
	hosts.Isolated(t)
	bin := build(t)
	t.Setenv("MACHINE_AGENT", hosts.FakeAgent(t, "fake-1"))
	for i := range 8 {
		store := newStore(t)
		cmd := exec.Command(bin, "create", "-d", "local", "dev")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(30+i*45) * time.Millisecond)
		_ = cmd.Process.Signal(os.Interrupt)
		start := time.Now()
		err := cmd.Wait()
		budget(t, fmt.Sprintf("interrupt %d", i), time.Since(start), 2*time.Second)
		if code := cmd.ProcessState.ExitCode(); err != nil && code != 130 && code != -1 {
			t.Errorf("interrupt %d: exit %d", i, code)
		}
		if _, dirErr := os.Stat(filepath.Join(store, "machines/dev")); dirErr == nil {
			if i%2 == 0 && err != nil {
				must(t, "create", "--resume", "dev")
				must(t, "config", "dev")
			}
			must(t, "rm", "-y", "dev")
		}
		noTrace(t)
		noProcess(t)
	}
}

// noProcess looks for an init that nobody knows of.
func noProcess(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		out, _ := exec.Command("sh", "-c", "grep -lz 'host.*init' /proc/[0-9]*/cmdline 2>/dev/null | grep -v self").Output()
		left := ""
		for _, f := range strings.Fields(string(out)) {
			if data, _ := os.ReadFile(f); bytes.HasPrefix(data, []byte("machine-agent\x00host\x00init")) {
				left += f + " "
			}
		}
		if left == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("processes are left: %s", left)
		}
	}
}

// TestParallelLocal makes eight machines at once; each gets its own address.
func TestParallelLocal(t *testing.T) {
	hosts.Isolated(t)
	t.Setenv("MACHINE_AGENT", hosts.FakeAgent(t, "fake-1"))
	newStore(t)
	must(t, "create", "-d", "local", "--count", "8", "n")
	out := must(t, "ip", "n-1", "n-2", "n-3", "n-4", "n-5", "n-6", "n-7", "n-8")
	seen := map[string]bool{}
	for _, ip := range strings.Fields(out) {
		seen[ip] = true
	}
	if len(seen) != 8 {
		t.Errorf("addresses: %q", out)
	}
	if got := must(t, "exec", "n-*", "--", "hostname"); strings.Count(got, " | n-") != 8 {
		t.Errorf("exec: %s", got)
	}
	if got := must(t, "ssh", "n-1", "wget -qO- http://"+strings.Fields(out)[1]+":2376/ 2>&1 || curl -s http://"+strings.Fields(out)[1]+":2376/ || true"); strings.Contains(got, "No route") {
		t.Errorf("n-1 does not reach n-2: %s", got)
	}
	must(t, "rm", "-y", "n-1", "n-2", "n-3", "n-4", "n-5", "n-6", "n-7", "n-8")
	noTrace(t)
}

// cutter forwards connections to to, and breaks the first cuts of them after
// limit bytes.
func cutter(t *testing.T, to string, cuts int32, limit int64) (port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	var left atomic.Int32
	left.Store(cuts)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				up, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer func() { _ = up.Close() }()
				go func() { _, _ = io.Copy(c, up); _ = c.Close() }()
				var r io.Reader = c
				if left.Add(-1) >= 0 {
					r = io.LimitReader(c, limit)
				}
				_, _ = io.Copy(up, r)
			}()
		}
	}()
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}

// TestF11DropInUpload: the connection breaks twice while the agent is copied;
// what arrived is kept and the rest follows.
func TestF11DropInUpload(t *testing.T) {
	hosts.Isolated(t)
	t.Setenv("MACHINE_AGENT", hosts.FakeAgent(t, "fake-1"))
	newStore(t)
	h := hosts.New(t)
	port := cutter(t, h.IP+":22", 2, 5<<20)
	// The engine is reached at the same address: forward it as well.
	engine, err := net.Listen("tcp", "127.0.0.1:2376")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = engine.Close() })
	go func() {
		for {
			c, err := engine.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", h.IP+":2376")
			if err != nil {
				_ = c.Close()
				continue
			}
			go func() { _, _ = io.Copy(up, c); _ = up.Close() }()
			go func() { _, _ = io.Copy(c, up); _ = c.Close() }()
		}
	}()
	out := must(t, "create", "-d", "generic", "--generic-ip-address", "127.0.0.1", "--generic-ssh-port", port, "--generic-ssh-key", h.Key, "web")
	if n := strings.Count(out, "The connection broke, trying again..."); n == 0 {
		t.Errorf("it was never cut:\n%s", out)
	}
	if left := h.Exec("ls -a /usr/local/bin /tmp | grep machine-new || true"); left != "" {
		t.Errorf("left on the host: %s", left)
	}
}

// TestF12DiskFull: the old agent stays, and the reason is told.
func TestF12DiskFull(t *testing.T) {
	hosts.Isolated(t)
	v1, v2 := fakeAgents(t)
	t.Setenv("MACHINE_AGENT", v1)
	newStore(t)
	h := hosts.New(t, hosts.Options{Setup: "mount -t tmpfs -o size=20m tmpfs /usr/local/bin"})
	must(t, "create", "-d", "generic", "--generic-ip-address", h.IP, "--generic-ssh-key", h.Key, "web")
	t.Setenv("MACHINE_AGENT", v2)
	h.Exec("head -c 9000000 /dev/zero >/usr/local/bin/filler")
	code, _, errs := machine(t, "upgrade", "web")
	if code != 1 || !strings.Contains(errs, "disk is full") {
		t.Errorf("upgrade on a full disk: %d %s", code, errs)
	}
	if got := must(t, "version", "web"); got != "fake-1\n" {
		t.Errorf("version: %q", got)
	}
}

// TestF14SilentPeer: a host that accepts and says nothing ends in time.
func TestF14SilentPeer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			if _, err := l.Accept(); err != nil {
				return
			}
		}
	}()
	newStore(t)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	key := filepath.Join(t.TempDir(), "id")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Skipf("ssh-keygen: %s", out)
	}
	bin := build(t)
	cmd := exec.Command(bin, "create", "-d", "generic", "--generic-ip-address", "127.0.0.1", "--generic-ssh-port", port, "--generic-ssh-key", key, "x")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	start := time.Now()
	_ = cmd.Process.Signal(os.Interrupt) // F1: Ctrl-C is heard also now
	if err := cmd.Wait(); err == nil {
		t.Error("it succeeded")
	}
	budget(t, "Ctrl-C", time.Since(start), 2*time.Second)
	must(t, "rm", "-y", "x")
}

// TestLsBudget: names of 400 machines in 50 ms.
func TestLsBudget(t *testing.T) {
	store := newStore(t)
	text := `{"ConfigVersion":3,"DriverName":"none","Driver":{"URL":"tcp://127.0.0.1:1"},"Name":"x"}`
	for i := range 400 {
		dir := filepath.Join(store, "machines", fmt.Sprintf("m%03d", i))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	bin := build(t)
	best := time.Hour
	for range 5 {
		start := time.Now()
		out, err := exec.Command(bin, "ls", "-q").Output()
		if err != nil || strings.Count(string(out), "\n") != 400 {
			t.Fatalf("ls -q: %v, %d lines", err, strings.Count(string(out), "\n"))
		}
		best = min(best, time.Since(start))
	}
	budget(t, "ls -q of 400 machines", best, 50*time.Millisecond)
}
