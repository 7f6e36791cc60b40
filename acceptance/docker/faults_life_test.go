package docker

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"machine/acceptance/engine"
)

// TestF39OutOfMemory: a container without memory dies alone, and it is told.
func TestF39OutOfMemory(t *testing.T) {
	e := start(t)
	since := e.Run("info", "-f", "{{.SystemTime}}")
	agent := e.AgentPid()
	grow := "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done"
	e.Run("run", "-d", "--name", "by", "-m", "24m", "--memory-swap", "24m", "busybox", "sleep", "1000")
	r := e.Try("run", "--name", "oom", "-m", "16m", "--memory-swap", "16m", "busybox", "sh", "-c", grow)
	engine.Equal(t, "exit code", itoa(r.Code), "137")
	engine.Equal(t, "state", e.Run("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}", "oom"), "exited 137 true")
	until := e.Run("info", "-f", "{{.SystemTime}}")
	engine.Equal(t, "events", strings.Join(strings.Fields(e.Run("events", "--since", since, "--until", until, "--filter", "container=oom", "--format", "{{.Action}}")), " "), "create attach start oom die")
	engine.Equal(t, "an exec without memory", itoa(e.Try("exec", "by", "sh", "-c", grow).Code), "137")
	engine.Equal(t, "its container", status(e, "by"), "running")
	e.Eventually("it is told while the container lives", func() bool {
		now := e.Run("info", "-f", "{{.SystemTime}}")
		return e.Run("events", "--since", since, "--until", now, "--filter", "container=by", "--filter", "event=oom", "--format", "{{.Action}}") == "oom" &&
			e.Run("inspect", "-f", "{{.State.OOMKilled}} {{.State.Running}}", "by") == "true true"
	})
	e.Run("start", "oom")
	e.Eventually("it dies again", func() bool { return status(e, "oom") == "exited" })
	engine.Equal(t, "the agent", itoa(e.AgentPid()), itoa(agent))
	e.Audit()
}

// TestF40ForkBomb: every container has a limit of processes, and one that
// hits it disturbs nobody.
func TestF40ForkBomb(t *testing.T) {
	e := start(t)
	id := e.Run("run", "-d", "--name", "plain", "busybox", "sleep", "1000")
	base := filepath.Base(e.Dir)
	m, _ := filepath.Glob("/sys/fs/cgroup/pids/" + base + "/*" + id + "*/pids.max")
	v2, _ := filepath.Glob("/sys/fs/cgroup/" + base + "/*" + id + "*/pids.max")
	if m = append(m, v2...); len(m) != 1 {
		t.Fatalf("limits of processes: %v", m)
	}
	b, _ := os.ReadFile(m[0])
	engine.Equal(t, "limit by default", strings.TrimSpace(string(b)), "4096")
	e.Run("run", "-d", "--name", "bomb", "--pids-limit", "200", "busybox", "sh", "-c", "b() { b | b & }; b; sleep 1000")
	e.Eventually("the bomb went off", func() bool {
		return atoi(t, e.Run("stats", "--no-stream", "--format", "{{.PIDs}}", "bomb")) > 100 || e.Run("logs", "bomb") != "" || strings.Contains(e.Try("logs", "bomb").Err, "fork")
	})
	if n := atoi(t, e.Run("stats", "--no-stream", "--format", "{{.PIDs}}", "bomb")); n > 200 {
		t.Errorf("%d processes, 200 are allowed", n)
	}
	engine.Equal(t, "a neighbour", e.Run("run", "--rm", "busybox", "echo", "yes"), "yes")
	engine.Contains(t, "ps", e.Run("ps"), "bomb")
	e.Run("rm", "-f", "bomb")
	e.Audit()
}

// TestF42StuckReaders: clients that do not read block neither the container
// nor the agent, and cost no memory; output without newlines is cut at 16 KiB.
func TestF42StuckReaders(t *testing.T) {
	e := start(t)
	id := e.Run("run", "-d", "--name", "loud", "--log-opt", "max-size=20m", "--log-opt", "max-file=2", "busybox", "sh", "-c",
		"while [ ! -e /go ]; do sleep 0.05; done; dd if=/dev/zero bs=1M count=100 2>/dev/null | tr '\\0' x; touch /done; sleep 1000")
	fds, goroutines := counts(e)
	before := rss(t, e.AgentPid())
	var conns []net.Conn
	for _, text := range []string{
		"GET /containers/" + id + "/logs?follow=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /containers/" + id + "/attach?stream=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: x\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n\r\n",
		"GET /events HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /containers/" + id + "/stats HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		c, err := send(e, text)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.ReadFull(c, make([]byte, 12)); err != nil { // the answer has begun
			t.Fatalf("%.40q: %v", text, err)
		}
		conns = append(conns, c)
	}
	e.Run("exec", "loud", "touch", "/go")
	e.Eventually("the container is done", func() bool { return e.Try("exec", "loud", "test", "-e", "/done").Code == 0 })
	if grown := rss(t, e.AgentPid()) - before; grown > 64<<20 {
		t.Errorf("the agent grew by %d MiB", grown>>20)
	}
	records(t, filepath.Join(e.Dir, "data/containers", id, id+"-json.log"), func(log string) {
		if len(log) > 16<<10 {
			t.Fatalf("a record of %d bytes", len(log))
		}
	})
	e.Run("rm", "-f", "loud")
	for _, c := range conns {
		c.Close()
	}
	settles(e, fds, goroutines, 5)
	e.Audit()
}

