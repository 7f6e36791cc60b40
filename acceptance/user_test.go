package acceptance

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"machine/acceptance/engine"
	"machine/acceptance/hosts"
)

// A user is somebody who works with machine and the docker client: the
// environment in which programs are run.
type user struct {
	*testing.T
	store string // on a real file system
	env   []string
}

func newUser(t *testing.T) *user {
	t.Helper()
	store := hosts.RealStore(t)
	return &user{t, store, append(os.Environ(), "MACHINE_STORAGE_PATH="+store, "DOCKER_CONFIG="+filepath.Join(store, "client"), "DOCKER_CLI_HINTS=false")}
}

// with is the same user with more in the environment.
func (u *user) with(env ...string) *user {
	return &user{u.T, u.store, append(u.env[:len(u.env):len(u.env)], env...)}
}

// try runs a program; what it says is trimmed.
func (u *user) try(name string, args ...string) (string, error) {
	c := exec.Command(name, args...)
	c.Env = u.env
	out, err := c.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// must runs a program that must succeed.
func (u *user) must(name string, args ...string) string {
	u.Helper()
	out, err := u.try(name, args...)
	if err != nil {
		u.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func (u *user) machine(args ...string) string {
	u.Helper()
	return u.must(engine.Binary(u, "machine"), args...)
}

// docker asks the engine of the environment.
func (u *user) docker(args ...string) string { u.Helper(); return u.must("docker", args...) }

// use is eval $(machine env NAME).
func (u *user) use(name string) {
	u.Helper()
	for line := range strings.Lines(u.machine("env", "--shell", "bash", name)) {
		if kv, ok := strings.CutPrefix(strings.TrimSpace(line), "export "); ok {
			k, v, _ := strings.Cut(kv, "=")
			u.env = append(u.env, k+"="+strings.Trim(v, `"`))
		}
	}
}

// busybox gives the engine an image.
func (u *user) busybox() {
	u.Helper()
	u.must("sh", "-c", filepath.Join(engine.Root(), "scripts", "busybox-image.sh")+" | docker import --change 'ENV PATH=/bin' - busybox")
}
