// Package engine runs agents for tests: the built binary, on a host of its
// own made of namespaces, with the real docker client in front of it. What a
// test leaves behind is found by Audit, and ends with the host in any case.
package engine

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// An Engine is one agent on a host of its own.
type Engine struct {
	T      testing.TB
	Dir    string // of all its files
	Socket string // where clients connect; answers are checked on the way
	Flags  []string
	Agent  string // the agent's program, another than the built one; its path ends in /bin/agent

	agentSocket string
	holder      *exec.Cmd // keeps the namespaces
	agent       *exec.Cmd
	ended       chan struct{} // closed when the agent has ended
	log         *os.File
	cgroup      string
	check       *checker
}

// Root is the top of the source tree.
func Root() string {
	dir, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	panic("not in the source tree")
}

// Binary returns the path of a built program; the test fails when it is not
// built, as "make test" builds it.
func Binary(t testing.TB, name string) string {
	t.Helper()
	p := filepath.Join(Root(), "bin", name)
	if _, err := os.Stat(p); err != nil {
		t.Fatalf("%v: run make build first", err)
	}
	return p
}

// NeedRoot skips a test that cannot work without root.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

// New starts an agent with further flags. The test's end stops everything.
func New(t testing.TB, flags ...string) *Engine {
	t.Helper()
	NeedRoot(t)
	dir, err := os.MkdirTemp("/var/tmp", "engine-")
	if err != nil {
		t.Fatal(err)
	}
	e := &Engine{T: t, Dir: dir, Flags: flags, agentSocket: filepath.Join(dir, "agent.sock"), Socket: filepath.Join(dir, "docker.sock")}
	e.cgroup = "/" + filepath.Base(dir)
	e.log, err = os.Create(filepath.Join(dir, "agent.log"))
	if err != nil {
		t.Fatal(err)
	}
	e.holder = exec.Command("unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc",
		"sh", "-c", "mount --make-rprivate / && ip link set lo up && hostname enginehost && mount -t tmpfs tmpfs /run && echo ready && exec sleep infinity")
	e.holder.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := e.holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	e.holder.Stderr = e.log
	if err := e.holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.stop)
	if n, err := out.Read(make([]byte, 16)); n == 0 {
		t.Fatalf("host of namespaces did not come up: %v\n%s", err, e.Log())
	}
	e.check = newChecker(t)
	e.proxy()
	e.Start()
	return e
}

// inner is the process in the holder's namespaces: the only child of unshare.
func (e *Engine) inner() string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", e.holder.Process.Pid, e.holder.Process.Pid))
	if err != nil {
		e.T.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// Host makes a command that runs on the engine's host.
func (e *Engine) Host(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"-t", e.inner(), "-m", "-p", "-n", "-u", "-i", "--"}, args...)...)
}

// HostRun runs a command on the engine's host and returns its output.
func (e *Engine) HostRun(args ...string) (string, error) {
	b, err := e.Host(args...).CombinedOutput()
	return strings.TrimSpace(string(b)), err
}

// Start starts the agent and waits until it answers.
func (e *Engine) Start() {
	e.T.Helper()
	if !e.Launch() {
		e.T.Fatalf("the agent does not answer:\n%s", e.Log())
	}
}

// Launch starts the agent with further environment variables. It tells whether
// the agent came to answer; false when it ended before.
func (e *Engine) Launch(env ...string) bool {
	e.T.Helper()
	program := e.Agent
	if program == "" {
		program = Binary(e.T, "agent")
	}
	args := append([]string{
		program, "--host", "unix://" + e.agentSocket, "--data-root", filepath.Join(e.Dir, "data"), "--exec-root", filepath.Join(e.Dir, "run"),
		"--pidfile", filepath.Join(e.Dir, "agent.pid"), "--cgroup-parent", e.cgroup, "--config-file", "/dev/null",
	}, e.Flags...)
	os.Remove(e.agentSocket) // of one that was killed
	e.agent = e.Host(args...)
	e.agent.Env = append(os.Environ(), env...)
	e.agent.Stdout, e.agent.Stderr = e.log, e.log
	// The agent must be a child that can be killed alone.
	if err := e.agent.Start(); err != nil {
		e.T.Fatal(err)
	}
	agent, ended := e.agent, make(chan struct{})
	go func() {
		defer close(ended)
		agent.Wait()
	}()
	e.ended = ended
	for range 3000 {
		if c, err := net.Dial("unix", e.agentSocket); err == nil {
			c.Close()
			return true
		}
		if e.Ended(10 * time.Millisecond) {
			return false
		}
	}
	return false
}

// Ended waits until the agent has ended, but not for longer than d.
func (e *Engine) Ended(d time.Duration) bool {
	select {
	case <-e.ended:
		return true
	case <-time.After(d):
		return false
	}
}

// AgentPid is the agent's process, in the test's PID namespace.
func (e *Engine) AgentPid() int {
	pid := e.agent.Process.Pid // nsenter, whose child is the agent
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
		return n
	}
	return pid
}

// Kill ends the agent with SIGKILL and waits for its end.
func (e *Engine) Kill() {
	e.T.Helper()
	e.end(syscall.SIGKILL)
	os.Remove(e.agentSocket)
}

// end sends a signal to an agent that has not ended, and waits until it has.
func (e *Engine) end(sig syscall.Signal) {
	if !e.Ended(0) {
		syscall.Kill(e.AgentPid(), sig)
	}
	<-e.ended
}

// Terminate ends the agent in an orderly way.
func (e *Engine) Terminate() {
	e.T.Helper()
	e.end(syscall.SIGTERM)
}

// Restart kills the agent and starts it again.
func (e *Engine) Restart() {
	e.T.Helper()
	e.Kill()
	e.Start()
}

