// Package docker drives the engine by the real docker client.
package docker

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"machine/acceptance/engine"
)

// start gives an engine with the busybox image.
func start(t *testing.T, flags ...string) *engine.Engine {
	e := engine.New(t, flags...)
	e.Busybox()
	return e
}

func TestRun(t *testing.T) {
	e := start(t)
	engine.Contains(t, "version", e.Run("version"), "API version:")
	engine.Contains(t, "info", e.Run("info"), "Storage Driver: overlay2")
	engine.Contains(t, "images", e.Run("images"), "busybox")
	engine.Equal(t, "echo", e.Run("run", "--rm", "busybox", "echo", "hello"), "hello")
	engine.Equal(t, "env", e.Run("run", "--rm", "-e", "A=b c", "busybox", "sh", "-c", "echo $A"), "b c")
	engine.Equal(t, "workdir", e.Run("run", "--rm", "-w", "/made/here", "busybox", "pwd"), "/made/here")
	engine.Equal(t, "user", e.Run("run", "--rm", "-u", "user", "busybox", "id"), "uid=1000(user) gid=1000(user) groups=1000(user),2000(extra)")
	engine.Equal(t, "user numbers", e.Run("run", "--rm", "-u", "7:8", "busybox", "sh", "-c", "id -u; id -g"), "7\n8")
	engine.Equal(t, "hostname", e.Run("run", "--rm", "--hostname", "ship", "busybox", "hostname"), "ship")
	engine.Equal(t, "entrypoint", e.Run("run", "--rm", "--entrypoint", "echo", "busybox", "x", "y"), "x y")
	engine.Equal(t, "home", e.Run("run", "--rm", "-u", "user", "busybox", "sh", "-c", "echo $HOME"), "/home")
	engine.Contains(t, "hosts", e.Run("run", "--rm", "--add-host", "db:10.1.2.3", "busybox", "cat", "/etc/hosts"), "10.1.2.3\tdb")
	engine.Equal(t, "stderr", e.Try("run", "--rm", "busybox", "sh", "-c", "echo oops >&2").Err, "oops\n")
	engine.Equal(t, "read-only", fmt.Sprint(e.Try("run", "--rm", "--read-only", "busybox", "touch", "/x").Code), "1")
	engine.Equal(t, "pid 1", e.Run("run", "--rm", "busybox", "sh", "-c", "echo $$"), "1")
	engine.Equal(t, "init", e.Run("run", "--rm", "--init", "busybox", "sh", "-c", "test $$ -gt 1 && echo yes"), "yes")
	e.Audit()
}

func TestExitCodes(t *testing.T) {
	e := start(t)
	e.Fails(7, "", "run", "--rm", "busybox", "sh", "-c", "exit 7")
	e.Fails(137, "", "run", "--rm", "busybox", "sh", "-c", "sh -c 'kill -9 $$'; exit $?")
	e.Fails(127, "executable file not found", "run", "--rm", "busybox", "nonesuch")
	for range 5 { // the start's error alone, not beside it that of the wait
		if r := e.Try("run", "--network", "none", "busybox", "nonesuch"); strings.Contains(r.Err, "Error waiting") {
			t.Errorf("run of no program: %s", r.Err)
		}
	}
	e.Fails(127, "no such file or directory", "run", "--rm", "busybox", "/none/such")
	e.Fails(126, "permission denied", "run", "--rm", "busybox", "/etc/passwd")
	e.Fails(1, "No such container", "start", "-a", "ghost")
	e.Fails(125, "Unable to find image", "run", "--rm", "127.0.0.1:1/ghost")
	e.Run("create", "--name", "taken", "busybox")
	e.Fails(125, "is already in use", "run", "--name", "taken", "busybox")
	e.Audit()
}

func TestInput(t *testing.T) {
	e := start(t)
	engine.Equal(t, "cat", e.Input("some\nlines\n", "run", "--rm", "-i", "busybox", "cat"), "some\nlines")
	big := strings.Repeat("0123456789abcde\n", 400_000) // 6.4 MB
	engine.Equal(t, "count", e.Input(big, "run", "--rm", "-i", "busybox", "wc", "-c"), fmt.Sprint(len(big)))
	if got := e.Input(big, "run", "--rm", "-i", "busybox", "cat"); got+"\n" != big {
		t.Errorf("cat of %d bytes gave %d", len(big), len(got)+1)
	}
	e.Audit()
}

