package docker

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"machine/acceptance/engine"
)

// A hostTree is what containers must not change: files of the computer, its
// devices, the settings that rule the kernel, the host's mount table, and a
// directory with a secret that attackers aim at.
type hostTree struct {
	e      *engine.Engine
	victim string
	before string
}

// secret is in the file canary and in the file mark of the victim and of each
// directory in it.
const secret = "secret of the host"

// snapshot makes the victim, starts an engine's watch over its host, and
// returns it. same compares.
func snapshot(e *engine.Engine) *hostTree {
	e.T.Helper()
	h := &hostTree{e: e, victim: filepath.Join(e.Dir, "victim")}
	for _, dir := range []string{"", "sub", "sub/new", "d", "made", "pts"} {
		dir = filepath.Join(h.victim, dir)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			e.T.Fatal(err)
		}
		for _, name := range []string{"canary", "mark"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(secret), 0o640); err != nil {
				e.T.Fatal(err)
			}
		}
	}
	h.before = h.state()
	return h
}

// state is hash, mode and owner of all that is watched, as the host sees it.
func (h *hostTree) state() string {
	h.e.T.Helper()
	out, err := h.e.HostRun("sh", "-c", `
for d in /etc `+h.victim+`; do find $d -xdev -printf '%p %y %m %U %G %l\n' | sort; find $d -xdev -type f -print0 | sort -z | xargs -0 sha256sum; done
find /usr /opt /boot /home /srv -xdev -printf '%p %y %m %U %G %s %T@ %l\n' 2>/dev/null | sort | sha256sum
find / -xdev -maxdepth 1 -printf '%p %y %m %U %G %l\n' | sort
find /run /sys/kernel -maxdepth 1 -printf '%p %y %m %U %G %l\n' | sort
find /dev /proc/sys -xdev -not -path '/dev/pts/*' -not -path '/dev/shm/*' -not -path '/dev/mqueue/*' -not -path '*/net/*' -printf '%p %y %m %U %G %l\n' | sort
stat -c '%n %t:%T %a' /dev/null /dev/zero /dev/console /dev/ptmx
for f in core_pattern modprobe hotplug hostname poweroff_cmd sysrq; do echo $f $(cat /proc/sys/kernel/$f); done
cat /proc/self/mountinfo`)
	if err != nil || len(out) < 1000 {
		h.e.T.Fatalf("look at the host: %v\n%.2000s", err, out)
	}
	var keep []string
	for line := range strings.Lines(out + "\n") { // the netns of what runs, and others' work
		if strings.Contains(line, h.victim) || !strings.Contains(line, " /var/tmp/") {
			keep = append(keep, strings.TrimSpace(line))
		}
	}
	return strings.Join(keep, "\n")
}

// same fails the test when the host is not as it was.
func (h *hostTree) same(when string) {
	h.e.T.Helper()
	after := h.state()
	if after == h.before {
		return
	}
	lines := map[string]int{}
	for line := range strings.SplitSeq(h.before, "\n") {
		lines[line]--
	}
	for line := range strings.SplitSeq(after, "\n") {
		lines[line]++
	}
	for line, n := range lines {
		if n != 0 {
			h.e.T.Errorf("%s: the host has %+d of: %s", when, n, line)
		}
	}
}

// racer builds the attackers' program and returns its path.
func racer(t *testing.T, e *engine.Engine) string {
	t.Helper()
	path := filepath.Join(e.Dir, "racer")
	c := exec.Command("go", "build", "-trimpath", "-o", path, "./acceptance/docker/testdata/racer")
	c.Dir = engine.Root()
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build the racer: %v\n%s", err, out)
	}
	return path
}
