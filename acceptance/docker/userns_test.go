package docker

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"machine/acceptance/engine"
)

// The host's ids of root in a remapped container.
const (
	mappedUID = 200000
	mappedGID = 300000
)

// ownEtc gives the engine's host an /etc of its own, changed by a script that
// runs in it.
func ownEtc(e *engine.Engine, script string) {
	e.T.Helper()
	out, err := e.HostRun("sh", "-ec", `cp -a /etc $0/etc; cd $0/etc; `+script+`
mount --bind $0/etc /etc`, e.Dir)
	if err != nil {
		e.T.Fatal(out, err)
	}
}

// startRemapped gives an engine whose containers run in user namespaces, with
// an image that has files of several owners.
func startRemapped(t *testing.T) *engine.Engine {
	t.Helper()
	e := start(t)
	e.Terminate()
	ownEtc(e, `echo mapped:x:7777:7777::/:/bin/false >>passwd; echo mapped:x:7777: >>group
echo mapped:`+fmt.Sprint(mappedUID)+`:65536 >subuid; echo mapped:`+fmt.Sprint(mappedGID)+`:65536 >subgid`)
	e.Flags = append(e.Flags, "--userns-remap", "mapped")
	e.Start()
	image(e, "owned", "mkdir data; echo u >data/u; echo v >data/v; chown 1000:2000 data/u; chown 7 data", "USER user")
	return e
}

func owners(e *engine.Engine, args ...string) string {
	e.T.Helper()
	return strings.Join(strings.Fields(e.Run(args...)), " ")
}

// onHost gives the owner of a file as the host sees it.
func onHost(e *engine.Engine, path string) string {
	e.T.Helper()
	out, err := e.HostRun("stat", "-c", "%u:%g", path)
	if err != nil {
		e.T.Fatal(out, err)
	}
	return out
}

