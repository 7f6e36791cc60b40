package cli_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"machine/acceptance/hosts"
)

// TestSudoUser provisions as a user that is not root.
func TestSudoUser(t *testing.T) {
	hosts.Isolated(t)
	t.Setenv("MACHINE_AGENT", hosts.FakeAgent(t, "fake-1"))
	newStore(t)
	h := hosts.New(t, hosts.Sudoer(t))
	must(t, "create", "-d", "generic", "--generic-ip-address", h.IP, "--generic-ssh-user", h.User, "--generic-ssh-key", h.Key, "web")
	if got := must(t, "ssh", "web", "id -u"); got != "4242\n" {
		t.Errorf("id: %q", got)
	}
	if got := must(t, "provision", "web"); !strings.Contains(got, "up to date") {
		t.Errorf("provision again: %s", got)
	}
	if got := h.Exec("stat -c '%U %a' /usr/local/bin/machine-agent /etc/docker/server-key.pem; ls /tmp"); got != "root 755\nroot 600" {
		t.Errorf("files on the host: %q", got)
	}
}

// TestSCP copies between this computer and two hosts, with names that a shell
// would take apart (S44).
func TestSCP(t *testing.T) {
	hosts.Isolated(t)
	// An old agent does not copy: then it goes over SFTP.
	for _, version := range []string{"fake-1", "fake-old"} {
		t.Run(version, func(t *testing.T) { testSCP(t, version) })
	}
}

