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
	must(t, "rm", "-y", "web*")
}
