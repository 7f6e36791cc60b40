package acceptance

import (
	"strings"
	"testing"
	"time"

	"machine/acceptance/hosts"
)

// TestSysvinit and TestOpenRC adopt hosts with these init systems, and let them
// start, stop and restart the agent, at boot as well.
func TestSysvinit(t *testing.T) {
	hosts.Isolated(t)
	testInit(t, hosts.Sysvinit(t), "/etc/init.d/machine-agent", "machine-agent is running", "machine-agent is not running")
}

func TestOpenRC(t *testing.T) {
	hosts.Isolated(t)
	testInit(t, hosts.OpenRC(t), "rc-service machine-agent", "status: started", "status: stopped")
}

// An initHost is a host under test, with the clients that go there.
type initHost struct {
	*user
	h       *hosts.Host
	service string
	pid     string // of the container web
}

// rc lets the host's init system do something, and holds it to its exit code.
func (i *initHost) rc(verb, code, says string) {
	i.Helper()
	got := i.h.Exec(i.service + " " + verb + " </dev/null 2>&1; echo status=$?")
	if !strings.HasSuffix(got, "status="+code) || !strings.Contains(got, says) {
		i.Errorf("%s: %q, want status %s and %q", verb, got, code, says)
	}
}

// up waits until the engine answers.
func (i *initHost) up() {
	i.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		out, err := i.try("docker", "version")
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			i.Fatalf("the engine does not answer: %s\n%s", out, i.h.Exec("tail -n 20 /var/log/machine-agent.log"))
		}
	}
}

// same waits for the engine; the container is to be the one that it was.
func (i *initHost) same(after string) {
	i.Helper()
	i.up()
	if now := i.docker("inspect", "-f", "{{.State.Pid}}", "web"); now != i.pid {
		i.Errorf("after %s the container is process %s, was %s", after, now, i.pid)
	}
}

// newInitHost adopts a host, and starts a container there.
func newInitHost(t *testing.T, o hosts.Options, service string) *initHost {
	i := &initHost{user: newUser(t), h: hosts.New(t, hosts.Cgroups(), o), service: service}
	i.machine("create", "-d", "generic", "--generic-ip-address", i.h.IP, "--generic-ssh-key", i.h.Key, "web")
	i.use("web")
	i.busybox()
	i.docker("run", "-d", "--name", "web", "--restart", "always", "busybox", "sleep", "1000000")
	i.pid = i.docker("inspect", "-f", "{{.State.Pid}}", "web")
	return i
}

func testInit(t *testing.T, o hosts.Options, service, started, stopped string) {
	i := newInitHost(t, o, service)
	i.rc("status", "0", started)
	if got := i.machine("provision", "web"); !strings.Contains(got, "up to date") {
		t.Errorf("provision again: %s", got)
	}
	i.rc("start", "0", "") // it is already
	i.same("start")
	i.rc("restart", "0", "")
	i.same("restart")
	i.rc("stop", "0", "")
	i.rc("status", "3", stopped)
	if out, err := i.try("docker", "version"); err == nil {
		t.Errorf("the engine answers though it is stopped: %s", out)
	}
	i.h.Exec("kill -0 $(pgrep -x sleep)") // the container runs on
	i.rc("stop", "0", "")                 // again
	i.rc("start", "0", "")
	i.same("stop and start")
	i.rc("reload", "0", "")
	i.same("reload")
	i.h.Exec("kill -9 $(cat /var/run/docker.pid)") // its supervisor starts it
	i.same("the agent's end")
	i.h.Exec("kill -9 $(head -n1 /run/machine-agent.pid) $(cat /var/run/docker.pid)")
	i.machine("provision", "web") // starts both
	i.same("the supervisor's end")
	i.machine("regenerate-certs", "-f", "web")
	i.same("new certificates")
	i.rc("status", "0", started)
	i.h.Kill() // the host's power goes, and comes back
	i.h.Start()
	i.up()
	i.rc("status", "0", started)
	for deadline := time.Now().Add(30 * time.Second); i.docker("inspect", "-f", "{{.State.Running}}", "web") != "true"; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the container does not run after the host's boot")
		}
	}
	i.docker("rm", "-f", "web")
	i.machine("rm", "-y", "web")
}
