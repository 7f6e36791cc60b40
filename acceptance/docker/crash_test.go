package docker

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"machine/acceptance/engine"
)

// A running container survives the agent; what ended meanwhile is booked; no
// log line is lost.
func TestF29AgentKilled(t *testing.T) {
	e := start(t)
	e.Run("run", "-d", "--name", "on", "-p", "8080:80", "busybox", "sh", "-c", "i=0; echo hello >/tmp/index.html; httpd -p 80 -h /tmp; while :; do i=$((i+1)); echo $i; sleep 0.01; done")
	e.Run("run", "-d", "--name", "ends", "busybox", "sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.02; done; exit 5")
	e.Run("run", "-d", "--name", "rm", "--rm", "busybox", "sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.02; done")
	pid := e.Run("inspect", "-f", "{{.State.Pid}}", "on")
	for _, n := range []string{"ends", "rm"} {
		e.Run("exec", "-d", n, "sh", "-c", "sleep 0.7; touch /tmp/go")
	}
	e.Restart()
	engine.Equal(t, "pid", e.Run("inspect", "-f", "{{.State.Pid}}", "on"), pid)
	e.Eventually("the end is booked", func() bool {
		return e.Run("inspect", "-f", "{{.State.Status}}{{.State.ExitCode}}", "ends") == "exited5"
	})
	e.Eventually("--rm is done", func() bool { return e.Try("inspect", "rm").Code != 0 })
	engine.Equal(t, "exec afterwards", e.Run("exec", "on", "echo", "ok"), "ok")
	out, err := e.HostRun("curl", "-s", "-m", "5", "http://127.0.0.1:8080/")
	if err != nil || out != "hello" {
		t.Errorf("published port after the restart: %q, %v", out, err)
	}
	e.Run("stop", "-t", "0", "on")
	lines := strings.Split(e.Run("logs", "on"), "\n")
	for i, l := range lines {
		if l != fmt.Sprint(i+1) {
			t.Fatalf("line %d of the log is %q", i+1, l)
		}
	}
	e.Audit()
}

// A host that was rebooted: nothing of the old containers runs, their state
// says so, and policies are applied.
func TestF37Reboot(t *testing.T) {
	e := start(t)
	e.Run("run", "-d", "--name", "plain", "busybox", "sleep", "1000")
	e.Run("run", "-d", "--name", "always", "--restart", "always", "busybox", "sleep", "1000")
	e.Run("run", "-d", "--name", "stopped", "--restart", "unless-stopped", "busybox", "sleep", "1000")
	e.Run("stop", "-t", "0", "stopped")
	// What others have made looks like ours, and is not.
	foreign := "ip netns add other; ip link add vethother type veth peer name vethpeer; ip link add docker9 type bridge; nft add table ip other; nft add chain ip other c; mkdir -p " + filepath.Join(e.Dir, "foreign") + "; mount -t tmpfs tmpfs " + filepath.Join(e.Dir, "foreign") + "; umask 077; mkdir /run/docker-other"
	if out, err := e.HostRun("sh", "-ec", foreign); err != nil {
		t.Fatalf("%s, %v", out, err)
	}
	look := func() string {
		out, err := e.HostRun("sh", "-ec", "ip netns list; ip -o link | grep -c -e vethother -e vethpeer -e docker9; nft list table ip other; grep -c "+filepath.Join(e.Dir, "foreign")+" /proc/self/mounts; ls -d /run/docker-other")
		if err != nil {
			t.Errorf("what others made: %s, %v", out, err)
		}
		return out
	}
	before := look()
	e.Kill()
	e.HostRun("sh", "-c", "for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p = 1 ] || [ $p = $$ ] || kill -9 $p; done")
	e.Start()
	engine.Equal(t, "plain", e.Run("inspect", "-f", "{{.State.Running}}", "plain"), "false")
	e.Eventually("always is up", func() bool { return e.Run("inspect", "-f", "{{.State.Running}}", "always") == "true" })
	engine.Equal(t, "stopped", e.Run("inspect", "-f", "{{.State.Running}}", "stopped"), "false")
	e.Run("start", "plain")
	engine.Equal(t, "what others made", look(), before)
	e.HostRun("sh", "-c", "umount "+filepath.Join(e.Dir, "foreign")+"; ip link del vethother; ip link del docker9; ip netns del other")
	e.Audit()
}

