package hosts

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// FakeAgent builds the agent's stand-in with a version and returns its path.
// It answers /_ping and /version, and is a local machine's init as the real one.
func FakeAgent(t testing.TB, version string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "agent-"+version)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version="+version, "-o", out, "machine/acceptance/hosts/fakeagent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build stand-in of the agent: %v: %s", err, msg)
	}
	return out
}

// Isolated skips the test unless it is root's, in a network that is the
// test's own: it is going to make bridges and machines.
func Isolated(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	// A default route means: this is the computer's own network.
	routes, _ := os.ReadFile("/proc/net/route")
	for _, line := range strings.Split(string(routes), "\n") {
		if f := strings.Fields(line); len(f) > 2 && f[1] == "00000000" {
			t.Skip("needs namespaces of its own: scripts/dev/isolated.sh")
		}
	}
	_ = exec.Command("ip", "link", "set", "lo", "up").Run()
}

// RealStore is a folder for a store on a real file system.
func RealStore(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "machine-store-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// Sudoer is an option for a host whose login user has sudo and is not root.
func Sudoer(t testing.TB) Options {
	t.Helper()
	out := filepath.Join(t.TempDir(), "sudo")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, "machine/acceptance/hosts/fakesudo")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build stand-in of sudo: %v: %s", err, msg)
	}
	return Options{User: "tester", Files: map[string]string{out: "/usr/local/bin/sudo"}, Setup: `
echo 'tester:x:4242:4242::/home/tester:/bin/sh' >>/etc/passwd
echo 'tester:!:4242:' >>/etc/group
echo 'tester:*:19000:0:99999:7:::' >>/etc/shadow
mkdir -p /home/tester
chown 4242:4242 /home/tester
chown 0:0 /usr/local/bin/sudo
chmod 4755 /usr/local/bin/sudo
chmod 644 /etc/ssh-host/keys
chmod 755 /etc/ssh-host
`}
}

// Cgroups is an option for a host on which the real agent can run: it has the
// kernel's cgroup hierarchies.
func Cgroups() Options {
	return Options{Setup: `
mount -t tmpfs tmpfs /sys/fs/cgroup
while IFS=: read -r n names path; do
	[ -n "$names" ] || { mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified; continue; }
	mkdir -p "/sys/fs/cgroup/$names"
	mount -t cgroup -o "$names" cgroup "/sys/fs/cgroup/$names" || rmdir "/sys/fs/cgroup/$names"
done </proc/self/cgroup
`}
}