func TestUserNamespaces(t *testing.T) {
	e := startRemapped(t)
	engine.Contains(t, "info", e.Run("info", "-f", "{{.SecurityOptions}}"), "name=userns")
	engine.Equal(t, "ids", e.Run("run", "--rm", "busybox", "id"), "uid=0(root) gid=0(root) groups=0(root)")
	engine.Equal(t, "map", owners(e, "run", "--rm", "busybox", "cat", "/proc/self/uid_map", "/proc/self/gid_map"), fmt.Sprintf("0 %d 65536 0 %d 65536", mappedUID, mappedGID))
	e.Run("run", "-d", "--name", "box", "-v", "vol:/vol", "--tmpfs", "/tmpfs", "owned", "sleep", "1000")
	engine.Equal(t, "host's id of a user", onHost(e, "/proc/"+pidOf(e, "box")), fmt.Sprintf("%d:%d", mappedUID+1000, mappedGID+1000))
	engine.Equal(t, "owners", owners(e, "exec", "box", "stat", "-c", "%u:%g", "/bin", "/data", "/data/u", "/data/v", "/tmpfs", "/dev/shm", "/dev/pts", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/vol"),
		"0:0 7:0 1000:2000 0:0 0:0 0:0 0:0 0:0 0:0 0:0 0:0")
	engine.Equal(t, "own file", owners(e, "exec", "box", "sh", "-c", "touch /tmp/mine; stat -c %u:%g /tmp/mine; echo out >/dev/stdout; echo err 2>/dev/null >/dev/stderr"), "1000:1000 out")
	upper := e.Run("inspect", "-f", "{{.GraphDriver.Data.UpperDir}}", "box")
	engine.Equal(t, "the disk holds the image's ids", onHost(e, upper+"/tmp/mine"), "1000:1000")
	engine.Equal(t, "a volume holds the host's", onHost(e, filepath.Join(e.Dir, "data/volumes/vol/_data")), fmt.Sprintf("%d:%d", mappedUID, mappedGID))
	e.Run("exec", "-u", "root", "box", "sh", "-c", "echo x >>/etc/hosts; echo x >/vol/x; chown 5:6 /vol/x; echo y >/data/v; mkdir /made; touch /dev/shm/a; ping -c 1 127.0.0.1")
	engine.Equal(t, "volume", onHost(e, filepath.Join(e.Dir, "data/volumes/vol/_data/x")), fmt.Sprintf("%d:%d", mappedUID+5, mappedGID+6))
	engine.Equal(t, "copied up", owners(e, "run", "--rm", "-v", "filled:/data", "owned", "stat", "-c", "%u:%g", "/data", "/data/u"), "7:0 1000:2000")
	engine.Equal(t, "an image mounted", owners(e, "run", "--rm", "--mount", "type=image,src=owned,dst=/img", "busybox", "stat", "-c", "%u:%g", "/img/data", "/img/data/u"), "7:0 1000:2000")
	engine.Equal(t, "a part of it", owners(e, "run", "--rm", "--mount", "type=image,src=owned,dst=/img,image-subpath=data", "busybox", "stat", "-c", "%u:%g", "/img", "/img/u"), "7:0 1000:2000")
	engine.Equal(t, "mounts", owners(e, "run", "--rm", "busybox", "sh", "-c", "awk '$2 ~ \"^/(proc|sys|dev/mqueue|dev/pts)$\" {print $3}' /proc/mounts | sort"), "devpts mqueue proc sysfs")
	engine.Equal(t, "inspect", e.Run("inspect", "-f", "{{.HostConfig.UsernsMode}}", "box"), "")
	engine.Equal(t, "top", owners(e, "top", "box", "-o", "uid"), fmt.Sprintf("UID %d", mappedUID+1000))
	engine.Equal(t, "terminal", strings.TrimSpace(e.Run("run", "--rm", "-t", "owned", "sh", "-c", "echo fine >/dev/tty; stat -c %u $(tty)")), "fine\r\n1000")
	engine.Equal(t, "devices", owners(e, "run", "--rm", "--device", "/dev/null:/dev/mine", "--device", "/dev/zero", "busybox", "sh", "-c",
		"echo x >/dev/mine && stat -c '%t,%T %u:%g' /dev/mine /dev/null && head -c 3 /dev/zero | wc -c"), "1,3 0:0 1,3 65534:65534 3")
	e.Fails(125, "not in the map", "run", "--rm", "-u", "70000", "busybox", "id")
	e.Fails(126, "not in the map", "exec", "-u", "70000", "box", "id")
	e.Fails(125, "privileged mode is incompatible with user namespaces", "run", "--rm", "--privileged", "busybox", "id")
	e.Fails(125, "cannot share the host's network namespace when user namespaces are enabled", "run", "--rm", "--net", "host", "busybox", "id")
	e.Fails(125, "cannot share the host PID namespace when user namespaces are enabled", "run", "--rm", "--pid", "host", "busybox", "id")
	e.Audit()
}

// With the host's user namespace all is as without the flag, on the same
// layers.
func TestUserNamespaceOfHost(t *testing.T) {
	e := startRemapped(t)
	engine.Equal(t, "map", owners(e, "run", "--rm", "--userns", "host", "busybox", "cat", "/proc/self/uid_map"), "0 0 4294967295")
	engine.Equal(t, "owners", owners(e, "run", "--rm", "--userns", "host", "owned", "stat", "-c", "%u:%g", "/bin", "/data", "/data/u"), "0:0 7:0 1000:2000")
	engine.Equal(t, "privileged", e.Run("run", "--rm", "--userns", "host", "--privileged", "--net", "host", "--pid", "host", "busybox", "id", "-u"), "0")
	e.Run("run", "-d", "--name", "host", "--userns", "host", "busybox", "sleep", "1000")
	e.Run("run", "-d", "--name", "box", "--ipc", "shareable", "busybox", "sleep", "1000")
	engine.Equal(t, "inspect", e.Run("inspect", "-f", "{{.HostConfig.UsernsMode}}", "host"), "host")
	ns := func(args ...string) string {
		return owners(e, append(append([]string{"run", "--rm"}, args...), "busybox", "sh", "-c", "readlink /proc/self/ns/user; readlink /proc/self/ns/net")...)
	}
	box := owners(e, "exec", "box", "sh", "-c", "readlink /proc/self/ns/user; readlink /proc/self/ns/net")
	engine.Equal(t, "joined network", ns("--net", "container:box"), box)
	engine.Equal(t, "joined all", ns("--net", "container:box", "--pid", "container:box", "--ipc", "container:box"), box)
	if got := ns(); got == box {
		t.Errorf("two containers share namespaces: %s", got)
	}
	engine.Equal(t, "ps", e.Run("run", "--rm", "--net", "container:box", "--pid", "container:box", "busybox", "sh", "-c", "cat /proc/1/comm"), "sleep")
	e.Fails(125, "host's user namespace", "run", "--rm", "--net", "container:host", "busybox", "id")
	e.Fails(125, "another user namespace", "run", "--rm", "--pid", "container:box", "busybox", "id")
	engine.Equal(t, "host joins", e.Run("run", "--rm", "--userns", "host", "--net", "container:box", "busybox", "id", "-u"), "0")
	engine.Equal(t, "ipc", e.Run("run", "--rm", "--ipc", "host", "busybox", "id", "-u"), "0")
	e.Audit()
}

// entries are the names and owners of a tar.
func entries(t *testing.T, b []byte) map[string]string {
	t.Helper()
	m := map[string]string{}
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return m
		}
		if err != nil {
			t.Fatal(err)
		}
		m[strings.TrimSuffix(h.Name, "/")] = fmt.Sprintf("%d:%d", h.Uid, h.Gid)
	}
}