func TestRestartPolicies(t *testing.T) {
	e := start(t)
	e.Run("run", "-d", "--name", "three", "--restart", "on-failure:3", "busybox", "false")
	e.Eventually("gave up", func() bool {
		return e.Run("inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "three") == "3 exited"
	})
	e.Run("run", "-d", "--name", "ever", "--restart", "always", "busybox", "true")
	e.Eventually("restarts", func() bool { return e.Run("inspect", "-f", "{{.RestartCount}}", "ever") != "0" })
	e.Run("stop", "ever")
	engine.Equal(t, "stays stopped", e.Run("inspect", "-f", "{{.State.Status}}", "ever"), "exited")
	e.Run("rm", "ever")
	e.Audit()
}

func TestHealth(t *testing.T) {
	e := start(t)
	e.Run("run", "-d", "--name", "ch", "--health-cmd", "test -e /tmp/well", "--health-interval", "50ms", "--health-retries", "2", "busybox", "sleep", "1000")
	status := func() string { return e.Run("inspect", "-f", "{{.State.Health.Status}}", "ch") }
	e.Eventually("unhealthy", func() bool { return status() == "unhealthy" })
	e.Run("exec", "ch", "touch", "/tmp/well")
	e.Eventually("healthy", func() bool { return status() == "healthy" })
	engine.Contains(t, "ps", e.Run("ps"), "(healthy)")
	e.Audit()
}

func TestLimits(t *testing.T) {
	e := start(t)
	r := e.Try("run", "--name", "oom", "-m", "20m", "--memory-swap", "20m", "busybox", "sh", "-c", "x=a; while :; do x=$x$x; done")
	engine.Equal(t, "code", fmt.Sprint(r.Code), "137")
	engine.Equal(t, "OOMKilled", e.Run("inspect", "-f", "{{.State.OOMKilled}}", "oom"), "true")
	e.Run("run", "-d", "--name", "cl", "--cpus", "0.5", "--pids-limit", "20", "-m", "64m", "--ulimit", "nofile=100:200", "--sysctl", "net.ipv4.ip_default_ttl=33", "--shm-size", "8m", "busybox", "sleep", "1000")
	engine.Equal(t, "ulimit", e.Run("exec", "cl", "sh", "-c", "ulimit -n"), "100")
	engine.Equal(t, "sysctl", e.Run("exec", "cl", "cat", "/proc/sys/net/ipv4/ip_default_ttl"), "33")
	engine.Contains(t, "stats", e.Run("stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "cl"), "64MiB")
	if got := e.Run("run", "--rm", "-d", "--name", "nolimit", "busybox", "sleep", "1000"); got == "" || strings.Contains(e.Run("stats", "--no-stream", "--format", "{{.MemUsage}}", "nolimit"), "EiB") {
		t.Error("a container without a limit has more memory than the host")
	}
	e.Run("update", "-m", "96m", "--memory-swap", "96m", "cl")
	engine.Contains(t, "updated", e.Run("stats", "--no-stream", "--format", "{{.MemUsage}}", "cl"), "96MiB")
	if e.Try("exec", "cl", "sh", "-c", "for i in $(seq 30); do sleep 5 & done; wait").Code == 0 {
		t.Error("more processes than the limit")
	}
	e.Fails(125, "minimum memory limit", "run", "-m", "1k", "busybox", "true")
	e.Audit()
}

// The sequences of events that compose and others rely on.
func TestEvents(t *testing.T) {
	e := start(t)
	since := strings.TrimSpace(e.Run("info", "-f", "{{.SystemTime}}"))
	e.Run("run", "--name", "first", "--label", "k=v", "busybox", "true")
	e.Run("run", "-d", "--name", "second", "busybox", "sleep", "1000")
	e.Run("restart", "-t", "0", "second")
	e.Run("rm", "-f", "second")
	until := strings.TrimSpace(e.Run("info", "-f", "{{.SystemTime}}"))
	seq := func(name string) string {
		out := e.Run("events", "--since", since, "--until", until, "--filter", "container="+name, "--format", "{{.Action}}")
		return strings.Join(strings.Fields(out), " ")
	}
	engine.Equal(t, "run", seq("first"), "create attach start die")
	engine.Equal(t, "restart and rm -f", seq("second"), "create start kill kill die stop start restart kill die destroy")
	engine.Contains(t, "attributes", e.Run("events", "--since", since, "--until", until, "--filter", "event=die", "--filter", "container=first"), "k=v")
	e.Audit()
}
