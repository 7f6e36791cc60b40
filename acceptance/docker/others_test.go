package docker

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"machine/acceptance/engine"
)

// tool runs another program for images on the engine's host, with files of
// its own.
func tool(e *engine.Engine, name string, args ...string) string {
	e.T.Helper()
	if _, err := exec.LookPath(name); err != nil {
		e.T.Skip(err)
	}
	c := e.Host(append([]string{"env", "HOME=" + e.Dir, "TMPDIR=" + e.Dir, "STORAGE_DRIVER=vfs", "BUILDAH_ISOLATION=chroot", name}, args...)...)
	out, err := c.CombinedOutput()
	if err != nil {
		e.T.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func skopeo(e *engine.Engine, from, to string, more ...string) {
	e.T.Helper()
	tool(e, "skopeo", append([]string{"--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false", from, to}, more...)...)
}

// layered makes the image new:1 of three layers, and returns its id.
func layered(e *engine.Engine) string {
	e.Run("run", "--name", "cc", "busybox", "sh", "-c", "echo new >/file; rm /etc/group; mkdir /d; ln /file /d/link; ln -s /file /d/sym; mkfifo /d/fifo")
	e.Run("commit", "cc", "new:0")
	e.Run("rm", "cc")
	e.Run("run", "--name", "cc", "new:0", "sh", "-c", "echo more >/d/more; rm /d/sym")
	e.Run("commit", "-c", "CMD [\"sh\",\"-c\",\"cat /file /d/more; ls /d /etc\"]", "cc", "new:1")
	e.Run("rm", "cc")
	return e.Run("inspect", "-f", "{{.Id}}", "new:1")
}

const layeredSays = "new\nmore\n/d:\nfifo\nlink\nmore\n\n/etc:"

func saysLayered(t *testing.T, e *engine.Engine, name string) {
	t.Helper()
	engine.Contains(t, name, e.Run("run", "--rm", name), layeredSays)
}

// TestSkopeoRegistry: images that we push are copied by skopeo, and what it
// writes to registries is pulled, with layers of gzip and of zstd.
func TestSkopeoRegistry(t *testing.T) {
	e := start(t)
	reg, stop := registryOn(e, 5000)
	id := layered(e)
	e.Run("tag", "new:1", reg+"/our/box:1")
	e.Run("push", reg+"/our/box:1")
	skopeo(e, "docker://"+reg+"/our/box:1", "docker://"+reg+"/their/box:1")
	skopeo(e, "docker://"+reg+"/our/box:1", "oci:"+e.Dir+"/layout:1", "--dest-compress-format", "zstd")
	skopeo(e, "oci:"+e.Dir+"/layout:1", "docker://"+reg+"/their/zstd:1", "--format", "oci")
	e.Run("rmi", "-f", id)
	e.Run("pull", reg+"/their/box:1")
	engine.Equal(t, "same image", e.Run("inspect", "-f", "{{.Id}}", reg+"/their/box:1"), id)
	saysLayered(t, e, reg+"/their/box:1")
	e.Run("rmi", "-f", id, "new:0")
	e.Run("pull", reg+"/their/zstd:1")
	saysLayered(t, e, reg+"/their/zstd:1")
	stop()
	e.Audit()
}

// TestSkopeoArchives: skopeo reads what docker save writes, as docker-archive
// and as oci-archive; docker load reads what skopeo writes.
func TestSkopeoArchives(t *testing.T) {
	e := start(t)
	id := layered(e)
	file := func(name string) string { return filepath.Join(e.Dir, name) }
	e.Run("save", "-o", file("ours.tar"), "new:1")
	skopeo(e, "docker-archive:"+file("ours.tar")+":new:1", "docker-archive:"+file("1.tar")+":their:1")
	skopeo(e, "docker-archive:"+file("ours.tar"), "oci-archive:"+file("2.tar")+":their:2")
	skopeo(e, "oci-archive:"+file("ours.tar"), "docker-archive:"+file("3.tar")+":their:3")
	skopeo(e, "oci-archive:"+file("ours.tar"), "oci-archive:"+file("4.tar"), "--dest-compress-format", "zstd")
	for i := 1; i <= 4; i++ {
		e.Run("rmi", "-f", id, "new:0")
		if i == 2 { // Docker's own ids are kept by docker-archive only
			id = ""
		}
		out := e.Run("load", "-i", file(fmt.Sprint(i, ".tar")))
		got := strings.TrimPrefix(out[strings.LastIndex(out, "\n")+1:], "Loaded image: ")
		got = strings.TrimPrefix(got, "Loaded image ID: ")
		saysLayered(t, e, got)
		if i == 1 {
			engine.Equal(t, "same image", e.Run("inspect", "-f", "{{.Id}}", got), id)
			engine.Equal(t, "its name", got, "their:1")
		}
		id = e.Run("inspect", "-f", "{{.Id}}", got)
		e.Run("tag", got, "new:0")
	}
	e.Audit()
}

// TestBuildah: buildah pulls what we push and pushes what we pull.
func TestBuildah(t *testing.T) {
	if _, err := os.Stat("/usr/bin/buildah"); err != nil {
		t.Skip(err)
	}
	e := start(t)
	reg, stop := registryOn(e, 5000)
	layered(e)
	e.Run("tag", "new:1", reg+"/our/box:1")
	e.Run("push", reg+"/our/box:1")
	policy := filepath.Join(e.Dir, "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	buildah := func(args ...string) string {
		t.Helper()
		return tool(e, "buildah", append([]string{"--root", e.Dir + "/b", "--runroot", e.Dir + "/br"}, args...)...)
	}
	name := buildah("from", "--signature-policy", policy, "--tls-verify=false", reg+"/our/box:1")
	name = name[strings.LastIndex(name, "\n")+1:]
	buildah("config", "--env", "BY=buildah", name)
	for _, format := range []string{"oci", "docker"} {
		buildah("commit", "--signature-policy", policy, "--format", format, name, "their:"+format)
		buildah("push", "--signature-policy", policy, "--tls-verify=false", "their:"+format, "docker://"+reg+"/their/box:"+format)
		e.Run("pull", reg+"/their/box:"+format)
		saysLayered(t, e, reg+"/their/box:"+format)
		engine.Equal(t, "environment", e.Run("run", "--rm", reg+"/their/box:"+format, "sh", "-c", "echo $BY"), "buildah")
		archive := filepath.Join(e.Dir, format+".tar")
		buildah("push", "--signature-policy", policy, "their:"+format, format+"-archive:"+archive+":loaded:"+format)
		engine.Contains(t, "load", e.Run("load", "-i", archive), "loaded:"+format)
	}
	stop()
	e.Audit()
}
