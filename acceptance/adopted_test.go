package acceptance

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"machine/acceptance/hosts"
)

// TestAdoptedHost takes over a host that has only sshd, by the built programs:
// containers run there, survive the end of the agent, and go with the host's
// own clean-up.
func TestAdoptedHost(t *testing.T) {
	hosts.Isolated(t)
	u := newUser(t)
	group := filepath.Base(u.store) // in hierarchies that all hosts of this computer share
	h := hosts.New(t, hosts.Cgroups())
	t.Cleanup(func() {
		left, _ := filepath.Glob("/sys/fs/cgroup/*/" + group)
		for _, dir := range left {
			os.Remove(dir)
		}
	})
	u.machine("create", "-d", "generic", "--generic-ip-address", h.IP, "--generic-ssh-key", h.Key, "--engine-opt", "cgroup-parent=/"+group, "web")
	u.use("web")
	u.busybox()
	u.docker("run", "-d", "--name", "web", "-p", "8080:80", "busybox", "sh", "-c", "echo adopted >/tmp/index.html; exec httpd -f -h /tmp")
	get := func() string {
		out, _ := exec.Command("curl", "-s", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", "http://"+h.IP+":8080/").Output()
		return strings.TrimSpace(string(out))
	}
	if got := get(); got != "adopted" {
		t.Errorf("the published port answers %q", got)
	}
	pid := u.docker("inspect", "-f", "{{.State.Pid}}", "web")
	h.Exec("kill -9 $(cat /var/run/docker.pid)")
	for range 600 { // its supervisor starts it again
		if _, err := u.try("docker", "version"); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if now := u.docker("inspect", "-f", "{{.State.Pid}}", "web"); now != pid {
		t.Errorf("the container was %s and is %s", pid, now)
	}
	if got := u.docker("exec", "web", "echo", "alive"); got != "alive" || get() != "adopted" {
		t.Errorf("after the agent's end: exec says %q", got)
	}
	if got := u.machine("upgrade", "web"); !strings.Contains(got, "up to date") {
		t.Errorf("upgrade of an up-to-date host: %q", got)
	}
	u.docker("rm", "-f", "web")
	u.machine("rm", "-y", "web")
}
