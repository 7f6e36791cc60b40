package cli_test

import (
	"bufio"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	"machine/acceptance/hosts"
)

// TestSSHResize: a terminal that changes its size tells the host.
func TestSSHResize(t *testing.T) {
	hosts.Isolated(t)
	t.Setenv("MACHINE_AGENT", hosts.FakeAgent(t, "fake-1"))
	newStore(t)
	h := hosts.New(t)
	must(t, "create", "-d", "generic", "--generic-ip-address", h.IP, "--generic-ssh-key", h.Key, "web")
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"machine", "ssh", "web", "-t", `while [ ! -e /run/over ]; do now=$(stty size); [ "$now" = "$old" ] || echo "$now"; old=$now; sleep 0.02; done; exit 3`}
	term, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 11, Cols: 22})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = term.Close(); _ = cmd.Process.Kill() }()
	lines := make(chan string, 100)
	go func() {
		defer close(lines)
		for r := bufio.NewScanner(term); r.Scan(); {
			lines <- strings.TrimSpace(r.Text())
		}
	}()
	wait := func(want string) {
		t.Helper()
		late := time.After(30 * time.Second)
		var got []string
		for {
			select {
			case l, ok := <-lines:
				if l == want {
					return
				}
				if got = append(got, l); ok {
					continue
				}
			case <-late:
			}
			t.Fatalf("no %q in %q", want, got)
		}
	}
	wait("11 22")
	for i := range 5 {
		size := &pty.Winsize{Rows: uint16(30 + i), Cols: uint16(90 + i)}
		if err := pty.Setsize(term, size); err != nil {
			t.Fatal(err)
		}
		wait(fmt.Sprintf("%d %d", size.Rows, size.Cols))
	}
	h.Exec("touch /run/over")
	for range lines { // to the end: it reads no line any more
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != 3 {
		t.Errorf("the session ended with %v", err)
	}
}
