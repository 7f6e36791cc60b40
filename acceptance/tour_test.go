package acceptance

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"machine/acceptance/engine"
)

// TestTour runs the tour of the README as it is printed.
func TestTour(t *testing.T) {
	engine.NeedRoot(t)
	engine.Binary(t, "machine")
	b, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "<!-- tour: the acceptance tests run this block -->\n```sh\n")
	block, _, ok2 := strings.Cut(rest, "```\n<!-- end of tour -->")
	if !ok || !ok2 {
		t.Fatal("the README has no tour")
	}
	dir, err := os.MkdirTemp("/var/tmp", "tour-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	script := filepath.Join(dir, "tour.sh")
	if err := os.WriteFile(script, []byte("set -eux\n"+block), 0o600); err != nil {
		t.Fatal(err)
	}
	// A network namespace of its own: other tests make machines, too.
	c := exec.Command("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", "ip link set lo up; mount -t tmpfs tmpfs /run; exec bash "+script)
	c.Dir = engine.Root()
	c.Env = append(os.Environ(), "MACHINE_STORAGE_PATH="+filepath.Join(dir, "store"), "DOCKER_CONFIG="+filepath.Join(dir, "client"))
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("the tour stops: %v\n%s", err, out)
	}
	left, _ := os.ReadDir(filepath.Join(dir, "store", "machines"))
	for _, e := range left {
		if !strings.HasPrefix(e.Name(), ".") {
			t.Errorf("the tour leaves machine %s behind", e.Name())
		}
	}
}
