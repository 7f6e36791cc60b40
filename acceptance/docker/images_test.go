package docker

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"machine/acceptance/engine"
)

// registryOn starts Debian's registry on the engine's host and returns its
// address and how to end it.
func registryOn(e *engine.Engine, port int) (addr string, stop func()) {
	dir := filepath.Join(e.Dir, fmt.Sprint("registry", port))
	os.MkdirAll(dir, 0o700)
	conf := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: \"127.0.0.1:%d\"}\n", dir, port)
	if err := os.WriteFile(dir+".yml", []byte(conf), 0o600); err != nil {
		e.T.Fatal(err)
	}
	c := e.Host("sh", "-c", fmt.Sprintf("echo $$ >%s.pid; exec docker-registry serve %s.yml", dir, dir))
	if err := c.Start(); err != nil {
		e.T.Fatal(err)
	}
	stop = func() {
		e.HostRun("sh", "-c", fmt.Sprintf("kill -9 $(cat %s.pid)", dir))
		c.Wait()
	}
	e.Eventually("the registry answers", func() bool {
		_, err := e.HostRun("curl", "-sf", fmt.Sprintf("http://127.0.0.1:%d/v2/", port))
		return err == nil
	})
	return fmt.Sprintf("127.0.0.1:%d", port), stop
}

func TestImagesRoundTrip(t *testing.T) {
	e := start(t)
	reg, stop := registryOn(e, 5000)
	id := e.Run("images", "-q", "--no-trunc", "busybox")
	name := reg + "/my/box:v1"
	e.Run("tag", "busybox", name)
	engine.Contains(t, "push", e.Run("push", name), "digest: sha256:")
	engine.Contains(t, "push again", e.Run("push", name), "Layer already exists")
	e.Run("tag", "busybox", reg+"/other/box:v2")
	engine.Contains(t, "push elsewhere", e.Run("push", reg+"/other/box:v2"), "Mounted from my/box")
	digest := e.Run("inspect", "-f", "{{index .RepoDigests 0}}", name)
	engine.Contains(t, "repo digest", digest, reg+"/my/box@sha256:")
	e.Run("rmi", name, reg+"/other/box:v2")
	e.Run("rmi", "-f", "busybox")
	engine.Equal(t, "all gone", e.Run("images", "-q"), "")
	engine.Contains(t, "pull", e.Run("pull", name), "Downloaded newer image")
	engine.Contains(t, "pull again", e.Run("pull", name), "Image is up to date")
	engine.Equal(t, "same image", e.Run("images", "-q", "--no-trunc", name), id)
	engine.Equal(t, "it runs", e.Run("run", "--rm", name, "echo", "hello"), "hello")
	engine.Equal(t, "by digest", e.Run("run", "--rm", digest, "echo", "hello"), "hello")
	e.Run("tag", name, reg+"/my/box:v2")
	engine.Contains(t, "push all", e.Run("push", "-a", reg+"/my/box"), "v2: digest: sha256:")
	e.Run("rmi", reg+"/my/box:v2")
	engine.Contains(t, "pull all", e.Run("pull", "-a", reg+"/my/box"), "v2: Pulling from my/box")
	engine.Equal(t, "tags", e.Run("images", "-q", reg+"/my/box:v2", "--no-trunc"), id)
	engine.Contains(t, "login", e.Input("x", "login", "-u", "me", "--password-stdin", reg), "Login Succeeded")
	e.Fails(1, "manifest for "+reg+"/my/box:none not found", "pull", reg+"/my/box:none")
	if code, body := e.Do("GET", "/v1.50/distribution/"+name+"/json", ""); code != 200 || !strings.Contains(body, strings.TrimPrefix(digest, reg+"/my/box@")) || !strings.Contains(body, `"os":"linux"`) {
		t.Errorf("distribution: %d %s", code, body)
	}
	stop()
	e.Audit()
}

