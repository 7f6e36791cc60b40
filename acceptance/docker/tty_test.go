package docker

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"machine/acceptance/engine"
)

// A term is a terminal with the docker client in it.
type term struct {
	t   *testing.T
	f   *os.File
	cmd *exec.Cmd

	mu  sync.Mutex
	out bytes.Buffer
}

func open(t *testing.T, c *exec.Cmd) *term {
	t.Helper()
	f, err := pty.StartWithSize(c, &pty.Winsize{Rows: 33, Cols: 99})
	if err != nil {
		t.Fatal(err)
	}
	m := &term{t: t, f: f, cmd: c}
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := f.Read(b)
			m.mu.Lock()
			m.out.Write(b[:n])
			m.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { c.Process.Kill(); f.Close() })
	return m
}

func (m *term) send(s string) { m.f.WriteString(s) }

func (m *term) text() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.out.String()
}

// expect waits for a text on the screen.
func (m *term) expect(e *engine.Engine, s string) {
	m.t.Helper()
	for range 1500 {
		if strings.Contains(m.text(), s) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	m.t.Fatalf("%q never came; the screen is %q", s, m.text())
}

func (m *term) code() int {
	m.cmd.Wait()
	return m.cmd.ProcessState.ExitCode()
}

func TestTerminal(t *testing.T) {
	e := start(t)
	m := open(t, e.Docker("run", "-it", "--name", "tty", "busybox", "sh"))
	m.expect(e, "/ # ") // what is typed before is lost to the shell's setting up of the terminal
	m.send("echo a$((40+2))b\n")
	m.expect(e, "a42b")
	m.send("stty size\n")
	m.expect(e, "33 99")
	pty.Setsize(m.f, &pty.Winsize{Rows: 20, Cols: 50})
	e.Eventually("the resize came through", func() bool {
		m.send("stty size\n")
		return strings.Contains(m.text(), "20 50")
	})
	m.send("\x10\x11") // the detach keys
	if code := m.code(); code != 0 {
		t.Errorf("detach: exit %d", code)
	}
	engine.Equal(t, "runs on", e.Run("inspect", "-f", "{{.State.Running}}", "tty"), "true")
	m = open(t, e.Docker("attach", "tty"))
	m.send("echo again$((1+1))\n")
	m.expect(e, "again2")
	x := open(t, e.Docker("exec", "-it", "tty", "sh"))
	x.expect(e, "/ # ")
	x.send("tty; stty size\n")
	x.expect(e, "/dev/pts/")
	x.expect(e, "33 99")
	x.send("sleep 100\n")
	e.Eventually("sleep runs", func() bool { return strings.Contains(e.Run("top", "tty"), "sleep 100") })
	x.send("\x03") // interrupt, by the terminal's own discipline
	e.Eventually("sleep is gone", func() bool { return !strings.Contains(e.Run("top", "tty"), "sleep 100") })
	x.send("echo next$((2+1)); exit 4\n")
	x.expect(e, "next3")
	if code := x.code(); code != 4 {
		t.Errorf("exec -it: exit %d", code)
	}
	m.send("exit 6\n")
	if code := m.code(); code != 6 {
		t.Errorf("attach: exit %d", code)
	}
	r := open(t, e.Docker("run", "-it", "--rm", "busybox", "sh", "-c", "trap 'echo caught; exit 9' INT; echo armed; while :; do sleep 0.05; done"))
	r.expect(e, "armed")
	r.send("\x03")
	r.expect(e, "caught")
	if code := r.code(); code != 9 {
		t.Errorf("interrupted: exit %d", code)
	}
	e.Audit()
}

// Without a terminal signals are passed on by the client.
func TestSignalProxy(t *testing.T) {
	e := start(t)
	c := e.Docker("run", "--rm", "--name", "sig", "busybox", "sh", "-c", "trap 'exit 8' TERM; touch /tmp/armed; while :; do sleep 0.05; done")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	e.Eventually("it is armed", func() bool { return e.Try("exec", "sig", "test", "-e", "/tmp/armed").Code == 0 })
	c.Process.Signal(syscall.SIGTERM)
	c.Wait()
	if code := c.ProcessState.ExitCode(); code != 8 {
		t.Errorf("exit %d", code)
	}
	e.Audit()
}
