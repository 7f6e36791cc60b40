package cli_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"machine/acceptance/hosts"
	"machine/cli"
)

// fakeAgents builds two versions of the agent's stand-in.
func fakeAgents(t *testing.T) (v1, v2 string) {
	t.Helper()
	return hosts.FakeAgent(t, "fake-1"), hosts.FakeAgent(t, "fake-2")
}

// newStore is a store on a real file system.
func newStore(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "machine-store-")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("MACHINE_STORAGE_PATH", dir)
	t.Setenv("SHELL", "/bin/bash")
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// machine runs one command line in this process.
func machine(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	start := time.Now()
	code = cli.Run(ctx, append([]string{"machine"}, args...), strings.NewReader(""), &out, &errs)
	if os.Getenv("INTERRUPTED") != "" {
		return code, out.String(), errs.String() // too many to tell
	}
	t.Logf("machine %s: %d in %v", strings.Join(args, " "), code, time.Since(start).Round(time.Millisecond))
	return code, out.String(), errs.String()
}

func must(t *testing.T, args ...string) string {
	t.Helper()
	code, out, errs := machine(t, args...)
	if code != 0 {
		t.Fatalf("machine %s: exit %d\n%s\n%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// budget tells a time; only far beyond its budget is a failure, since other
// tests run beside this one. The bench holds the budgets themselves.
func budget(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	t.Logf("%s: %v, budget %v", what, got.Round(time.Millisecond), want)
	if got > 10*want {
		t.Errorf("%s took %v, budget %v", what, got, want)
	}
}

func TestGenericLife(t *testing.T) {
	hosts.Isolated(t)
	v1, v2 := fakeAgents(t)
	t.Setenv("MACHINE_AGENT", v1)
	store := newStore(t)
	h := hosts.New(t)
	start := time.Now()
	must(t, "create", "-d", "generic", "--generic-ip-address", h.IP, "--generic-ssh-key", h.Key, "web")
	budget(t, "create generic", time.Since(start), 3*time.Second)
	if got := must(t, "ls"); !strings.Contains(got, "tcp://"+h.IP+":2376") || !strings.Contains(got, "vfake-1") {
		t.Errorf("ls: %s", got)
	}
	if got := must(t, "status", "web"); got != "Running\n" {
		t.Errorf("status: %q", got)
	}
	if got := must(t, "env", "web"); !strings.Contains(got, `export DOCKER_HOST="tcp://`+h.IP+`:2376"`) {
		t.Errorf("env: %s", got)
	}
	if got := must(t, "ssh", "web", "hostname"); got != "host\n" {
		t.Errorf("ssh: %q", got)
	}
	if code, _, _ := machine(t, "ssh", "web", "exit 7"); code != 7 {
		t.Errorf("ssh exit code %d, want 7", code)
	}
	pid := h.Exec("cat /run/machine-agent.pid")
	if got := must(t, "provision", "web"); !strings.Contains(got, "up to date") {
		t.Errorf("provision again: %s", got)
	}
	if now := h.Exec("cat /run/machine-agent.pid"); now != pid {
		t.Errorf("an up-to-date host was restarted: %s, was %s", now, pid)
	}
	// Upgrade replaces the agent and nothing else.
	t.Setenv("MACHINE_AGENT", v2)
	must(t, "upgrade", "web")
	if got := must(t, "version", "web"); got != "fake-2\n" {
		t.Errorf("version after upgrade: %q", got)
	}
	old := h.Read("/etc/docker/server.pem")
	must(t, "regenerate-certs", "-f", "web")
	if now := h.Read("/etc/docker/server.pem"); now == old || now == "" {
		t.Error("regenerate-certs left the certificate")
	}
	must(t, "config", "web")
	checkModes(t, store, h)
	must(t, "rm", "-y", "web")
	if names := must(t, "ls", "-q"); names != "" {
		t.Errorf("ls -q after rm: %q", names)
	}
}

// checkModes: no key can be read by others, here or there (S45).
func checkModes(t *testing.T, store string, h *hosts.Host) {
	t.Helper()
	for _, root := range []string{store, filepath.Join(h.Dir, "upper/etc/docker")} {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.Contains(path, "key") && !strings.HasSuffix(path, "config.json") {
				return nil
			}
			if fi, err := d.Info(); err == nil && fi.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s has mode %v", path, fi.Mode())
			}
			return nil
		})
	}
}

func TestS42ChangedHostKey(t *testing.T) {
	hosts.Isolated(t)
	v1, _ := fakeAgents(t)
	t.Setenv("MACHINE_AGENT", v1)
	newStore(t)
	h := hosts.New(t)
	must(t, "create", "-d", "generic", "--generic-ip-address", h.IP, "--generic-ssh-key", h.Key, "web")
	h.Kill()
	if err := os.Remove(filepath.Join(h.Dir, "upper/etc/ssh-host/key")); err != nil {
		t.Fatal(err)
	}
	h.Start()
	code, _, errs := machine(t, "provision", "web")
	if code != 5 || !strings.Contains(errs, "CHANGED") {
		t.Errorf("changed host key: exit %d, %s", code, errs)
	}
	if code, _, _ := machine(t, "ssh", "web", "true"); code == 0 {
		t.Error("ssh went to a host with another key")
	}
}

