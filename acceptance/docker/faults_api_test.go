package docker

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"machine/acceptance/engine"
)

// TestF41FrozenStop: processes that cannot take a signal hold up their own
// stop only, and that not beyond its deadline.
func TestF41FrozenStop(t *testing.T) {
	t.Parallel() // it mostly waits
	e := start(t)
	id := e.Run("run", "-d", "--name", "ice", "busybox", "sleep", "1000")
	e.Run("run", "-d", "--name", "still", "busybox", "sleep", "1000")
	e.HostRun("kill", "-STOP", pidOf(e, "still"))
	e.Run("stop", "-t", "1", "still")
	engine.Equal(t, "a stopped process", e.Run("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "still"), "exited 137")
	freezer := freezerOf(e, id)
	if freezer == "" {
		t.Skip("no freezer to freeze behind the agent's back")
	}
	frozen, thawed := "FROZEN", "THAWED"
	if strings.HasSuffix(freezer, "cgroup.freeze") {
		frozen, thawed = "1", "0"
	}
	if err := os.WriteFile(freezer, []byte(frozen), 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile(freezer, []byte(thawed), 0o644)
	stopped := make(chan engine.Result, 1)
	go func() { stopped <- e.Try("stop", "-t", "0", "ice") }()
	deadline := time.After(time.Minute) // stop's own is some ten seconds
	for done := false; !done; {
		select {
		case r := <-stopped:
			done = true
			if r.Code != 0 {
				engine.Contains(t, "stop that failed", r.Err, "did not receive an exit event")
			}
		case <-deadline:
			t.Fatal("stop does not return")
		default:
			engine.Contains(t, "ps", e.Run("ps", "-a", "--format", "{{.Names}}"), "ice")
			e.Run("inspect", "ice")
		}
	}
	engine.Equal(t, "others start", e.Run("run", "--rm", "busybox", "echo", "yes"), "yes")
	os.WriteFile(freezer, []byte(thawed), 0o644)
	e.Eventually("once it can, it dies", func() bool { return status(e, "ice") == "exited" })
	e.Audit()
}

// freezerOf is the file that freezes a container, or "".
func freezerOf(e *engine.Engine, id string) string {
	base := filepath.Base(e.Dir)
	for _, p := range []string{"/sys/fs/cgroup/freezer/" + base + "/*" + id + "*/freezer.state", "/sys/fs/cgroup/" + base + "/*" + id + "*/cgroup.freeze"} {
		if m, _ := filepath.Glob(p); len(m) > 0 {
			return m[0]
		}
	}
	return ""
}

// TestF43ExecStorm: execs leave nothing behind in the agent or the shim.
func TestF43ExecStorm(t *testing.T) {
	e := start(t)
	id := e.Run("run", "-d", "--name", "storm", "busybox", "sleep", "1000")
	storm := func(n int) {
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				for range n {
					if err := execOnce(e, id); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	storm(1) // what is made once is made now
	fds, goroutines := counts(e)
	open := func() int {
		out, _ := e.HostRun("sh", "-c", "ls /proc/"+shimOf(e, "storm")+"/fd | wc -l")
		return atoi(t, out)
	}
	shimFDs := open()
	storm(3)
	settles(e, fds, goroutines, 5)
	e.Eventually("the shim's files are given back", func() bool { return open() <= shimFDs+5 })
	zombies(e, "after the storm")
	e.Eventually("only the container's own process is left", func() bool { return strings.Count(e.Run("top", "storm"), "\n") == 1 })
	e.Audit()
}

// execOnce runs an exec by the API to its end.
func execOnce(e *engine.Engine, id string) error {
	code, out, err := call(e, "POST", "/containers/"+id+"/exec", `{"Cmd":["echo","hi"],"AttachStdout":true,"AttachStderr":true}`)
	if err != nil || code != 201 {
		return fmt.Errorf("create exec: %d, %v: %s", code, err, out)
	}
	exec := strings.Split(out, `"`)[3]
	code, out, err = call(e, "POST", "/exec/"+exec+"/start", `{"Detach":false,"Tty":false}`)
	if err != nil || code != 200 || !strings.HasSuffix(out, "hi\n") {
		return fmt.Errorf("start exec: %d, %v: %q", code, err, out)
	}
	return nil
}

// zombies fails the test when dead processes stay on the engine's host.
func zombies(e *engine.Engine, when string) {
	e.T.Helper()
	e.Eventually("no zombies "+when, func() bool {
		out, _ := e.HostRun("sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ' || true")
		return out == "0"
	})
}

// TestF44Orphans: processes whose parents went are reaped, by --init inside
// and by the shim outside.
func TestF44Orphans(t *testing.T) {
	e := start(t)
	orphans := "i=0; while [ $i -lt 1000 ]; do ( : & ) ; i=$((i+1)); done"
	e.Run("run", "-d", "--init", "--name", "ini", "busybox", "sleep", "1000")
	e.Run("exec", "ini", "sh", "-c", orphans)
	zombies(e, "of a container with an init")
	e.Run("run", "-d", "--name", "own", "busybox", "sh", "-c", "while :; do wait; sleep 0.1; done")
	e.Run("exec", "own", "sh", "-c", "(sleep 0.2 & sleep 0.1 &) ; exit 0")
	for range 20 {
		e.Try("exec", "own", "/none/such")
		e.Run("exec", "-d", "own", "true")
	}
	shim := shimOf(e, "own")
	e.Eventually("the shim reaps its children", func() bool {
		out, _ := e.HostRun("sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z "+shim+" ' || true")
		return out == "0"
	})
	e.Run("kill", "own")
	e.Audit()
}

// TestF45Slowloris: who does not finish its request is cut off, and disturbs
// nobody meanwhile.
func TestF45Slowloris(t *testing.T) {
	t.Parallel() // it mostly waits
	e := start(t)
	fds, goroutines := counts(e)
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for i := range 200 {
		text := []string{
			"", "G", "GET /_ping HTTP/1.1\r\n", "GET /_ping HTTP/1.1\r\nHost: x\r\nX-A: ",
			"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"Image\":",
		}[i%5]
		c, err := send(e, text)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	for range 20 {
		if code, _, err := call(e, "GET", "/_ping", ""); code != 200 {
			t.Fatalf("ping beside slow clients: %d, %v", code, err)
		}
	}
	engine.Equal(t, "a container", e.Run("run", "--rm", "busybox", "echo", "yes"), "yes")
	limit := time.Now().Add(60 * time.Second) // the agent's own is some ten
	for i, c := range conns {
		if i%5 == 0 {
			continue // an idle connection costs little and may stay
		}
		c.SetReadDeadline(limit)
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Errorf("connection %d (kind %d) is not cut off: %v", i, i%5, err)
			break
		}
	}
	for _, c := range conns {
		c.Close()
	}
	settles(e, fds, goroutines, 5)
	e.Audit()
}

// TestF45IdleClients: a thousand clients that are connected and silent cost
// little, and slow down nobody.
func TestF45IdleClients(t *testing.T) {
	e := start(t)
	fds, goroutines := counts(e)
	before := rss(t, e.AgentPid())
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	const n = 1000
	for i := range n {
		text := ""
		if i%2 == 0 { // has asked once, and keeps its connection
			text = "GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n"
		}
		c, err := send(e, text)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		if text != "" {
			if _, err := io.ReadFull(c, make([]byte, 12)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if each := (rss(t, e.AgentPid()) - before) / n; each > 40<<10 {
		t.Errorf("an idle client costs %d KiB", each>>10)
	}
	var took []time.Duration
	for range 300 {
		began := time.Now()
		if code, _, err := call(e, "GET", "/containers/json?all=1", ""); code != 200 {
			t.Fatalf("list: %d, %v", code, err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	if p99 := took[len(took)*99/100]; p99 > 250*time.Millisecond { // 50 on a computer that does nothing else
		t.Errorf("a hundredth of the answers took longer than %v", p99)
	}
	t.Logf("median %v, p99 %v", took[len(took)/2], took[len(took)*99/100])
	for _, c := range conns {
		c.Close()
	}
	settles(e, fds, goroutines, 5)
	e.Audit()
}

// TestF46BadRequests: nonsense is refused with a status in the four hundreds
// and never ends the agent.
func TestF46BadRequests(t *testing.T) {
	e := start(t)
	e.Run("create", "--name", "there", "busybox", "true")
	big := `{"Image":"busybox","Cmd":["` + strings.Repeat("x", 5<<20) + `"]}`
	deep := strings.Repeat("[", 200_000)
	for _, c := range []struct{ what, path, body string }{
		{"huge body", "/containers/create", big},
		{"huge body elsewhere", "/networks/create", big},
		{"deep lists", "/containers/create", `{"Image":"busybox","Labels":` + deep},
		{"deep objects", "/networks/create", `{"Name":"x","Options":` + strings.Repeat(`{"a":`, 200_000)},
		{"truncated", "/containers/create", `{"Image":"busybox"`},
		{"two values", "/containers/create", `{"Image":"busybox"} {"Image":"busybox"}`},
		{"no object", "/containers/create", `[]`},
		{"null", "/containers/create", `null`},
		{"wrong type", "/containers/create", `{"Image":5}`},
		{"wrong deep type", "/containers/create", `{"Image":"busybox","HostConfig":{"Memory":"lots"}}`},
		{"number too large", "/containers/create", `{"Image":"busybox","HostConfig":{"Memory":1e400}}`},
		{"bad UTF-8 in the path", "/containers/%ff%fe/start", ""},
		{"bad UTF-8 in a name", "/containers/create?name=%ff%fe", `{"Image":"busybox","Cmd":["true"]}`},
		{"bad UTF-8 in a new name", "/containers/there/rename?name=a%ffb", ""},
		{"NUL in a name", "/containers/create?name=a%00b", `{"Image":"busybox","Cmd":["true"]}`},
		{"NUL in a network's name", "/networks/create", `{"Name":"a\u0000b"}`},
		{"NUL in a volume's name", "/volumes/create", `{"Name":"a\u0000b"}`},
		{"NUL in the environment", "/containers/create", `{"Image":"busybox","Cmd":["true"],"Env":["A=\u0000"]}`},
		{"NUL in the command", "/containers/create", `{"Image":"busybox","Cmd":["a\u0000b"]}`},
		{"NUL in a bind", "/containers/create", `{"Image":"busybox","Cmd":["true"],"HostConfig":{"Binds":["/tmp:/a\u0000b"]}}`},
		{"NUL in the directory", "/containers/create", `{"Image":"busybox","Cmd":["true"],"WorkingDir":"/a\u0000b"}`},
		{"NUL in an image's name", "/containers/create", `{"Image":"busy\u0000box","Cmd":["true"]}`},
		{"unknown mount type", "/containers/create", `{"Image":"busybox","Cmd":["true"],"HostConfig":{"Mounts":[{"Type":"magic","Target":"/x"}]}}`},
		{"unknown container", "/containers/ghost/exec", `{"Cmd":["true"]}`},
		{"exec of nothing", "/containers/there/exec", `{}`},
	} {
		refused(e, c.what, "POST", c.path, c.body)
	}
	// Duplicate keys and broken UTF-8 inside strings mean what they mean to
	// every reader of JSON in Go; they never hurt.
	for _, body := range []string{`{"Image":"nope","Image":"busybox","Cmd":["false"],"Cmd":["true"]}`, "{\"Image\":\"busybox\",\"Cmd\":[\"\xff\"],\"Labels\":{\"\xfe\":\"\xff\"}}"} {
		code, out, err := call(e, "POST", "/containers/create", body)
		if err != nil || code >= 500 || code < 200 {
			t.Errorf("%q: %d, %v: %s", body, code, err, out)
		}
	}
	for _, query := range []string{"filters={", "filters=%5B1%5D", "filters=%7B%22status%22%3A%22x%22%7D", "limit=x", "filters=%7B%22nope%22%3A%5B%22x%22%5D%7D"} {
		refused(e, query, "GET", "/containers/json?"+query, "")
	}
	c, err := send(e, "GET /"+strings.Repeat("a", 2<<20)+" HTTP/1.1\r\nHost: x\r\n\r\n")
	if err == nil {
		io.Copy(io.Discard, c)
		c.Close()
	}
	engine.Contains(t, "still there", e.Run("ps", "-a"), "there")
	e.Audit()
}

// TestF49Names: letters, digits, and after the first also _.-; 2 to 128 of
// them. An id goes before a name, a name before the start of an id.
func TestF49Names(t *testing.T) {
	e := start(t)
	body := `{"Image":"busybox","Cmd":["true"]}`
	for _, name := range []string{"a", "-ab", "_ab", ".ab", "..", "a/b", "a b", "a%20b", "%C3%A9t%C3%A9", "a:b", "a%0Ab", "%E2%80%AEba", strings.Repeat("x", 129), "a@b", "a$b"} {
		refused(e, "name "+name, "POST", "/containers/create?name="+strings.ReplaceAll(name, " ", "+"), body)
	}
	for _, name := range []string{"ab", "a.b", "a-b_c", "0a", "a..b", strings.Repeat("x", 128)} {
		if code, out, err := call(e, "POST", "/containers/create?name="+name, body); code != 201 {
			t.Errorf("name %s: %d, %v: %s", name, code, err, out)
		}
		engine.Equal(t, "found", e.Run("inspect", "-f", "{{.Name}}", name), "/"+name)
	}
	first := e.Run("create", "busybox", "true")
	second := e.Run("create", "--name", first[:12], "busybox", "true")
	engine.Equal(t, "id", e.Run("inspect", "-f", "{{.Id}}", first), first)
	engine.Equal(t, "a name goes before the start of an id", e.Run("inspect", "-f", "{{.Id}}", first[:12]), second)
	engine.Equal(t, "the start of an id", e.Run("inspect", "-f", "{{.Id}}", first[:13]), first)
	if r := e.Try("create", "--name", first, "busybox", "true"); r.Code == 0 {
		engine.Equal(t, "an id goes before a name", e.Run("inspect", "-f", "{{.Id}}", first), first)
	}
	for _, name := range []string{"../x", "a/b", "a b", ".", "..", strings.Repeat("y", 300)} {
		if e.Try("volume", "create", name).Code == 0 {
			t.Errorf("volume %q was made", name)
		}
	}
	for _, name := range []string{"a/b", " ", ".."} {
		if e.Try("network", "create", name).Code == 0 {
			t.Errorf("network %q was made", name)
		}
	}
	e.Restart()
	engine.Equal(t, "after a restart", e.Run("inspect", "-f", "{{.Id}}", first[:12]), second)
	e.Audit()
}
