package docker

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"machine/acceptance/engine"
)

// TestSkopeoDaemon: skopeo and buildah take images from the engine's socket and
// put images there, as they do with dockerd; they speak an old API.
func TestSkopeoDaemon(t *testing.T) {
	e := start(t)
	id := layered(e)
	socket := "unix://" + e.AgentSocket()
	from, to := []string{"--src-daemon-host", socket}, []string{"--dest-daemon-host", socket}
	engine.Contains(t, "inspect", tool(e, "skopeo", "--insecure-policy", "inspect", "--daemon-host", socket, "docker-daemon:new:1"), `"Architecture": "amd64"`)
	skopeo(e, "docker-daemon:new:1", "oci:"+e.Dir+"/layout:1", from...)
	skopeo(e, "docker-daemon:"+id, "docker-archive:"+e.Dir+"/byid.tar", from...)
	skopeo(e, "docker-daemon:new:1", "docker-daemon:copied:1", append(from, to...)...)
	engine.Equal(t, "the same image", e.Run("inspect", "-f", "{{.Id}}", "copied:1"), id)
	e.Run("rmi", "-f", "copied:1", "new:1", "new:0")
	skopeo(e, "oci:"+e.Dir+"/layout:1", "docker-daemon:laid:1", to...)
	saysLayered(t, e, "laid:1")
	e.Run("rmi", "-f", "laid:1")
	skopeo(e, "docker-archive:"+e.Dir+"/byid.tar", "docker-daemon:new:1", to...)
	engine.Equal(t, "the same image", e.Run("inspect", "-f", "{{.Id}}", "new:1"), id)

	if _, err := os.Stat("/usr/bin/buildah"); err != nil {
		t.Skip(err)
	}
	if out, err := e.HostRun("ln", "-s", e.AgentSocket(), "/run/docker.sock"); err != nil {
		t.Fatal(out)
	}
	policy, file := filepath.Join(e.Dir, "policy.json"), filepath.Join(e.Dir, "ctx", "Dockerfile")
	os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600)
	os.Mkdir(filepath.Dir(file), 0o755)
	os.WriteFile(file, []byte("FROM docker-daemon:new:1\nRUN rm /d/fifo && echo built >/built\n"), 0o600)
	buildah := func(args ...string) {
		t.Helper()
		tool(e, "buildah", append([]string{"--root", e.Dir + "/b", "--runroot", e.Dir + "/br"}, args...)...)
	}
	buildah("bud", "--signature-policy", policy, "-t", "built:1", filepath.Dir(file))
	buildah("push", "--signature-policy", policy, "built:1", "docker-daemon:built:1")
	engine.Equal(t, "what buildah has built", e.Run("run", "--rm", "--network", "none", "built:1", "sh", "-c", "cat /built; ls /d"), "built\nlink\nmore")
	e.Audit()
}

// TestManifestList: docker manifest makes and pushes a list, of which a pull
// gets its part, and an archive of all of it is loaded.
func TestManifestList(t *testing.T) {
	e := start(t)
	reg, stop := registryOn(e, 5000)
	list := reg + "/box:all"
	e.Run("tag", "busybox", reg+"/box:amd64")
	other := filepath.Join(e.Dir, "busybox.tar")
	e.Run("import", "--platform", "linux/arm64", "--change", "LABEL other=yes", other, reg+"/box:arm64")
	e.Run("push", "-a", reg+"/box")
	manifest := func(args ...string) string { // the client's own business: from the registry's host
		t.Helper()
		out, err := e.HostRun(append([]string{"env", "DOCKER_CONFIG=" + e.Dir + "/client", "docker", "manifest"}, args...)...)
		if err != nil {
			t.Fatal(out)
		}
		return out
	}
	manifest("create", "--insecure", list, reg+"/box:amd64", reg+"/box:arm64")
	manifest("push", "--insecure", list)
	engine.Contains(t, "inspect", manifest("inspect", "--insecure", list), `"architecture": "arm64"`)
	id := e.Run("inspect", "-f", "{{.Id}}", "busybox")
	e.Run("rmi", reg+"/box:amd64", reg+"/box:arm64")
	e.Run("pull", list)
	engine.Equal(t, "this host's", e.Run("inspect", "-f", "{{.Id}}", list), id)
	e.Run("pull", "-q", "--platform", "linux/arm64", list)
	engine.Equal(t, "the other", e.Run("inspect", "-f", "{{.Architecture}} {{.Config.Labels.other}}", list), "arm64 yes")
	e.Fails(1, "no match", "pull", "--platform", "linux/s390x", list)
	e.Run("rmi", list)
	for i, format := range [][]string{{"--all"}, {"--all", "--dest-compress-format", "zstd"}, {"--dest-oci-accept-uncompressed-layers", "--dest-decompress"}} {
		archive := filepath.Join(e.Dir, "all"+itoa(i)+".tar")
		skopeo(e, "docker://"+list, "oci-archive:"+archive+":all:"+itoa(i), format...)
		engine.Contains(t, "load", e.Run("load", "-i", archive), "Loaded image: all:"+itoa(i))
		engine.Equal(t, "this host's", e.Run("inspect", "-f", "{{.Architecture}}", "all:"+itoa(i)), "amd64")
		engine.Equal(t, "it runs", e.Run("run", "--rm", "--network", "none", "all:"+itoa(i), "echo", "hello"), "hello")
	}
	stop()
	e.Audit()
}