func TestGenericRefusals(t *testing.T) {
	hosts.Isolated(t)
	v1, _ := fakeAgents(t)
	t.Setenv("MACHINE_AGENT", v1)
	newStore(t)
	h := hosts.New(t, hosts.Options{Setup: "/usr/sbin/sshd -f /etc/ssh-host/config -p 2376 -o PidFile=/run/second.pid"})
	other := hosts.New(t)
	for _, c := range []struct {
		what string
		args []string
		want string
		code int
	}{
		{"port taken", []string{"--generic-ssh-key", h.Key}, "port 2376 of the host is taken by", 1},
		{"wrong key", []string{"--generic-ssh-key", other.Key}, "refused the login", 1},
		{"public key", []string{"--generic-ssh-key", h.Key + ".pub"}, "public half", 3},
		{"no key file", []string{"--generic-ssh-key", "/nonexistent"}, "does not exist", 3},
	} {
		start := time.Now()
		args := append([]string{"create", "-d", "generic", "--generic-ip-address", h.IP, "x"}, c.args...)
		code, _, errs := machine(t, args...)
		if code != c.code || !strings.Contains(errs, c.want) {
			t.Errorf("%s: exit %d, %s; want %d, %q", c.what, code, errs, c.code, c.want)
		}
		if d := time.Since(start); d > 15*time.Second {
			t.Errorf("%s: took %v", c.what, d)
		}
		must(t, "rm", "-f", "x")
	}
}

func TestLocalLife(t *testing.T) {
	hosts.Isolated(t)
	v1, _ := fakeAgents(t)
	t.Setenv("MACHINE_AGENT", v1)
	newStore(t)
	start := time.Now()
	must(t, "create", "-d", "local", "dev")
	t.Cleanup(func() { machine(t, "rm", "-f", "dev") })
	budget(t, "create local", time.Since(start), time.Second)
	ip := must(t, "ip", "dev")
	if got := must(t, "ssh", "dev", "hostname; cat /proc/1/comm >/dev/null; id -u"); got != "dev\n0\n" {
		t.Errorf("ssh: %q", got)
	}
	must(t, "ssh", "dev", "echo kept > /root/file; echo kept > /var/lib/docker/file")
	if _, err := os.Stat("/root/file"); err == nil {
		t.Error("the machine wrote on the computer")
	}
	must(t, "stop", "dev")
	if got := must(t, "status", "dev"); got != "Stopped\n" {
		t.Errorf("status: %q", got)
	}
	if code, _, errs := machine(t, "stop", "dev"); code != 1 || !strings.Contains(errs, `Machine "dev" is already stopped.`) {
		t.Errorf("stop again: %d %s", code, errs)
	}
	if code, _, errs := machine(t, "url", "dev"); code != 1 || !strings.Contains(errs, "Host is not running") {
		t.Errorf("url of a stopped machine: %d %s", code, errs)
	}
	must(t, "start", "dev")
	if now := must(t, "ip", "dev"); now != ip {
		t.Errorf("ip after start: %s, was %s", now, ip)
	}
	if got := must(t, "ssh", "dev", "cat /root/file /var/lib/docker/file"); got != "kept\nkept\n" {
		t.Errorf("files after restart: %q", got)
	}
	must(t, "kill", "dev")
	must(t, "restart", "dev")
	must(t, "config", "dev")
	must(t, "rm", "-y", "dev")
	noTrace(t)
}

// noTrace looks for what a machine could leave in the kernel. Groups of
// machines that others run on this computer do not count.
func noTrace(t *testing.T) {
	t.Helper()
	if out, _ := exec.Command("ip", "-o", "link").Output(); strings.Contains(string(out), "mach") {
		t.Errorf("links are left:\n%s", out)
	}
	if out, _ := exec.Command("nft", "list", "tables").Output(); strings.Contains(string(out), "machine") {
		t.Errorf("nftables are left:\n%s", out)
	}
	for _, name := range []string{"dev", "prod", "n-1", "n-8"} {
		sum := sha256.Sum256([]byte(filepath.Join(os.Getenv("MACHINE_STORAGE_PATH"), "machines", name)))
		left, _ := filepath.Glob("/sys/fs/cgroup/*/machine/" + hex.EncodeToString(sum[:])[:10])
		if len(left) > 0 {
			t.Errorf("cgroups are left: %v", left)
		}
	}
	if out, _ := os.ReadFile("/proc/self/mounts"); strings.Contains(string(out), "upperdir=upper") {
		t.Errorf("mounts are left:\n%s", out)
	}
	if entries, _ := os.ReadDir("/run/machine/ip"); len(entries) > 0 {
		t.Errorf("addresses are left: %v", entries)
	}
}
