package acceptance

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"machine/acceptance/engine"
	"machine/acceptance/hosts"
)

// noClient takes the docker client away from a host.
const noClient = "rm -f /usr/local/bin/docker /usr/bin/docker /bin/docker\n"

// TestDockerHostSSH lets the docker client reach machines by DOCKER_HOST=ssh://
// and by a context of that kind: it runs the computer's ssh, and on the host
// "docker system dial-stdio", which the agent answers when no client is there.
func TestDockerHostSSH(t *testing.T) {
	hosts.Isolated(t)
	u := newUser(t)
	u.env = append(u.env, "PATH="+sshWith(t, u.store)+":"+os.Getenv("PATH"))
	bare := hosts.Cgroups()
	bare.Setup += noClient
	h := hosts.New(t, bare)
	u.machine("create", "-d", "generic", "--generic-ip-address", h.IP, "--generic-ssh-key", h.Key, "web")
	u.machine("create", "-d", "local", "dev")
	t.Cleanup(func() { _, _ = u.try(engine.Binary(t, "machine"), "rm", "-f", "dev", "web") })
	u.machine("ssh", "dev", strings.TrimSpace(noClient))
	if got := u.machine("provision", "dev"); strings.Contains(got, "up to date") {
		t.Errorf("provision leaves a host without dial-stdio: %s", got)
	}
	sudoer := hosts.New(t, hosts.Cgroups(), hosts.Options{Setup: noClient}, hosts.Sudoer(t))
	u.machine("create", "-d", "generic", "--generic-ip-address", sudoer.IP, "--generic-ssh-user", sudoer.User, "--generic-ssh-key", sudoer.Key, "user")
	byKey := u.with("SSH_TEST_KEY=" + sudoer.Key)
	if got := byKey.docker("-H", "ssh://"+sudoer.User+"@"+sudoer.IP, "version", "-f", "{{.Server.Version}}"); got == "" {
		t.Error("a user with sudo gets no answer")
	}
	u.machine("rm", "-y", "user")
	for name, key := range map[string]string{"web": h.Key, "dev": filepath.Join(u.store, "machines/dev/id_ed25519")} {
		url := "ssh://root@" + u.machine("ip", name)
		bySSH(u.with("SSH_TEST_KEY="+key, "DOCKER_HOST="+url), name, url, u.machine("version", name))
	}
	// A client that comes later is not hidden by the agent's stand-in.
	h.Exec("printf '#!/bin/sh\necho client: $*\n' >/usr/bin/docker; chmod 755 /usr/bin/docker")
	if got := u.machine("ssh", "web", "docker ps -a"); got != "client: ps -a" {
		t.Errorf("docker on the host: %q", got)
	}
}

// bySSH works with the engine at url, which is in u's environment.
func bySSH(u *user, name, url, version string) {
	u.Helper()
	if got, want := u.docker("version", "-f", "{{.Server.Version}}"), version; got != want {
		u.Errorf("%s: version %q, want %q", name, got, want)
	}
	u.busybox()
	// The connection's half-close has to reach the container's stdin.
	c := exec.Command("docker", "run", "-i", "--rm", "--network", "none", "busybox", "wc", "-c")
	c.Env, c.Stdin = u.env, strings.NewReader(strings.Repeat("x", 300_000))
	if out, err := c.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "300000" {
		u.Errorf("%s: run -i: %v %q", name, err, out)
	}
	u.docker("context", "create", "--docker", "host="+url, "by-ssh-"+name)
	if got := u.with("DOCKER_HOST=").docker("--context", "by-ssh-"+name, "images", "-q"); got == "" {
		u.Errorf("%s: the context shows no image", name)
	}
	out, err := u.try("docker", "run", "--rm", "--network", "none", "busybox", "sh", "-c", "exit 7")
	if e, ok := err.(*exec.ExitError); !ok || e.ExitCode() != 7 {
		u.Errorf("%s: exit 7: %v %s", name, err, out)
	}
}

// sshWith makes a folder with an ssh that takes the key of the environment:
// OpenSSH looks for its files in the user's home, and for nothing in $HOME.
func sshWith(t *testing.T, dir string) string {
	t.Helper()
	bin := filepath.Join(dir, "ssh-bin")
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		t.Skip("needs OpenSSH's client")
	}
	text := fmt.Sprintf("#!/bin/sh\nexec %s -F /dev/null -o IdentitiesOnly=yes -i \"$SSH_TEST_KEY\" -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile=%s/known \"$@\"\n", ssh, dir)
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "ssh"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return bin
}