// treeScript makes a tree with what layers find hard to carry.
const treeScript = `set -e
cd $1; mkdir bin tmp etc d opq
cp /bin/busybox bin/; for a in sh ls cat rm mkdir ln chmod; do ln -s busybox bin/$a; done
ln bin/busybox bin/hard; echo x >d/x; echo y >opq/y; cp /bin/busybox bin/cap; setcap cap_net_raw+ep bin/cap
mkdir -p "dir with space/ü"; mknod c c 1 3; mkfifo p; touch -d '1999-01-02 03:04:05.123456789' old; chown 12345:54321 old
head -c 300000 /dev/zero >sparse; ln -s $(printf 'a%.0s' $(seq 150)) long; mkdir -p $(printf 'n%.0s' $(seq 120))/$(printf 'm%.0s' $(seq 120))
tar --xattrs --xattrs-include='*' -cf ../tree.tar .`

// TestDebianEngine: images go from Debian's dockerd to this engine and back by
// save and load, and their trees stay what they are: hard links, owners, times,
// capabilities, removed files and folders that were replaced.
func TestDebianEngine(t *testing.T) {
	if _, err := os.Stat("/usr/sbin/dockerd"); err != nil {
		t.Skip(err)
	}
	e := start(t)
	b, stop := debian(e)
	dir := filepath.Join(e.Dir, "tree")
	os.Mkdir(dir, 0o755)
	if out, err := exec.Command("sh", "-c", treeScript, "tree", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ours := func(args ...string) string { t.Helper(); return e.Run(args...) }
	for name, run := range map[string]func(...string) string{"ours": ours, "theirs": b} {
		run("import", filepath.Join(e.Dir, "tree.tar"), "base")
		run("run", "--name", "cc", "--network", "none", "base", "/bin/sh", "-c", "rm /old; rm -r /opq; mkdir /opq; echo new >/opq/new; ln /bin/hard /bin/hard2; chmod 700 /etc; rm -r '/dir with space/ü' /d; echo file >/d; mkdir /old; ln /bin/cap /bin/cap2")
		run("commit", "cc", name)
		run("rm", "cc")
		run("save", "-o", filepath.Join(e.Dir, name+".tar"), name)
	}
	b("load", "-i", filepath.Join(e.Dir, "ours.tar"))
	ours("load", "-i", filepath.Join(e.Dir, "theirs.tar"))
	for _, name := range []string{"ours", "theirs"} {
		engine.Equal(t, "id of "+name, ours("inspect", "-f", "{{.Id}}{{.RootFS.Layers}}", name), b("inspect", "-f", "{{.Id}}{{.RootFS.Layers}}", name))
		mine, theirs := listing(e, ours, name), listing(e, b, name)
		for i := range max(len(mine), len(theirs)) {
			if i >= len(mine) || i >= len(theirs) || mine[i] != theirs[i] {
				t.Errorf("tree of %s differs from line %d on:\n%s\n---\n%s", name, i, strings.Join(mine[min(i, len(mine)):], "\n"), strings.Join(theirs[min(i, len(theirs)):], "\n"))
				break
			}
		}
		engine.Contains(t, "a capability", strings.Join(mine, "\n"), "security.capability")
	}
	stop()
	e.Audit()
}

// listing tells what docker export gives of an image, without what engines put
// there themselves.
func listing(e *engine.Engine, run func(...string) string, image string) []string {
	e.T.Helper()
	file := filepath.Join(e.Dir, "export.tar")
	run("create", "--name", "ex", image, "/bin/sh")
	run("export", "-o", file, "ex")
	run("rm", "ex")
	out, err := exec.Command("tar", "-tvv", "--full-time", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-f", file).Output()
	if err != nil {
		e.T.Fatal(err)
	}
	var keep []string
	for _, l := range strings.Split(string(out), "\n") {
		f := strings.Fields(l)
		if len(f) > 5 && (strings.HasPrefix(f[5], "dev/") || strings.HasPrefix(f[5], "proc/") || strings.HasPrefix(f[5], "sys/") || strings.HasPrefix(f[5], "etc/") || f[5] == ".dockerenv") {
			continue
		}
		keep = append(keep, l)
	}
	return keep
}

// debian starts Debian's engine on the same host, and gives its client.
func debian(e *engine.Engine) (run func(...string) string, stop func()) {
	e.T.Helper()
	dir := filepath.Join(e.Dir, "debian")
	c := e.Host("sh", "-c", `mkdir $0 && mount -t tmpfs tmpfs $0 && mkdir $0/bin && exec dockerd -H unix://$0/s --data-root $0/data --exec-root $0/run --pidfile $0/pid --bridge none --iptables=false --ip-forward=false --cgroup-parent /`+filepath.Base(e.Dir)+`/debian >$0.log 2>&1`, dir)
	if err := c.Start(); err != nil {
		e.T.Fatal(err)
	}
	socket := "unix:///proc/" + itoa(e.AgentPid()) + "/root" + dir + "/s"
	docker := func(args ...string) ([]byte, error) {
		d := exec.Command("docker", append([]string{"-H", socket}, args...)...)
		d.Env = append(os.Environ(), "DOCKER_API_VERSION=1.41", "DOCKER_CONFIG="+e.Dir+"/client")
		return d.CombinedOutput()
	}
	stop = func() {
		e.HostRun("sh", "-c", `kill $(cat $0/pid); while [ -e $0/pid ]; do sleep 0.05; done; umount -l $0; rmdir /sys/fs/cgroup/*/$1/debian /sys/fs/cgroup/$1/debian`, dir, filepath.Base(e.Dir))
		c.Wait()
	}
	e.Eventually("Debian's engine answers", func() bool {
		_, err := docker("version")
		return err == nil
	})
	return func(args ...string) string {
		e.T.Helper()
		out, err := docker(args...)
		if err != nil {
			e.T.Fatalf("Debian's engine: docker %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}, stop
}
