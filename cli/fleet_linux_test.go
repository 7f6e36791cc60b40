package cli_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"machine/acceptance/hosts"
)

// TestApplyConverges: apply makes a fleet, finds nothing to do, and takes
// changed labels and engine options to hosts without making them anew.
func TestApplyConverges(t *testing.T) {
	hosts.Isolated(t)
	t.Setenv("MACHINE_AGENT", hosts.FakeAgent(t, "fake-1"))
	newStore(t)
	h := hosts.New(t)
	file := filepath.Join(t.TempDir(), "fleet.yaml")
	write := func(label string) {
		text := fmt.Sprintf("machines:\n  web:\n    driver: generic\n    options: {generic-ip-address: %s, generic-ssh-key: %s}\n    labels: [%s]\n", h.IP, h.Key, label)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a=1")
	if out := must(t, "plan", "-f", file); !strings.Contains(out, "Plan: 1 created") {
		t.Errorf("plan: %s", out)
	}
	must(t, "apply", "-f", file)
	if out := must(t, "apply", "-f", file); !strings.Contains(out, "Fleet: 1 unchanged") {
		t.Errorf("second apply: %s", out)
	}
	write("a=2")
	if out := must(t, "plan", "-f", file); !strings.Contains(out, "labels: [a=1] -> [a=2]") {
		t.Errorf("plan of a change: %s", out)
	}
	must(t, "apply", "-f", file)
	if args := h.Read("/etc/machine-agent/args"); !strings.Contains(args, "a=2\n") || strings.Contains(args, "a=1\n") {
		t.Errorf("arguments on the host: %q", args)
	}
	if out := must(t, "plan", "-f", file); !strings.Contains(out, "Plan: 1 unchanged") {
		t.Errorf("plan afterwards: %s", out)
	}
	if out := must(t, "provision", "--filter", "label=a=2"); !strings.Contains(out, "up to date") {
		t.Errorf("provision afterwards: %s", out)
	}
	resets(t, h, file)
	must(t, "rm", "-y", "web*")
}

// resets takes options out of the file again, one after the other: each goes
// back to its default, and then there is nothing to do.
func resets(t *testing.T, h *hosts.Host, file string) {
	t.Helper()
	docker := t.TempDir()
	t.Setenv("DOCKER_CONFIG", docker)
	const base = "machines:\n  web:\n    driver: generic\n    labels: [a=2]\n"
	address := "    options: {generic-ip-address: " + h.IP + ", generic-ssh-key: " + h.Key
	full := address + ", generic-ssh-jump: root@127.0.0.1:1, generic-ssh-user: nobody}\n    context: true\n    engine: [debug]\n    env: [A=b]\n    registry-mirrors: ['http://m']\n" +
		"    insecure-registries: [r]\n    tls-sans: [n.example]\n    storage-driver: overlay2\n"
	write := func(text string) {
		if err := os.WriteFile(file, []byte(base+text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(full)
	if code, _, errs := machine(t, "apply", "-f", file); code != 1 || !strings.Contains(errs, "does not answer") {
		t.Errorf("a jump host that is none: exit %d %s", code, errs)
	}
	if out := must(t, "plan", "-f", file); !strings.Contains(out, "the host: as before a change that was cut off") {
		t.Errorf("plan of what could not be done: %s", out)
	}
	write(address + "}\n")
	out := must(t, "plan", "-f", file)
	for _, want := range []string{"SSHJump: root@127.0.0.1:1 -> default", "SSHUser: nobody -> root", "docker context: web -> none", "engine options: [debug] -> []",
		"engine env: changed", "registry mirrors: [http://m] -> []", "insecure registries: [r] -> []", "TLS names: [n.example] -> []", "storage driver: overlay2 -> "} {
		if !strings.Contains(out, want) {
			t.Errorf("plan lacks %q: %s", want, out)
		}
	}
	must(t, "apply", "-f", file)
	if out := must(t, "plan", "-f", file); !strings.Contains(out, "Plan: 1 unchanged") {
		t.Errorf("plan afterwards: %s", out)
	}
	if got := must(t, "ssh", "web", "id -un"); got != "root\n" {
		t.Errorf("who logs in: %q", got)
	}
	if left, _ := filepath.Glob(docker + "/contexts/*/*"); len(left) > 0 {
		t.Errorf("the docker context is left: %v", left)
	}
	// What cannot be changed is told by the plan.
	write("    count: 0\n  dev:\n    driver: local\n    options: {local-ip-address: 10.231.0.77}\n")
	must(t, "apply", "-f", file)
	write("    count: 0\n  dev:\n    driver: local\n")
	if code, out, errs := machine(t, "plan", "-f", file); code != 1 || !strings.Contains(errs, `dev: IPAddress: 10.231.0.77 -> default: driver "local" cannot change a machine`) || !strings.Contains(out, "1 failed") {
		t.Errorf("plan of the impossible: exit %d %s %s", code, out, errs)
	}
	must(t, "rm", "-y", "dev")
}
