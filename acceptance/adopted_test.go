package acceptance

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"machine/acceptance/engine"
	"machine/acceptance/hosts"
)

// TestAdoptedHost takes over a host that has only sshd, by the built programs:
// containers run there, survive the end of the agent, and go with the host's
// own clean-up.
func TestAdoptedHost(t *testing.T) {
	hosts.Isolated(t)
	store, err := os.MkdirTemp("/var/tmp", "adopted-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(store) })
	group := filepath.Base(store) // in hierarchies that all hosts of this computer share
	h := hosts.New(t, hosts.Options{Setup: `mount -t tmpfs tmpfs /sys/fs/cgroup
for c in cpu cpuacct cpuset memory devices freezer blkio pids; do
	mkdir /sys/fs/cgroup/$c && mount -t cgroup -o $c cgroup /sys/fs/cgroup/$c
done`})
	t.Cleanup(func() {
		left, _ := filepath.Glob("/sys/fs/cgroup/*/" + group)
		for _, dir := range left {
			os.Remove(dir)
		}
	})
	env := append(os.Environ(), "MACHINE_STORAGE_PATH="+store, "DOCKER_CONFIG="+filepath.Join(store, "client"), "DOCKER_CLI_HINTS=false")
	run := func(in *os.File, name string, args ...string) string {
		t.Helper()
		c := exec.Command(name, args...)
		c.Env = env
		if in != nil {
			c.Stdin = in
		}
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	machine := func(args ...string) string { t.Helper(); return run(nil, engine.Binary(t, "machine"), args...) }
	machine("create", "-d", "generic", "--generic-ip-address", h.IP, "--generic-ssh-key", h.Key, "--engine-opt", "cgroup-parent=/"+group, "web")
	for line := range strings.Lines(machine("env", "--shell", "bash", "web")) {
		if kv, ok := strings.CutPrefix(strings.TrimSpace(line), "export "); ok {
			k, v, _ := strings.Cut(kv, "=")
			env = append(env, k+"="+strings.Trim(v, `"`))
		}
	}
	docker := func(args ...string) string { t.Helper(); return run(nil, "docker", args...) }
	tar, err := os.Create(filepath.Join(store, "busybox.tar"))
	if err != nil {
		t.Fatal(err)
	}
	img := exec.Command(filepath.Join(engine.Root(), "scripts", "busybox-image.sh"))
	img.Stdout = tar
	if err := img.Run(); err != nil {
		t.Fatal(err)
	}
	tar.Seek(0, 0)
	run(tar, "docker", "import", "--change", "ENV PATH=/bin", "-", "busybox")
	docker("run", "-d", "--name", "web", "-p", "8080:80", "busybox", "sh", "-c", "echo adopted >/tmp/index.html; exec httpd -f -h /tmp")
	get := func() string {
		out, _ := exec.Command("curl", "-s", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", "http://"+h.IP+":8080/").Output()
		return strings.TrimSpace(string(out))
	}
	if got := get(); got != "adopted" {
		t.Errorf("the published port answers %q", got)
	}
	pid := docker("inspect", "-f", "{{.State.Pid}}", "web")
	h.Exec("kill -9 $(cat /var/run/docker.pid)")
	for range 600 { // its supervisor starts it again
		if c := exec.Command("docker", "version"); true {
			c.Env = env
			if c.Run() == nil {
				break
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	if now := docker("inspect", "-f", "{{.State.Pid}}", "web"); now != pid {
		t.Errorf("the container was %s and is %s", pid, now)
	}
	if got := docker("exec", "web", "echo", "alive"); got != "alive" || get() != "adopted" {
		t.Errorf("after the agent's end: exec says %q", got)
	}
	if got := machine("upgrade", "web"); !strings.Contains(got, "up to date") {
		t.Errorf("upgrade of an up-to-date host: %q", got)
	}
	docker("rm", "-f", "web")
	machine("rm", "-y", "web")
}