// records calls f with each record of a json-file log and returns how many
// there are.
func records(t testing.TB, file string, f func(log string)) (n int) {
	t.Helper()
	b, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	s := bufio.NewScanner(b)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		var rec struct {
			Log    *string `json:"log"`
			Stream string  `json:"stream"`
			Time   string  `json:"time"`
		}
		if err := json.Unmarshal(s.Bytes(), &rec); err != nil || rec.Log == nil || rec.Stream == "" || rec.Time == "" {
			t.Fatalf("record %d of the log: %v: %.200q", n, err, s.Text())
		}
		f(*rec.Log)
		n++
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestF50Addresses: a network with 13 addresses is filled again and again,
// also while the agent dies: a lost address would be missing at the next
// filling, and one given twice would show.
func TestF50Addresses(t *testing.T) {
	e := start(t)
	const room = 13 // 16 less the network's, the gateway's and the broadcast address
	e.Run("network", "create", "--subnet", "10.98.0.0/28", "small")
	clear := func() {
		if ids := strings.Fields(e.Run("ps", "-aq")); len(ids) > 0 {
			e.Run(append([]string{"rm", "-f"}, ids...)...)
		}
		engine.Equal(t, "endpoints", e.Run("network", "inspect", "-f", "{{len .Containers}}", "small"), "0")
	}
	for round := range 16 {
		killed := round%5 == 2
		errs := make([]error, room)
		var wg sync.WaitGroup
		for i := range room {
			wg.Go(func() { errs[i] = runIn(e, "small") })
		}
		if killed {
			e.HostRun("sleep", fmt.Sprintf("0.0%d", round%8+1))
			e.Kill()
		}
		wg.Wait()
		if killed {
			e.Start()
			clear()
			continue
		}
		for _, err := range errs {
			if err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		all := strings.Fields(e.Run("network", "inspect", "-f", "{{range .Containers}}{{.IPv4Address}} {{end}}", "small"))
		slices.Sort(all)
		if n := len(slices.Compact(slices.Clone(all))); n != room {
			t.Fatalf("round %d: %d different addresses of %d: %v", round, n, len(all), all)
		}
		if round == 0 {
			if runIn(e, "small") == nil {
				t.Error("one container more than there are addresses")
			}
			e.Restart()
			if runIn(e, "small") == nil {
				t.Error("after a restart an address is given twice")
			}
		}
		clear()
	}
	e.Run("network", "rm", "small")
	e.Audit()
}

// runIn starts a container by the API.
func runIn(e *engine.Engine, network string) error {
	code, out, err := call(e, "POST", "/containers/create", `{"Image":"busybox","Cmd":["sleep","1000"],"HostConfig":{"NetworkMode":"`+network+`"}}`)
	if err != nil || code != 201 {
		return fmt.Errorf("create: %d, %v: %s", code, err, out)
	}
	var made struct{ ID string }
	if err := json.Unmarshal([]byte(out), &made); err != nil {
		return err
	}
	if code, out, err = call(e, "POST", "/containers/"+made.ID+"/start", ""); err != nil || code != 204 {
		return fmt.Errorf("start: %d, %v: %s", code, err, out)
	}
	return nil
}

// TestF51PortHeld: a port that a process of the host has is a clear error,
// and nothing of the failed start stays.
func TestF51PortHeld(t *testing.T) {
	e := start(t)
	pidfile := filepath.Join(e.Dir, "holder.pid")
	c := e.Host("sh", "-c", "echo $$ >"+pidfile+"; exec busybox httpd -f -p 9090 -h /tmp")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	e.Eventually("the port is held", func() bool {
		out, _ := e.HostRun("ss", "-Hltn", "sport = :9090")
		return out != ""
	})
	e.Fails(125, "address already in use", "run", "-d", "--name", "want", "-p", "9091:81", "-p", "9090:80", "busybox", "sleep", "1000")
	engine.Equal(t, "state", e.Run("inspect", "-f", "{{.State.Status}} {{.State.Pid}} {{.NetworkSettings.SandboxKey}}", "want"), "created 0")
	engine.Equal(t, "endpoints", e.Run("network", "inspect", "-f", "{{len .Containers}}", "bridge"), "0")
	if left, _ := filepath.Glob(filepath.Join(e.Dir, "run/tasks/*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	e.Run("run", "-d", "--name", "half", "-p", "9091:81", "busybox", "sleep", "1000")
	e.Run("rm", "-f", "half")
	e.HostRun("sh", "-c", "kill -9 $(cat "+pidfile+")")
	c.Wait()
	e.Run("start", "want")
	engine.Contains(t, "published now", e.Run("port", "want"), "0.0.0.0:9090")
	e.Audit()
}

// TestF52VolumeBusy: who uses a volume is known also after a restart.
func TestF52VolumeBusy(t *testing.T) {
	e := start(t)
	e.Run("volume", "create", "busy")
	e.Run("run", "-d", "--name", "user", "-v", "busy:/d", "busybox", "sh", "-c", "echo kept >/d/f; sleep 1000")
	busy := func(when string) {
		t.Helper()
		e.Fails(1, "in use", "volume", "rm", "busy")
		e.Run("volume", "prune", "-a", "-f")
		engine.Equal(t, when, e.Run("volume", "ls", "-q"), "busy")
	}
	busy("running")
	e.Restart()
	busy("after a restart")
	e.Run("stop", "-t", "0", "user")
	busy("stopped")
	e.Restart()
	busy("stopped, after a restart")
	engine.Equal(t, "content", e.Run("run", "--rm", "-v", "busy:/d", "busybox", "cat", "/d/f"), "kept")
	e.Run("rm", "user")
	e.Run("volume", "rm", "busy")
	e.Audit()
}

// TestF53KeptOverRestart: what was done to a container by hand stays done.
func TestF53KeptOverRestart(t *testing.T) {
	e := start(t)
	e.Run("run", "-d", "--name", "paused", "busybox", "sleep", "1000")
	e.Run("run", "-d", "--name", "stopped", "--restart", "unless-stopped", "busybox", "sleep", "1000")
	e.Run("run", "-d", "--name", "killed", "--restart", "unless-stopped", "busybox", "sleep", "1000")
	e.Run("run", "-d", "--name", "trap", "--stop-signal", "USR1", "--restart", "on-failure:2", "busybox", "sh", "-c", "trap 'exit 7' USR1; echo up; while :; do sleep 0.05; done")
	e.Eventually("the trap is set", func() bool { return e.Run("logs", "trap") == "up" })
	e.Run("update", "-m", "64m", "--memory-swap", "64m", "trap")
	e.Run("pause", "paused")
	e.Run("stop", "-t", "0", "stopped")
	e.Run("kill", "killed")
	pid := pidOf(e, "paused")
	for range 2 {
		e.Restart()
		engine.Equal(t, "paused", e.Run("inspect", "-f", "{{.State.Status}} {{.State.Paused}} {{.State.Pid}}", "paused"), "paused true "+pid)
		e.Fails(1, "is paused", "exec", "paused", "true")
		engine.Equal(t, "stopped", status(e, "stopped"), "exited")
		engine.Equal(t, "killed", status(e, "killed"), "exited")
		engine.Equal(t, "limit", e.Run("inspect", "-f", "{{.HostConfig.Memory}}", "trap"), itoa(64<<20))
	}
	e.Run("unpause", "paused")
	engine.Equal(t, "thawed", e.Run("exec", "paused", "echo", "yes"), "yes")
	e.Run("pause", "paused")
	e.Restart()
	e.Run("stop", "-t", "0", "paused")
	e.Run("stop", "trap")
	engine.Equal(t, "ended by its own signal", e.Run("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}", "trap"), "exited 7 0")
	e.Audit()
}

// TestF54Upgrade: an orderly end and a new agent on the same data, as an
// upgrade does it: containers notice nothing.
func TestF54Upgrade(t *testing.T) {
	e := start(t)
	e.Run("network", "create", "net")
	e.Run("run", "-d", "--name", "on", "--network", "net", "-p", "8080:80", "-v", "vol:/v", "--restart", "always", "busybox", "sh", "-c",
		"echo hello >/tmp/index.html; httpd -p 80 -h /tmp; i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done")
	pid, started := pidOf(e, "on"), e.Run("inspect", "-f", "{{.State.StartedAt}}", "on")
	for range 3 {
		e.Terminate()
		e.Start()
	}
	engine.Equal(t, "runs on", e.Run("inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}} {{.RestartCount}}", "on"), pid+" "+started+" 0")
	engine.Equal(t, "exec", e.Run("exec", "on", "echo", "yes"), "yes")
	engine.Equal(t, "name", e.Run("run", "--rm", "--network", "net", "busybox", "wget", "-qO-", "http://on/"), "hello")
	out, err := e.HostRun("curl", "-s", "-m", "5", "http://127.0.0.1:8080/")
	if err != nil || out != "hello" {
		t.Errorf("published port: %q, %v", out, err)
	}
	lines := strings.Split(e.Run("logs", "on"), "\n")
	for i, l := range lines {
		if l != itoa(i+1) {
			t.Fatalf("line %d of the log is %q", i+1, l)
		}
	}
	e.HostRun("kill", "-9", pid)
	e.Eventually("the policy still holds", func() bool {
		return e.Run("inspect", "-f", "{{.RestartCount}} {{.State.Running}}", "on") == "1 true"
	})
	e.Run("rm", "-f", "-v", "on")
	e.Run("volume", "rm", "vol")
	e.Run("network", "rm", "net")
	e.Audit()
}