// checkOwners copies the file in into the container box, and holds what comes
// out of it to the owners that the container sees.
func checkOwners(t *testing.T, e *engine.Engine, in, state string) {
	t.Helper()
	for _, to := range []string{"/data", "/vol"} {
		e.Run("cp", in, "box:"+to+"/kept")
		e.Run("cp", "-a", in, "box:"+to+"/users") // the container's user gets it
		c := e.Docker("cp", "-a", "box:"+to+"/.", "-")
		b, err := c.Output()
		if err != nil {
			t.Fatal(err)
		}
		m := entries(t, b)
		engine.Equal(t, state+": cp to and from "+to, m["./kept"], "55:66")
		engine.Equal(t, state+": cp -a to and from "+to, m["./users"], "1000:1000")
	}
	b, err := e.Docker("export", "box").Output()
	if err != nil {
		t.Fatal(err)
	}
	m := entries(t, b)
	for name, want := range map[string]string{"bin/busybox": "0:0", "data": "7:0", "data/u": "1000:2000", "data/kept": "55:66", "tmp/m": "1000:1000", "etc/hosts": "0:0", "proc": "0:0", "vol": "0:0"} {
		engine.Equal(t, state+": export of "+name, m[name], want)
	}
	for name := range m {
		if strings.HasPrefix(name, "proc/") || strings.HasPrefix(name, "sys/") || strings.HasPrefix(name, "vol/") || strings.HasPrefix(name, "dev/n") {
			t.Errorf("%s: export has %s", state, name)
		}
	}
	engine.Contains(t, state+": diff", e.Run("diff", "box"), " /data/kept")
	e.Run("commit", "box", "made")
	for _, ns := range []string{"", "host"} {
		engine.Equal(t, state+": committed", owners(e, "run", "--rm", "--userns", ns, "made", "stat", "-c", "%u:%g", "/data/kept", "/tmp/m"), "55:66 1000:1000")
	}
}