func TestLifecycle(t *testing.T) {
	e := start(t)
	id := e.Run("run", "-d", "--name", "web", "--label", "tier=front", "busybox", "sh", "-c", "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done")
	engine.Contains(t, "ps", e.Run("ps", "--filter", "label=tier=front"), "web")
	engine.Contains(t, "top", e.Run("top", "web"), "echo up")
	e.Eventually("it says up", func() bool { return e.Run("logs", "web") == "up" })
	e.Run("pause", "web")
	engine.Contains(t, "paused", e.Run("ps"), "(Paused)")
	e.Run("unpause", "web")
	e.Run("rename", "web", "shop")
	engine.Equal(t, "inspect name", e.Run("inspect", "-f", "{{.Name}} {{.Id}}", "shop"), "/shop "+id)
	e.Run("stop", "shop")
	engine.Equal(t, "wait", e.Run("wait", "shop"), "3")
	engine.Contains(t, "ps -a", e.Run("ps", "-a"), "Exited (3)")
	engine.Equal(t, "logs", e.Run("logs", "shop"), "up\nbye")
	e.Run("start", "shop")
	e.Run("restart", "-t", "1", "shop")
	engine.Equal(t, "running", e.Run("inspect", "-f", "{{.State.Running}}", "shop"), "true")
	e.Fails(1, "cannot remove container", "rm", "shop")
	e.Run("kill", "shop")
	engine.Equal(t, "killed", e.Run("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "shop"), "exited 137")
	e.Run("rm", "shop")
	e.Fails(1, "No such", "inspect", "shop")
	e.Fails(1, "No such container", "kill", "shop")
	e.Audit()
}

func TestLogs(t *testing.T) {
	e := start(t)
	e.Run("run", "--name", "cl", "busybox", "sh", "-c", "for i in 1 2 3 4 5; do echo line $i; done; echo err >&2")
	engine.Equal(t, "tail", e.Run("logs", "--tail", "2", "cl"), "line 5")
	r := e.Try("logs", "-t", "cl")
	if f := strings.SplitN(strings.TrimSpace(r.Out), "\n", 2)[0]; len(strings.Fields(f)[0]) != len("2026-11-21T15:24:21.123456789Z") {
		t.Errorf("timestamps: %q", f)
	}
	engine.Equal(t, "stderr", r.Err[31:], "err\n")
	follow := e.Docker("logs", "-f", "cf")
	e.Run("run", "-d", "--name", "cf", "busybox", "sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.1; done")
	b, err := follow.Output()
	if err != nil || string(b) != "1\n2\n3\n" {
		t.Errorf("logs -f: %q, %v", b, err)
	}
	e.Run("run", "--name", "cn", "--log-driver", "none", "busybox", "echo", "x")
	e.Fails(1, "does not support reading", "logs", "cn")
	e.Run("run", "--name", "loc", "--log-driver", "local", "busybox", "echo", "kept")
	engine.Equal(t, "local driver", e.Run("logs", "loc"), "kept")
	e.Audit()
}

func TestExec(t *testing.T) {
	e := start(t)
	e.Run("run", "-d", "--name", "cx", "-e", "A=1", "busybox", "sleep", "1000")
	engine.Equal(t, "exec", e.Run("exec", "cx", "echo", "hi"), "hi")
	engine.Equal(t, "env", e.Run("exec", "-e", "B=2", "cx", "sh", "-c", "echo $A$B"), "12")
	engine.Equal(t, "user and dir", e.Run("exec", "-u", "user", "-w", "/tmp", "cx", "sh", "-c", "id -un; pwd"), "user\n/tmp")
	engine.Equal(t, "stdin", e.Input("abc", "exec", "-i", "cx", "cat"), "abc")
	e.Fails(9, "", "exec", "cx", "sh", "-c", "exit 9")
	e.Fails(127, "executable file not found", "exec", "cx", "nonesuch")
	e.Fails(126, "permission denied", "exec", "cx", "/etc/passwd")
	e.Run("exec", "-d", "cx", "touch", "/tmp/mark")
	e.Eventually("detached exec ran", func() bool { return e.Try("exec", "cx", "test", "-e", "/tmp/mark").Code == 0 })
	e.Run("pause", "cx")
	e.Fails(1, "is paused", "exec", "cx", "true")
	e.Run("unpause", "cx")
	e.Run("stop", "-t", "0", "cx")
	e.Fails(1, "is not running", "exec", "cx", "true")
	e.Audit()
}

func TestCopy(t *testing.T) {
	e := start(t)
	e.Run("create", "--name", "cc", "busybox", "sleep", "1000")
	src := filepath.Join(e.Dir, "src")
	os.MkdirAll(filepath.Join(src, "sub"), 0o755)
	os.WriteFile(filepath.Join(src, "sub", "file"), []byte("data"), 0o640)
	e.Run("cp", src, "cc:/tmp/in")
	e.Run("start", "cc")
	engine.Equal(t, "in", e.Run("exec", "cc", "cat", "/tmp/in/sub/file"), "data")
	e.Run("exec", "cc", "sh", "-c", "echo more >/tmp/in/out; ln -s /tmp/in/out /tmp/link")
	e.Run("cp", "cc:/tmp/in/out", filepath.Join(e.Dir, "out"))
	if b, _ := os.ReadFile(filepath.Join(e.Dir, "out")); string(b) != "more\n" {
		t.Errorf("copied out: %q", b)
	}
	e.Run("cp", "-L", "cc:/tmp/link", filepath.Join(e.Dir, "out2"))
	if b, _ := os.ReadFile(filepath.Join(e.Dir, "out2")); string(b) != "more\n" {
		t.Errorf("copied through a link: %q", b)
	}
	e.Fails(1, "Could not find the file", "cp", "cc:/none", e.Dir)
	diff := e.Run("diff", "cc")
	engine.Contains(t, "diff", diff, "A /tmp/in/sub/file")
	e.Run("export", "-o", filepath.Join(e.Dir, "x.tar"), "cc")
	e.Audit()
}

func TestInspectFields(t *testing.T) {
	e := start(t)
	e.Run("run", "-d", "--name", "ci", "-p", "8080:80", "--restart", "unless-stopped", "busybox", "sleep", "1000")
	var in []map[string]any
	if err := json.Unmarshal([]byte(e.Run("inspect", "ci")), &in); err != nil || len(in) != 1 {
		t.Fatal(err)
	}
	ns := in[0]["NetworkSettings"].(map[string]any)
	if ip := ns["IPAddress"]; ip != "172.17.0.2" {
		t.Errorf("legacy IPAddress: %v", ip)
	}
	engine.Contains(t, "port", e.Run("port", "ci"), "80/tcp -> 0.0.0.0:8080")
	engine.Equal(t, "gateway", e.Run("network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "bridge"), "172.17.0.1")
	engine.Contains(t, "containers of a network", e.Run("network", "inspect", "bridge"), "172.17.0.2/16")
	e.Audit()
}