func testSCP(t *testing.T, version string) {
	t.Setenv("MACHINE_AGENT", hosts.FakeAgent(t, version))
	newStore(t)
	h := hosts.New(t)
	must(t, "create", "-d", "generic", "--generic-ip-address", h.IP, "--generic-ssh-key", h.Key, "web")
	must(t, "create", "-d", "local", "dev")
	dir := t.TempDir()
	evil := filepath.Join(dir, "src", "$(touch evil) ; `id` -rf * é")
	if err := os.MkdirAll(filepath.Join(evil, "deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"-o": "one", "deep/two words": "two"} {
		if err := os.WriteFile(filepath.Join(evil, name), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	big := strings.Repeat("0123456789abcdef", 200000)
	if err := os.WriteFile(filepath.Join(dir, "src", "big"), []byte(big), 0o755); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other")
	if err := errors.Join(os.Mkdir(other, 0o755), os.WriteFile(filepath.Join(other, "in"), []byte("linked"), 0o600),
		os.Symlink("../other", filepath.Join(dir, "src", "linked")), os.Symlink(dir+"/src", filepath.Join(other, "back"))); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := machine(t, "scp", dir+"/src", "web:/srv/x"); code == 0 || !strings.Contains(errs, "use -r") {
		t.Errorf("folder without -r: %d %s", code, errs)
	}
	must(t, "scp", "-r", "-q", dir+"/src", "web:/srv/a")     // makes /srv/a
	must(t, "scp", "-r", "-q", "web:/srv/a", "dev:/srv/b")   // from host to host
	must(t, "scp", "-r", "-q", "-d", "dev:/srv/b", dir+"/c") // and back
	must(t, "scp", "-r", "-q", "-d", "dev:/srv/b/.", dir+"/c")
	if version == "fake-1" {
		h2 := hosts.New(t)
		must(t, "create", "-d", "generic", "--generic-ip-address", h2.IP, "--generic-ssh-key", h2.Key, "web2")
		for range 2 {
			must(t, "scp", "-r", "-d", "--direct", "web:/srv/a/.", "web2:/srv/direct")
		}
		if got, want := h2.Exec("cd /srv/direct && find . -type f | sort | xargs -d '\n' md5sum"), h.Exec("cd /srv/a && find . -type f | sort | xargs -d '\n' md5sum"); got != want {
			t.Errorf("--direct: %s, want %s", got, want)
		}
		must(t, "rm", "-y", "web2")
	}
	if err := os.Remove(filepath.Join(other, "back")); err != nil { // had no end, and was left out
		t.Fatal(err)
	}
	out, err := exec.Command("diff", "-r", dir+"/src", dir+"/c").CombinedOutput()
	if err != nil {
		t.Errorf("what came back differs: %s", out)
	}
	if fi, err := os.Stat(dir + "/c/big"); err != nil || fi.Mode().Perm() != 0o755 {
		t.Errorf("mode: %v %v", fi, err)
	}
	_, _, errs := machine(t, "scp", "-r", "-d", "dev:/srv/b/.", dir+"/c")
	if !strings.HasPrefix(errs, "0 B sent") {
		t.Errorf("-d copied again: %s", errs)
	}
	if version == "fake-1" {
		inserted(t, h, filepath.Join(dir, "src", "big"), "0123"+big)
	}
	must(t, "rm", "-y", "dev", "web")
}

// inserted: what is new at the beginning of a file is all that travels.
func inserted(t *testing.T, h *hosts.Host, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, _, errs := machine(t, "scp", "-d", file, "web:/srv/a/big"); !strings.HasPrefix(errs, "4 B sent, 3.2 MB kept") {
		t.Errorf("-d of a longer file: %s", errs)
	}
	if got, want := h.Exec("wc -c </srv/a/big"), "3200004"; got != want {
		t.Errorf("the file has %s bytes, not %s", got, want)
	}
}

// TestF18NewAddress: a local machine whose address was taken gets another one,
// and a certificate for it, without a new start of its agent being needed.
func TestF18NewAddress(t *testing.T) {
	hosts.Isolated(t)
	t.Setenv("MACHINE_AGENT", hosts.FakeAgent(t, "fake-1"))
	store := newStore(t)
	must(t, "create", "-d", "local", "dev")
	must(t, "stop", "dev")
	ip := strings.TrimSpace(must(t, "ip", "dev"))
	// Another computer's machine has the address now, as after a reboot.
	claim := "/run/machine/ip/" + ip
	if err := os.WriteFile(claim, []byte(store), 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, "start", "dev")
	if now := strings.TrimSpace(must(t, "ip", "dev")); now == ip {
		t.Errorf("ip is %s still", now)
	}
	must(t, "config", "dev")
	if err := os.Remove(claim); err != nil {
		t.Fatal(err)
	}
	// Renaming takes the files and the host's key along.
	if code, _, errs := machine(t, "rename", "dev", "prod"); code == 0 || !strings.Contains(errs, "stop it first") {
		t.Errorf("rename of a running machine: %d %s", code, errs)
	}
	must(t, "stop", "dev")
	must(t, "rename", "dev", "prod")
	must(t, "start", "prod")
	if got := must(t, "ssh", "prod", "hostname"); got != "prod\n" {
		t.Errorf("hostname: %q", got)
	}
	must(t, "certificates", "--renew")
	must(t, "rm", "-y", "prod")
	noTrace(t)
}

// TestSystemdHost provisions a host with systemd: the unit starts, survives
// its agent's death, and a stop of the service leaves nothing behind.
func TestSystemdHost(t *testing.T) {
	hosts.Isolated(t)
	v1, v2 := fakeAgents(t)
	t.Setenv("MACHINE_AGENT", v1)
	newStore(t)
	h := hosts.New(t, hosts.Options{Systemd: true})
	out := must(t, "create", "-d", "generic", "--generic-ip-address", h.IP, "--generic-ssh-key", h.Key, "--engine-label", `a=b "c" $d %n`, "web")
	t.Log(out)
	if got := h.Exec("systemctl is-active machine-agent; systemctl is-enabled machine-agent"); got != "active\nenabled" {
		t.Errorf("service: %q", got)
	}
	pid := h.Exec("systemctl show -p MainPID --value machine-agent")
	if args := h.Exec("tr '\\0' '\\n' </proc/" + pid + "/cmdline"); !strings.Contains(args, "a=b \"c\" $d %n\n") {
		t.Errorf("arguments: %q", args)
	}
	must(t, "regenerate-certs", "-f", "web")
	if now := h.Exec("systemctl show -p MainPID --value machine-agent"); now != pid {
		t.Errorf("regenerate-certs restarted the agent: %s, was %s", now, pid)
	}
	must(t, "config", "web")
	t.Setenv("MACHINE_AGENT", v2)
	must(t, "upgrade", "web")
	if got := must(t, "version", "web"); got != "fake-2\n" {
		t.Errorf("version: %q", got)
	}
	h.Exec("kill -9 $(systemctl show -p MainPID --value machine-agent)")
	must(t, "provision", "web")
	must(t, "config", "web")
}

// TestForwardDrop: on a computer whose firewall forwards nothing, as one with
// Docker, machines get out all the same; their rules go with the last one.
func TestForwardDrop(t *testing.T) {
	hosts.Isolated(t)
	ipt := func(args ...string) string {
		out, err := exec.Command("iptables", args...).CombinedOutput()
		if err != nil {
			t.Skipf("iptables: %s", out)
		}
		return string(out)
	}
	ipt("-P", "FORWARD", "DROP")
	t.Cleanup(func() { _ = exec.Command("iptables", "-P", "FORWARD", "ACCEPT").Run() })
	h := hosts.New(t) // is on the other side of this computer
	t.Setenv("MACHINE_AGENT", hosts.FakeAgent(t, "fake-1"))
	newStore(t)
	must(t, "create", "-d", "local", "dev")
	if got := must(t, "ssh", "dev", "exec 3<>/dev/tcp/"+h.IP+"/22 && head -c 4 <&3"); got != "SSH-" {
		t.Errorf("a machine does not get out: %q", got)
	}
	must(t, "restart", "dev")
	if n := strings.Count(ipt("-S", "FORWARD"), "machine0"); n != 2 {
		t.Errorf("%d rules, want 2:\n%s", n, ipt("-S", "FORWARD"))
	}
	must(t, "rm", "-y", "dev")
	if got := ipt("-S", "FORWARD"); strings.Contains(got, "machine0") {
		t.Errorf("rules are left:\n%s", got)
	}
	noTrace(t)
}
