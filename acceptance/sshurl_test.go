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
	store := hosts.RealStore(t)
	env := append(os.Environ(), "MACHINE_STORAGE_PATH="+store, "DOCKER_CONFIG="+filepath.Join(store, "client"),
		"PATH="+sshWith(t, store)+":"+os.Getenv("PATH"))
	machine := func(args ...string) string { t.Helper(); return mustRun(t, env, engine.Binary(t, "machine"), args...) }
	bare := hosts.Cgroups()
	bare.Setup += noClient
	h := hosts.New(t, bare)
	machine("create", "-d", "generic", "--generic-ip-address", h.IP, "--generic-ssh-key", h.Key, "web")
	machine("create", "-d", "local", "dev")
	t.Cleanup(func() { _, _ = runWith(env, engine.Binary(t, "machine"), "rm", "-f", "dev", "web") })
	machine("ssh", "dev", strings.TrimSpace(noClient))
	if got := machine("provision", "dev"); strings.Contains(got, "up to date") {
		t.Errorf("provision leaves a host without dial-stdio: %s", got)
	}
	user := hosts.New(t, hosts.Cgroups(), hosts.Options{Setup: noClient}, hosts.Sudoer(t))
	machine("create", "-d", "generic", "--generic-ip-address", user.IP, "--generic-ssh-user", user.User, "--generic-ssh-key", user.Key, "user")
	userEnv := append(env, "SSH_TEST_KEY="+user.Key)
	if got := mustRun(t, userEnv, "docker", "-H", "ssh://"+user.User+"@"+user.IP, "version", "-f", "{{.Server.Version}}"); got == "" {
		t.Error("a user with sudo gets no answer")
	}
	machine("rm", "-y", "user")
	for name, key := range map[string]string{"web": h.Key, "dev": filepath.Join(store, "machines/dev/id_ed25519")} {
		url := "ssh://root@" + machine("ip", name)
		keyed := append(env, "SSH_TEST_KEY="+key)
		bySSH(t, name, url, machine("version", name), keyed)
	}
	// A client that comes later is not hidden by the agent's stand-in.
	h.Exec("printf '#!/bin/sh\necho client: $*\n' >/usr/bin/docker; chmod 755 /usr/bin/docker")
	if got := machine("ssh", "web", "docker ps -a"); got != "client: ps -a" {
		t.Errorf("docker on the host: %q", got)
	}
}

// bySSH works with the engine at url, as the docker client does.
func bySSH(t *testing.T, name, url, version string, keyed []string) {
	t.Helper()
	docker := func(args ...string) string {
		t.Helper()
		return mustRun(t, keyed, "docker", append([]string{"-H", url}, args...)...)
	}
	if got, want := docker("version", "-f", "{{.Server.Version}}"), version; got != want {
		t.Errorf("%s: version %q, want %q", name, got, want)
	}
	img := exec.Command("sh", "-c", filepath.Join(engine.Root(), "scripts", "busybox-image.sh")+" | docker -H "+url+" import --change 'ENV PATH=/bin' - busybox")
	img.Env = keyed
	if out, err := img.CombinedOutput(); err != nil {
		t.Fatalf("%s: import: %v\n%s", name, err, out)
	}
	// The connection's half-close has to reach the container's stdin.
	c := exec.Command("docker", "-H", url, "run", "-i", "--rm", "--network", "none", "busybox", "wc", "-c")
	c.Env, c.Stdin = keyed, strings.NewReader(strings.Repeat("x", 300_000))
	if out, err := c.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "300000" {
		t.Errorf("%s: run -i: %v %q", name, err, out)
	}
	mustRun(t, keyed, "docker", "context", "create", "--docker", "host="+url, "by-ssh-"+name)
	if got := mustRun(t, keyed, "docker", "--context", "by-ssh-"+name, "images", "-q"); got == "" {
		t.Errorf("%s: the context shows no image", name)
	}
	out, err := runWith(keyed, "docker", "-H", url, "run", "--rm", "--network", "none", "busybox", "sh", "-c", "exit 7")
	if e, ok := err.(*exec.ExitError); !ok || e.ExitCode() != 7 {
		t.Errorf("%s: exit 7: %v %s", name, err, out)
	}
}

func runWith(env []string, name string, args ...string) (string, error) {
	c := exec.Command(name, args...)
	c.Env = env
	out, err := c.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func mustRun(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	out, err := runWith(env, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
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
