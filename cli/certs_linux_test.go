package cli_test

import (
	"bytes"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"machine/acceptance/hosts"
	"machine/certs"
)

// TestF17Renewal: certificates that end soon are renewed by whatever command
func content(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// age replaces all certificates of machine web, as if they had been made 900
// days ago. It returns their authority.
func age(t *testing.T, store, ip string) (oldCA certs.Pair) {
	t.Helper()
	ca := certs.Pair{Cert: content(t, store+"/certs/ca.pem"), Key: content(t, store+"/certs/ca-key.pem")}
	past := time.Now().Add(-900 * 24 * time.Hour)
	oldCA, err := certs.Renew(ca, past)
	if err != nil {
		t.Fatal(err)
	}
	srv, err1 := certs.Issue(oldCA, certs.Request{Org: "x", Server: true, SANs: []string{ip, "localhost", "web", "127.0.0.1"}}, past)
	cl, err2 := certs.Issue(oldCA, certs.Request{Org: "x", Client: true}, past)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	for name, data := range map[string][]byte{"certs/ca.pem": oldCA.Cert, "certs/cert.pem": cl.Cert, "certs/key.pem": cl.Key,
		"machines/web/ca.pem": oldCA.Cert, "machines/web/cert.pem": cl.Cert, "machines/web/key.pem": cl.Key,
		"machines/web/server.pem": srv.Cert, "machines/web/server-key.pem": srv.Key} {
		if err := os.WriteFile(filepath.Join(store, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return oldCA
}

// talks to the machine; CA, client and server; the agent is not restarted.
func TestF17Renewal(t *testing.T) {
	hosts.Isolated(t)
	t.Setenv("MACHINE_AGENT", hosts.FakeAgent(t, "fake-1"))
	store := newStore(t)
	h := hosts.New(t)
	must(t, "create", "-d", "generic", "--generic-ip-address", h.IP, "--generic-ssh-key", h.Key, "web")
	pid := h.Exec("pgrep -x machine-agent -n")
	dir := filepath.Join(store, "machines/web")
	read := func(name string) []byte { t.Helper(); return content(t, name) }
	oldCA := age(t, store, h.IP)
	if out := must(t, "certificates"); strings.Count(out, "renew") != 3 {
		t.Errorf("certificates: %s", out)
	}
	code, out, errs := machine(t, "ssh", "web", "echo", "only this")
	if code != 0 || out != "only this\n" || errs != "" {
		t.Errorf("ssh: %d %q %q", code, out, errs)
	}
	newCA := read(store + "/certs/ca.pem")
	now := time.Now()
	for _, f := range []string{store + "/certs/ca.pem", store + "/certs/cert.pem", dir + "/server.pem"} {
		if certs.Stale(read(f), now) {
			t.Errorf("%s is stale still", f)
		}
	}
	if err := certs.Check(newCA, read(dir+"/server.pem"), x509.ExtKeyUsageServerAuth, []string{h.IP}, now); err != nil {
		t.Error(err)
	}
	if err := certs.Check(oldCA.Cert, read(dir+"/server.pem"), x509.ExtKeyUsageServerAuth, []string{h.IP}, now); err != nil {
		t.Errorf("clients that have the old CA: %v", err)
	}
	if got := h.Read("/etc/docker/server.pem"); got != string(read(dir+"/server.pem")) {
		t.Error("the host has another certificate")
	}
	if !bytes.Equal(read(dir+"/ca.pem"), newCA) || !bytes.Equal(read(dir+"/cert.pem"), read(store+"/certs/cert.pem")) {
		t.Error("the machine's copies are old")
	}
	if now := h.Exec("pgrep -x machine-agent -n"); now != pid {
		t.Errorf("the agent was restarted: %s, was %s", now, pid)
	}
	must(t, "config", "web")
	// --client-certs makes the client's anew, whatever its age.
	before := read(store + "/certs/cert.pem")
	must(t, "regenerate-certs", "-f", "--client-certs", "web")
	if bytes.Equal(before, read(store+"/certs/cert.pem")) {
		t.Error("--client-certs left the client's certificate")
	}
	must(t, "config", "web")
}

// TestUpgradeRollback: an agent that does not answer is replaced by the old
// one; an older one goes there only when it is asked for.
func TestUpgradeRollback(t *testing.T) {
	hosts.Isolated(t)
	t.Setenv("MACHINE_AGENT", hosts.FakeAgent(t, "1.10.0"))
	newStore(t)
	h := hosts.New(t)
	must(t, "create", "-d", "generic", "--generic-ip-address", h.IP, "--generic-ssh-key", h.Key, "web")
	older := hosts.FakeAgent(t, "1.9.3")
	t.Setenv("MACHINE_AGENT", older)
	if code, _, errs := machine(t, "upgrade", "web"); code != 1 || !strings.Contains(errs, "it is 1.10.0, ours is 1.9.3; --downgrade") {
		t.Errorf("upgrade to an older one: %d %s", code, errs)
	}
	if out := must(t, "provision", "web"); !strings.Contains(out, "newer than ours") || !strings.Contains(out, "up to date") {
		t.Errorf("provision by an older program: %s", out)
	}
	if got := must(t, "version", "web"); got != "1.10.0\n" {
		t.Errorf("version: %s", got)
	}
	must(t, "upgrade", "--downgrade", "web")
	if got := must(t, "version", "web"); got != "1.9.3\n" {
		t.Errorf("version after --downgrade: %s", got)
	}
	if out := must(t, "upgrade", "web"); !strings.Contains(out, "up to date") {
		t.Errorf("upgrade again: %s", out)
	}
	t.Setenv("MACHINE_AGENT", hosts.FakeAgent(t, "fake-dead"))
	code, _, errs := machine(t, "upgrade", "web")
	if code != 1 || !strings.Contains(errs, "1.9.3 runs again") {
		t.Errorf("upgrade to a dead agent: %d %s", code, errs)
	}
	if got := must(t, "version", "web"); got != "1.9.3\n" {
		t.Errorf("version after the rollback: %s", got)
	}
	if left := h.Exec("ls /usr/local/bin | grep machine-agent"); left != "machine-agent" {
		t.Errorf("left on the host: %s", left)
	}
}