// stop ends the host and all that runs there.
func (e *Engine) stop() {
	e.soundLog()
	if e.T.Failed() {
		e.T.Logf("the agent's log:\n%s", e.Log())
	}
	if e.check != nil {
		e.check.report()
	}
	if e.ended != nil {
		e.end(syscall.SIGKILL)
	}
	e.holder.Process.Kill()
	e.holder.Wait()
	e.log.Close()
	for range 100 { // the kernel takes a moment to end a PID namespace
		if e.removeCgroups() {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	for range 50 {
		if os.RemoveAll(e.Dir) == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// soundLog fails the test when the agent met a bug of its own: a handler that
// panicked, or, in an agent built with the race detector, a race.
func (e *Engine) soundLog() {
	b, _ := os.ReadFile(filepath.Join(e.Dir, "agent.log"))
	for _, bad := range []string{"WARNING: DATA RACE", "handler panicked", "\npanic: ", "fatal error: "} {
		if i := bytes.Index(b, []byte(bad)); i >= 0 {
			e.T.Errorf("the agent has a bug:\n%s", b[i:min(len(b), i+4000)])
		}
	}
}

// cgroupDirs are the engine's cgroups in all hierarchies.
func (e *Engine) cgroupDirs() []string {
	a, _ := filepath.Glob("/sys/fs/cgroup/*" + e.cgroup)
	b, _ := filepath.Glob("/sys/fs/cgroup" + e.cgroup)
	return append(a, b...)
}

func (e *Engine) removeCgroups() bool {
	ok := true
	for _, d := range e.cgroupDirs() {
		subs, _ := filepath.Glob(d + "/*/")
		for _, s := range subs {
			os.Remove(s)
		}
		if err := os.Remove(d); err != nil && !os.IsNotExist(err) {
			ok = false
		}
	}
	return ok
}

// Log is what the agent said.
func (e *Engine) Log() string {
	b, _ := os.ReadFile(filepath.Join(e.Dir, "agent.log"))
	if len(b) > 16<<10 {
		b = b[len(b)-16<<10:]
	}
	return string(b)
}

// AgentSocket is the agent's own socket. What goes there is not checked
// against the API's description: it is for hostile requests and for figures.
func (e *Engine) AgentSocket() string { return e.agentSocket }

// Docker makes a command of the real docker client.
func (e *Engine) Docker(args ...string) *exec.Cmd {
	c := exec.Command("docker", append([]string{"-H", "unix://" + e.Socket}, args...)...)
	c.Env = append(os.Environ(), "DOCKER_CONFIG="+filepath.Join(e.Dir, "client"), "DOCKER_CLI_HINTS=false", "DOCKER_BUILDKIT=0", "DOCKER_CONTENT_TRUST=0")
	return c
}

// A Result is what a command did.
type Result struct {
	Out, Err string
	Code     int
}

// Try runs the docker client.
func (e *Engine) Try(args ...string) Result {
	return run(e.Docker(args...))
}

func run(c *exec.Cmd) Result {
	var out, errb bytes.Buffer
	c.Stdout, c.Stderr = &out, &errb
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := c.Start(); err != nil {
		return Result{Err: err.Error(), Code: -1}
	}
	stop := context.AfterFunc(ctx, func() { c.Process.Kill() })
	c.Wait()
	stop()
	return Result{out.String(), errb.String(), c.ProcessState.ExitCode()}
}

// Run runs the docker client; it must succeed. The output is trimmed.
func (e *Engine) Run(args ...string) string {
	e.T.Helper()
	r := e.Try(args...)
	if r.Code != 0 {
		e.T.Fatalf("docker %s: exit %d\n%s%s", strings.Join(args, " "), r.Code, r.Out, r.Err)
	}
	return strings.TrimSpace(r.Out)
}

// Input runs the docker client with input; it must succeed.
func (e *Engine) Input(in string, args ...string) string {
	e.T.Helper()
	c := e.Docker(args...)
	c.Stdin = strings.NewReader(in)
	r := run(c)
	if r.Code != 0 {
		e.T.Fatalf("docker %s: exit %d\n%s%s", strings.Join(args, " "), r.Code, r.Out, r.Err)
	}
	return strings.TrimSpace(r.Out)
}

// Fails runs the docker client, which must fail with a code and a text.
func (e *Engine) Fails(code int, text string, args ...string) {
	e.T.Helper()
	r := e.Try(args...)
	if r.Code != code || !strings.Contains(r.Out+r.Err, text) {
		e.T.Errorf("docker %s: exit %d, want %d and %q:\n%s%s", strings.Join(args, " "), r.Code, code, text, r.Out, r.Err)
	}
}

// Eventually polls until f is true; the deadline is generous.
func (e *Engine) Eventually(what string, f func() bool) {
	e.T.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if f() {
			return
		}
	}
	e.T.Fatalf("never came true: %s", what)
}

// Equal says when something is not as it should be.
func Equal(t testing.TB, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

// Contains says when a text lacks what it should have.
func Contains(t testing.TB, what, got, want string) {
	t.Helper()
	if !strings.Contains(got, want) {
		t.Errorf("%s: got %q, want it to contain %q", what, got, want)
	}
}

// Client is an HTTP client of the engine's API.
func (e *Engine) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", e.Socket)
	}}}
}

// Do makes a request of the API and returns status and body.
func (e *Engine) Do(method, path, body string) (int, string) {
	e.T.Helper()
	req, err := http.NewRequest(method, "http://engine"+path, strings.NewReader(body))
	if err != nil {
		e.T.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	c := e.Client()
	defer c.CloseIdleConnections()
	resp, err := c.Do(req)
	if err != nil {
		e.T.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	b.ReadFrom(resp.Body)
	return resp.StatusCode, b.String()
}
