package cli_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"machine/acceptance/hosts"
)

// TestCustomInstallScript runs a script of the user's before the engine comes:
// a failed one leaves a machine that is resumed, a good one runs once; and the
// host gets the name that Rancher wants for it.
func TestCustomInstallScript(t *testing.T) {
	hosts.Isolated(t)
	t.Setenv("MACHINE_AGENT", hosts.FakeAgent(t, "fake-1"))
	store := newStore(t)
	sudoer := hosts.Sudoer(t)
	sudoer.Setup += "hostname host\n"
	h := hosts.New(t, sudoer)
	script := filepath.Join(t.TempDir(), "it's mine.sh")
	text := "#!/bin/bash\n[[ -e /srv/allowed ]] || { echo no leave >&2; exit 9; }\n[[ ! -e /usr/local/bin/machine-agent ]] || exit 8\n" +
		"echo \"installs as $(id -u) on $(hostname)\"; read -r x; echo run >>/srv/runs; echo SECRET-$((40+2)) >/dev/null\n"
	if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"--secret-namespace=", "--secret-name=", "create", "--driver=generic", "--custom-install-script=" + script, "--hostname-override=node-1.example.org",
		"--generic-ip-address=" + h.IP, "--generic-ssh-user=" + h.User, "--generic-ssh-key=" + h.Key, "node1"}
	code, out, errs := machine(t, args...)
	if code != 1 || !strings.Contains(errs, "custom install script: ") || !strings.Contains(errs, "no leave") {
		t.Fatalf("a script that fails: exit %d\n%s\n%s", code, out, errs)
	}
	h.Exec("mkdir -p /srv; touch /srv/allowed")
	if err := os.Remove(script); err != nil { // the machine has its own
		t.Fatal(err)
	}
	out = must(t, "create", "--resume", "-d", "generic", "node1")
	if !strings.Contains(out, "(node1) installs as 0 on node-1.example.org\n") {
		t.Errorf("create --resume: %s", out)
	}
	if got := must(t, "provision", "node1"); !strings.Contains(got, "up to date") {
		t.Errorf("provision: %s", got)
	}
	if got := h.Exec("cat /srv/runs; hostname; cat /etc/hostname; grep -c node-1.example.org /etc/hosts; stat -c %a /etc/machine-agent/custom-install"); got != "run\nnode-1.example.org\nnode-1.example.org\n1\n700" {
		t.Errorf("on the host: %q", got)
	}
	var conf struct {
		HostOptions struct{ CustomInstallScript, HostnameOverride string }
	}
	data, err := os.ReadFile(filepath.Join(store, "machines/node1/config.json"))
	if err != nil || json.Unmarshal(data, &conf) != nil || conf.HostOptions.HostnameOverride != "node-1.example.org" {
		t.Errorf("config.json: %v %s", err, data)
	}
	if fi, err := os.Stat(conf.HostOptions.CustomInstallScript); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the script's copy: %v %v", fi, err)
	}
	must(t, "rm", "-y", "--update-config", "node1")
	for _, bad := range [][]string{{"--hostname-override", "a b"}, {"--hostname-override", "-x"}, {"--hostname-override", "$(id)"}, {"--custom-install-script", "/nonexistent"}, {"--custom-install-script", "/dev/null"}} {
		if code, _, errs := machine(t, append([]string{"create", "-d", "generic", "--generic-ip-address", h.IP, "x"}, bad...)...); code != 1 || errs == "" {
			t.Errorf("%v: exit %d %s", bad, code, errs)
		}
	}
	if got := must(t, "ls", "-q"); got != "" {
		t.Errorf("machines are left: %s", got)
	}
}
