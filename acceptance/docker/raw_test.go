package docker

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"machine/acceptance/engine"
)

// call makes one request straight to the agent. It is safe in goroutines: it
// never fails the test itself.
func call(e *engine.Engine, method, path, body string, header ...string) (int, string, error) {
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", e.AgentSocket())
	}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequest(method, "http://engine"+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// send opens a connection to the agent and writes text to it. The caller
// closes it.
func send(e *engine.Engine, text string) (net.Conn, error) {
	c, err := net.Dial("unix", e.AgentSocket())
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(c, text); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// refused fails the test when a request is not answered by a status in the
// four hundreds, or when the agent does not live on.
func refused(e *engine.Engine, what, method, path, body string) {
	e.T.Helper()
	code, out, err := call(e, method, path, body)
	if err != nil || code < 400 || code > 499 {
		e.T.Errorf("%s: status %d, %v, want 4xx: %.200s", what, code, err, out)
	}
	if code, _, err := call(e, "GET", "/_ping", ""); code != 200 {
		e.T.Fatalf("%s: the agent does not answer any more: %d, %v", what, code, err)
	}
}

// counts are the agent's open files and goroutines, as info tells them.
func counts(e *engine.Engine) (fds, goroutines int) {
	e.T.Helper()
	code, out, err := call(e, "GET", "/info", "")
	var in struct{ NFd, NGoroutines int }
	if err != nil || code != 200 || json.Unmarshal([]byte(out), &in) != nil || in.NFd < 3 || in.NGoroutines < 2 {
		e.T.Fatalf("info: %d, %v: %.200s", code, err, out)
	}
	return in.NFd, in.NGoroutines
}

// settles waits until the agent is back at its counts, give or take slack.
func settles(e *engine.Engine, fds, goroutines, slack int) {
	e.T.Helper()
	var f, g int
	defer func() {
		if f > fds+slack || g > goroutines+slack {
			e.T.Errorf("open files %d, goroutines %d; before: %d and %d", f, g, fds, goroutines)
		}
	}()
	e.Eventually("files and goroutines are given back", func() bool {
		f, g = counts(e)
		return f <= fds+slack && g <= goroutines+slack
	})
}

// rss is a process's resident memory in bytes, as the test sees it.
func rss(t testing.TB, pid int) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			return atoi(t, f[1]) << 10
		}
	}
	t.Fatalf("no VmRSS of process %d", pid)
	return 0
}

// pidOf is a running container's first process, in the engine's host.
func pidOf(e *engine.Engine, name string) string {
	e.T.Helper()
	return e.Run("inspect", "-f", "{{.State.Pid}}", name)
}

// shimOf is the process that holds a running container, in the engine's host.
func shimOf(e *engine.Engine, name string) string {
	e.T.Helper()
	out, err := e.HostRun("sh", "-c", "awk '/^PPid:/ {print $2}' /proc/"+pidOf(e, name)+"/status")
	if err != nil || out == "" || out == "0" || out == "1" {
		e.T.Fatalf("shim of %s: %q, %v", name, out, err)
	}
	return out
}

// status is a container's state in a word.
func status(e *engine.Engine, name string) string {
	e.T.Helper()
	return e.Run("inspect", "-f", "{{.State.Status}}", name)
}