func TestUserNamespaceArchives(t *testing.T) {
	e := startRemapped(t)
	e.Run("run", "-d", "--name", "box", "-v", "vol:/vol", "owned", "sh", "-c", "echo m >/tmp/m; sleep 1000")
	e.Eventually("it wrote", func() bool { return e.Try("exec", "box", "test", "-s", "/tmp/m").Code == 0 })
	in := filepath.Join(e.Dir, "in")
	if err := os.WriteFile(in, []byte("in\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(in, 55, 66); err != nil {
		t.Fatal(err)
	}
	check := func(state string) { t.Helper(); checkOwners(t, e, in, state) }
	check("running")
	engine.Equal(t, "seen inside", owners(e, "exec", "box", "stat", "-c", "%u:%g", "/data/kept", "/vol/kept"), "55:66 55:66")
	e.Run("pause", "box")
	check("paused")
	e.Run("unpause", "box")
	e.Kill()
	e.Start()
	check("after a restart")
	engine.Equal(t, "exec", e.Run("exec", "box", "id", "-u"), "1000")
	// Running containers keep their map, whatever the engine's is now.
	flags := e.Flags
	e.Flags = nil
	e.Restart()
	e.Run("cp", in, "box:/data/later")
	engine.Equal(t, "seen inside", owners(e, "exec", "box", "stat", "-c", "%u:%g", "/data/later"), "55:66")
	e.Flags = flags
	e.Restart()
	e.Run("restart", "-t", "0", "box")
	engine.Equal(t, "restarted", owners(e, "exec", "box", "stat", "-c", "%u:%g", "/data/later", "/vol/kept"), "55:66 55:66")
	e.Run("rm", "-f", "box")
	e.Run("create", "--name", "box", "-v", "vol:/vol", "made")
	e.Run("cp", in, "box:/vol/x")
	engine.Equal(t, "stopped, in a volume", onHost(e, filepath.Join(e.Dir, "data/volumes/vol/_data/x")), fmt.Sprintf("%d:%d", mappedUID+55, mappedGID+66))
	check("stopped")
	big := filepath.Join(e.Dir, "big")
	if err := os.WriteFile(big, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(big, 70000, 0); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(e.Dir, "out")
	e.Run("cp", "box:/vol", out)
	for _, name := range []string{"x", "kept"} {
		if _, err := os.Stat(filepath.Join(out, name)); err != nil {
			t.Error(err)
		}
	}
	e.Fails(1, "is not among the 65536 ids", "cp", big, "box:/vol/big")
	e.Audit()
}

// TestS18RemappedRoot: root of a remapped container has no power over what is
// the engine's or the host's, also where it sees it (CVE-2021-21284).
func TestS18RemappedRoot(t *testing.T) {
	e := startRemapped(t)
	data := filepath.Join(e.Dir, "data")
	e.Run("volume", "create", "vol")
	e.Run("run", "--rm", "busybox", "true")
	before, err := e.HostRun("find", data, "-maxdepth", "2", "-printf", "%p %u %g %m\n")
	if err != nil {
		t.Fatal(before, err)
	}
	attempt := `cd /h 2>/dev/null || exit 0
for d in . * */* */*/*; do
	[ -L $d ] && continue # leads to what is the container's own
	chmod 777 $d 2>/dev/null && echo chmod $d
	chown 0 $d 2>/dev/null && echo chown $d
	mv $d $d.moved 2>/dev/null && echo mv $d
	touch $d/new 2>/dev/null && echo touch $d
	ln -s /etc $d/link 2>/dev/null && echo ln $d
done; true`
	for _, v := range []string{data, filepath.Join(data, "overlay2"), filepath.Join(data, "volumes"), filepath.Join(data, "image"), "/etc"} {
		engine.Equal(t, "power over "+v, e.Run("run", "--rm", "-v", v+":/h", "busybox", "sh", "-c", attempt), "")
	}
	// What is given to it, it may change: neither the way there, nor beside it.
	engine.Equal(t, "through a volume", e.Run("run", "--rm", "-v", "vol:/h", "busybox", "sh", "-c",
		"cd /h; touch a; for d in .. ../.. ../../volumes; do chmod 777 $d/vol $d/_data $d/metadata.db 2>/dev/null && echo $d; done; true"), "")
	// A program that the container makes for everybody is root's of nobody.
	e.Run("run", "--rm", "-v", "vol:/h", "busybox", "sh", "-c", "cp /bin/busybox /h/sh; chmod 4755 /h/sh")
	out, err := e.HostRun("stat", "-c", "%u %a", filepath.Join(data, "volumes/vol/_data/sh"))
	if err != nil || out != fmt.Sprintf("%d 4755", mappedUID) {
		t.Errorf("set-user-id file: %s, %v", out, err)
	}
	// Nor may a user of the host whose number is that of the container's root
	// go through the data root to any layer's file.
	for _, id := range []string{"1000", fmt.Sprint(mappedUID)} {
		out, err := e.HostRun("setpriv", "--reuid", id, "--regid", id, "--clear-groups", "ls", data)
		if err == nil {
			t.Errorf("user %s lists the data root: %s", id, out)
		}
	}
	after, err := e.HostRun("find", data, "-maxdepth", "2", "-printf", "%p %u %g %m\n")
	if err != nil {
		t.Fatal(after, err)
	}
	engine.Equal(t, "owners and modes of the data root", after, before)
	e.Audit()
}

// A kernel or a file system that cannot do it is told so at the start, as is a
// user without ids.
func TestUserNamespaceRefused(t *testing.T) {
	e := start(t)
	e.Terminate()
	flags := e.Flags
	e.Flags = append(flags[:len(flags):len(flags)], "--userns-remap", "nonesuch")
	if e.Launch() {
		t.Error("an unknown user was taken")
	}
	engine.Contains(t, "why", e.Log(), `no entry for "nonesuch"`)
	ownEtc(e, "echo mapped:x:7777:7777::/:/bin/false >>passwd; echo mapped:x:7777: >>group; echo mapped:200000:65536 >subuid; cp subuid subgid")
	if out, err := e.HostRun("mount", "-t", "ramfs", "ramfs", filepath.Join(e.Dir, "data")); err != nil {
		t.Fatal(out, err)
	}
	e.Flags = append(flags[:len(flags):len(flags)], "--userns-remap", "7777:mapped")
	if e.Launch() {
		t.Error("a file system without mapped ids was taken")
	}
	engine.Contains(t, "why", e.Log(), "cannot be mounted with mapped ids, which needs Linux 5.19")
	if out, err := e.HostRun("umount", filepath.Join(e.Dir, "data")); err != nil {
		t.Fatal(out, err)
	}
	e.Start()
	engine.Contains(t, "by number", e.Run("run", "--rm", "busybox", "cat", "/proc/self/uid_map"), "200000")
	// The default user is made when it is absent, once.
	if out, err := e.HostRun("sh", "-c", "echo other:100000:65536 >/etc/subuid; rm -f /etc/subgid"); err != nil {
		t.Fatal(out, err)
	}
	e.Flags = append(flags[:len(flags):len(flags)], "--userns-remap", "default")
	e.Restart()
	e.Restart()
	engine.Equal(t, "default", owners(e, "run", "--rm", "busybox", "cat", "/proc/self/uid_map", "/proc/self/gid_map"), "0 165536 65536 0 100000 65536")
	e.Audit()
}
