package docker

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"machine/acceptance/engine"
)

// wire joins the hosts of two engines by a cable: 10.99.0.1 and 10.99.0.2.
func wire(a, b *engine.Engine) {
	a.T.Helper()
	script := fmt.Sprintf(`set -e
ip link add wirea type veth peer name wireb
ip link set wirea netns %d
ip link set wireb netns %d`, a.AgentPid(), b.AgentPid())
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		a.T.Fatalf("wire: %v %s", err, out)
	}
	for i, e := range []*engine.Engine{a, b} {
		name := []string{"wirea", "wireb"}[i]
		if out, err := e.HostRun("sh", "-c", fmt.Sprintf("ip addr add 10.99.0.%d/24 dev %s && ip link set %s up", i+1, name, name)); err != nil {
			e.T.Fatalf("wire: %v %s", err, out)
		}
	}
}

// registryImage imports Debian's docker-registry as the image registry:2.
func registryImage(e *engine.Engine) {
	e.T.Helper()
	dir := filepath.Join(e.Dir, "registryimage")
	script := `set -e
mkdir -p bin etc/docker/registry var/lib/registry tmp
cp /bin/busybox bin/busybox; ln -s busybox bin/sh
cp /usr/bin/docker-registry bin/registry
for l in $(ldd bin/registry | grep -o '/[^ ]*'); do mkdir -p .$(dirname $l); cp $l .$l; done
printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: /var/lib/registry}, delete: {enabled: true}}\nhttp: {addr: ":5000"}\n' >etc/docker/registry/config.yml
tar -cf ../registry.tar .`
	if err := os.MkdirAll(dir, 0o755); err != nil {
		e.T.Fatal(err)
	}
	c := exec.Command("sh", "-c", script)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		e.T.Skipf("make the registry image: %v\n%s", err, out)
	}
	e.Run("import", "-c", `ENTRYPOINT ["/bin/registry"]`, "-c", `CMD ["serve","/etc/docker/registry/config.yml"]`, "-c", "VOLUME /var/lib/registry", "-c", "EXPOSE 5000", filepath.Join(e.Dir, "registry.tar"), "registry:2")
}

// TestRegistryInContainer is a private registry as the field runs it: in a
// container on one machine, which another machine pulls from, also when the
// first one's engine has been killed and when the registry has.
func TestRegistryInContainer(t *testing.T) {
	const name = "10.99.0.1:5000/team/box:1"
	a := start(t, "--insecure-registry", "10.99.0.1:5000")
	b := engine.New(t, "--insecure-registry", "10.99.0.0/24")
	wire(a, b)
	registryImage(a)
	a.Run("run", "-d", "-p", "5000:5000", "--restart", "always", "--name", "registry", "registry:2")
	a.Eventually("the registry answers", func() bool {
		_, err := a.HostRun("curl", "-sf", "http://10.99.0.1:5000/v2/")
		return err == nil
	})
	a.Run("tag", "busybox", name)
	engine.Contains(t, "push", a.Run("push", name), "digest: sha256:")
	engine.Contains(t, "pull", b.Run("pull", name), "Downloaded newer image")
	engine.Equal(t, "it runs", b.Run("run", "--rm", "--network", "none", name, "echo", "hello"), "hello")
	b.Run("rmi", name)
	a.Restart() // its containers live on
	engine.Contains(t, "pull", b.Run("pull", name), "Downloaded newer image")
	b.Run("rmi", name)
	pid := a.Run("inspect", "-f", "{{.State.Pid}}", "registry")
	a.HostRun("kill", "-9", pid)
	a.Eventually("the registry is back", func() bool {
		_, err := b.HostRun("curl", "-sf", "http://10.99.0.1:5000/v2/")
		return err == nil && a.Run("inspect", "-f", "{{.State.Pid}}", "registry") != pid
	})
	engine.Contains(t, "pull", b.Run("pull", name), "Downloaded newer image")
	a.Run("rm", "-fv", "registry")
	b.Fails(1, "10.99.0.1:5000", "pull", "10.99.0.1:5000/team/box:2")
	a.Audit()
	b.Audit()
}
