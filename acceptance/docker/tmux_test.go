package docker

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"machine/acceptance/engine"
)

// A pane is a window of tmux with a shell in it: what a user sees, all of
// whose keys and sizes go through a real terminal.
type pane struct {
	e      *engine.Engine
	socket string
}

// newPane opens a window with a shell in which docker is the engine's client.
func newPane(e *engine.Engine, cols, rows int) *pane {
	e.T.Helper()
	p := &pane{e, filepath.Join(e.Dir, "tmux")}
	c := p.tmux("new-session", "-d", "-x", strconv.Itoa(cols), "-y", strconv.Itoa(rows), "exec env PS1='host> ' sh")
	c.Env = append(e.Docker().Env, "DOCKER_HOST=unix://"+e.Socket, "TERM=xterm", "SHELL=/bin/sh", "ENV=", "LC_ALL=C.UTF-8")
	if out, err := c.CombinedOutput(); err != nil {
		e.T.Fatalf("tmux: %v\n%s", err, out)
	}
	e.T.Cleanup(func() { p.tmux("kill-server").Run() })
	p.do("set", "-g", "status", "off")
	p.do("resize-window", "-x", strconv.Itoa(cols), "-y", strconv.Itoa(rows))
	p.prompt("host>")
	return p
}

func (p *pane) tmux(args ...string) *exec.Cmd {
	return exec.Command("tmux", append([]string{"-S", p.socket, "-f", "/dev/null"}, args...)...)
}

func (p *pane) do(args ...string) string {
	p.e.T.Helper()
	out, err := p.tmux(args...).CombinedOutput()
	if err != nil {
		p.e.T.Fatalf("tmux %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// screen is what the window shows, without what was scrolled away.
func (p *pane) screen() string { return p.do("capture-pane", "-p", "-J") }

// typed types a line.
func (p *pane) typed(line string) { p.do("send-keys", "-l", line); p.keys("Enter") }

// keys presses keys by tmux's names.
func (p *pane) keys(names ...string) { p.do(append([]string{"send-keys"}, names...)...) }

// sees waits until the window shows a text.
func (p *pane) sees(text string) {
	p.e.T.Helper()
	defer func() {
		if p.e.T.Failed() {
			p.e.T.Logf("the screen:\n%s", p.screen())
		}
	}()
	p.e.Eventually("the screen shows "+text, func() bool { return strings.Contains(p.screen(), text) })
}

// prompt waits until a shell wants a line: what is typed earlier may be lost
// when a program sets up the terminal.
func (p *pane) prompt(text string) {
	p.e.T.Helper()
	defer func() {
		if p.e.T.Failed() {
			p.e.T.Logf("the screen:\n%s", p.screen())
		}
	}()
	p.e.Eventually("the prompt "+text, func() bool {
		lines := strings.Split(strings.TrimSpace(p.screen()), "\n")
		return strings.HasSuffix(strings.TrimSpace(lines[len(lines)-1]), text)
	})
}

// until types a line again and again until the window shows a text.
func (p *pane) until(line, text string) {
	p.e.T.Helper()
	p.e.Eventually(line+" gives "+text, func() bool {
		p.typed(line)
		return strings.Contains(p.screen(), text)
	})
}

// clean empties the window, which the shell in it has to do.
func (p *pane) clean() {
	p.e.T.Helper()
	p.typed("printf '\\033[H\\033[2J'; echo clean$((1+1))")
	p.sees("clean2")
	p.do("clear-history")
}

// TestTmux: a user's session at a real terminal.
func TestTmux(t *testing.T) {
	e := start(t)
	if _, err := exec.LookPath("tmux"); err != nil {
		t.Fatal("install tmux: scripts/dev/needs.sh does it")
	}
	p := newPane(e, 99, 33)
	p.typed("docker run -it --name box busybox sh")
	p.prompt("/ #")
	p.typed("stty size; echo typed$((40+2))")
	p.sees("typed42")
	p.sees("33 99")
	p.do("resize-window", "-x", "70", "-y", "20")
	p.until("stty size", "20 70")
	// The line is edited by the container's shell, at the right width.
	p.do("send-keys", "-l", "echo "+strings.Repeat("0123456789", 8)+"X")
	p.keys("BSpace", "Y", "Enter")
	p.sees("\n" + strings.Repeat("0123456789", 8) + "Y")

	p.clean()
	p.keys("C-p", "C-q")
	p.prompt("host>")
	p.typed("echo code=$?")
	p.sees("code=0")
	engine.Equal(t, "runs on", e.Run("inspect", "-f", "{{.State.Running}}", "box"), "true")
	p.do("resize-window", "-x", "88", "-y", "30")
	p.typed("docker attach box")
	p.until("stty size", "30 88")
	p.prompt("/ #")

	p.clean()
	p.typed("sleep 1000; echo slept=$?")
	e.Eventually("it sleeps", func() bool { return strings.Contains(e.Run("top", "box"), "sleep 1000") })
	p.keys("C-c")
	e.Eventually("it was interrupted", func() bool { return !strings.Contains(e.Run("top", "box"), "sleep 1000") })
	p.until("echo alive$((3+4))", "alive7")
	p.typed("cat >/tmp/in")
	// Before, the shell has not given the terminal back: it would be no line.
	e.Eventually("cat reads", func() bool { return strings.Contains(e.Run("top", "box"), "cat") })
	p.typed("one line")
	p.keys("C-d")
	p.typed("echo ended; wc -l </tmp/in")
	p.sees("ended\n1")

	p.clean()
	p.keys("C-p", "C-q")
	p.prompt("host>")
	p.typed("docker exec -it -e NAME=exec box sh")
	p.prompt("/ #")
	p.typed("stty size; echo in-$NAME")
	p.sees("in-exec")
	p.sees("30 88")
	p.do("resize-window", "-x", "61", "-y", "18")
	p.until("stty size", "18 61")
	p.typed("exit 7")
	p.prompt("host>")
	p.typed("echo code=$?")
	p.sees("code=7")

	p.clean()
	p.typed("docker attach box")
	p.until("echo back$((1+1))", "back2")
	p.typed("exit 5")
	p.prompt("host>")
	p.typed("echo code=$?")
	p.sees("code=5")

	p.clean()
	p.typed("docker run -it --rm busybox sh -c 'trap \"echo caught; exit 9\" INT; echo armed$((1+1)); while :; do sleep 0.05; done'")
	p.sees("armed2")
	p.keys("C-c")
	p.sees("caught")
	p.prompt("host>")
	p.typed("echo code=$?")
	p.sees("code=9")
	e.Audit()
}