func TestSaveLoadCommit(t *testing.T) {
	e := start(t)
	tar := filepath.Join(e.Dir, "x.tar")
	id := e.Run("images", "-q", "--no-trunc", "busybox")
	e.Run("run", "--name", "cc", "busybox", "sh", "-c", "echo new >/file; rm /etc/group; mkdir /d; chmod 700 /d")
	diff := e.Run("diff", "cc")
	for _, want := range []string{"A /file", "D /etc/group", "C /etc", "A /d"} {
		engine.Contains(t, "diff", diff, want)
	}
	if strings.Contains(diff, "resolv.conf") || strings.Contains(diff, "dockerenv") {
		t.Errorf("the engine's own files are in the diff:\n%s", diff)
	}
	e.Run("commit", "-m", "why", "-a", "me", "-c", "ENV X=y", "-c", "CMD [\"cat\",\"/file\"]", "cc", "new:1")
	engine.Equal(t, "runs", e.Run("run", "--rm", "new:1"), "new")
	engine.Equal(t, "removed", e.Run("run", "--rm", "new:1", "sh", "-c", "ls /etc/group 2>/dev/null; echo $X; stat -c %a /d"), "y\n700")
	engine.Contains(t, "history", e.Run("history", "new:1"), "why")
	e.Run("save", "-o", tar, "busybox", "new:1")
	e.Run("rm", "cc")
	e.Fails(1, "image has dependent child images", "rmi", "-f", id)
	e.Run("rmi", "new:1", "busybox")
	engine.Equal(t, "all gone", e.Run("images", "-aq"), "")
	out := e.Run("load", "-i", tar)
	engine.Contains(t, "load", out, "Loaded image: busybox:latest")
	engine.Contains(t, "load", out, "Loaded image: new:1")
	engine.Equal(t, "same image", e.Run("images", "-q", "--no-trunc", "busybox"), id)
	engine.Equal(t, "runs", e.Run("run", "--rm", "new:1"), "new")
	e.Run("export", "-o", filepath.Join(e.Dir, "e.tar"), e.Run("create", "new:1"))
	e.Run("rm", e.Run("ps", "-aq"))
	engine.Equal(t, "filter", e.Run("images", "-q", "--filter", "reference=new*", "--no-trunc"), e.Run("inspect", "-f", "{{.Id}}", "new:1"))
	engine.Contains(t, "df", e.Run("system", "df"), "Images")
	engine.Contains(t, "prune", e.Run("image", "prune", "-af"), "deleted: sha256:")
	engine.Equal(t, "all gone", e.Run("images", "-aq"), "")
	e.Fails(1, "No such image: nope:latest", "inspect", "--type", "image", "nope")
	e.Audit()
}

// TestF28KilledInPull: an agent killed in the middle of a pull comes back
// with the image whole or absent, and the next pull succeeds.
func TestF28KilledInPull(t *testing.T) {
	e := start(t)
	reg, stop := registryOn(e, 5001)
	e.Run("run", "--name", "cc", "busybox", "sh", "-c", "dd if=/dev/urandom of=/a bs=1M count=40 2>/dev/null; md5sum /a >/sum")
	name := reg + "/big:1"
	e.Run("commit", "cc", name)
	e.Run("push", name)
	e.Run("rm", "cc")
	e.Run("rmi", name)
	for i := range 4 {
		pull := e.Docker("pull", name)
		if err := pull.Start(); err != nil {
			t.Fatal(err)
		}
		for range i*4 + 1 {
			e.HostRun("sleep", "0.02")
		}
		e.Kill()
		pull.Wait()
		e.Start()
		if e.Try("inspect", name).Code == 0 {
			engine.Equal(t, "whole", e.Run("run", "--rm", name, "md5sum", "-c", "/sum"), "/a: OK")
			e.Run("rmi", name)
		}
	}
	e.Run("pull", name)
	engine.Equal(t, "whole", e.Run("run", "--rm", name, "md5sum", "-c", "/sum"), "/a: OK")
	stop()
	e.Audit()
}

// TestF28KilledInLoad: the same for load and for removal; what was half done
// leaves nothing on the disk.
func TestF28KilledInLoad(t *testing.T) {
	e := start(t)
	tar := filepath.Join(e.Dir, "x.tar")
	e.Run("run", "--name", "cc", "busybox", "sh", "-c", "for i in 1 2 3; do dd if=/dev/urandom of=/a$i bs=1M count=15 2>/dev/null; done; md5sum /a* >/sum")
	e.Run("commit", "cc", "big:1")
	e.Run("save", "-o", tar, "big:1")
	e.Run("rm", "cc")
	for i := range 8 {
		args := []string{"load", "-i", tar}
		if i%2 == 0 {
			args = []string{"rmi", "big:1"}
		}
		c := e.Docker(args...)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		e.HostRun("sleep", fmt.Sprint(float64(i%2*i*i+i)*0.01))
		e.Kill()
		c.Wait()
		e.Start()
		if e.Try("inspect", "big:1").Code == 0 {
			engine.Equal(t, "whole", e.Run("run", "--rm", "big:1", "sh", "-c", "md5sum -c /sum | grep -c OK"), "3")
		} else {
			e.Run("load", "-i", tar)
		}
		for _, d := range []string{"staging", "trash"} {
			e.Eventually(d+" is empty", func() bool {
				list, err := os.ReadDir(filepath.Join(e.Dir, "data", d))
				return err == nil && len(list) == 0
			})
		}
	}
	e.Audit()
}
