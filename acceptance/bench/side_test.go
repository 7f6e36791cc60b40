package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"machine/acceptance/engine"
)

// A side is one engine under measurement, by its own socket.
type side struct {
	c *http.Client
	// shared is a folder of this computer that its containers can mount.
	shared string
	// memory is the PSS of the engine's own processes in bytes, and of those
	// that hold containers.
	memory func() (engine, holders float64, err error)
	// holder holds the host of a peer.
	holder int
}

func newSide(socket, shared string) *side {
	return &side{shared: shared, c: &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 100,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}}
}

// do makes a request and reads its answer to the end.
func (s *side) do(method, path, body string) (string, error) {
	return s.send(method, path, "application/json", strings.NewReader(body))
}

func newRequest(method, path, kind string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequest(method, "http://engine/v1.41"+path, body)
	if err == nil {
		req.Header.Set("Content-Type", kind)
	}
	return req, err
}

func (s *side) send(method, path, kind string, body io.Reader) (string, error) {
	req, err := newRequest(method, path, kind, body)
	if err != nil {
		return "", err
	}
	resp, err := s.c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(b))
	}
	return string(b), err
}

// id is the Id of a JSON answer.
func id(answer string) (string, error) {
	var v struct{ ID string }
	if err := json.Unmarshal([]byte(answer), &v); err != nil || v.ID == "" {
		return "", fmt.Errorf("no id in %q: %v", answer, err)
	}
	return v.ID, nil
}

// create makes a container of busybox; host is further JSON of HostConfig.
func (s *side) create(host string, cmd ...string) (string, error) {
	args, _ := json.Marshal(cmd)
	out, err := s.do("POST", "/containers/create", fmt.Sprintf(`{"Image":"busybox","Cmd":%s,"HostConfig":{%s}}`, args, host))
	if err != nil {
		return "", err
	}
	return id(out)
}

func (s *side) start(c string) error {
	_, err := s.do("POST", "/containers/"+c+"/start", "")
	return err
}

func (s *side) wait(c string) error {
	_, err := s.do("POST", "/containers/"+c+"/wait", "")
	return err
}

func (s *side) remove(c string) error {
	_, err := s.do("DELETE", "/containers/"+c+"?force=1&v=1", "")
	return err
}

// sleeper is a container that runs.
func (s *side) sleeper() (string, error) {
	c, err := s.create("", "sleep", "1000")
	if err != nil {
		return "", err
	}
	return c, s.start(c)
}

// cycle is create, start, wait and remove of true.
func (s *side) cycle(network string) error {
	c, err := s.create(`"NetworkMode":"`+network+`"`, "true")
	if err != nil {
		return err
	}
	return errors.Join(s.start(c), s.wait(c), s.remove(c))
}

// execTrue runs true in a container to its end.
func (s *side) execTrue(c string) error {
	out, err := s.do("POST", "/containers/"+c+"/exec", `{"Cmd":["true"],"AttachStdout":true,"AttachStderr":true}`)
	if err != nil {
		return err
	}
	e, err := id(out)
	if err != nil {
		return err
	}
	_, err = s.do("POST", "/exec/"+e+"/start", `{"Detach":false,"Tty":false}`)
	return err
}

// many makes n containers and returns them with the first error.
func (s *side) many(n int) (list []string, err error) {
	for range n {
		c, err := s.create("", "sleep", "1000")
		if err != nil {
			return list, err
		}
		list = append(list, c)
	}
	return list, nil
}

func (s *side) removeAll(list []string) error {
	errs := make([]error, len(list))
	each(list, func(i int, c string) { errs[i] = s.remove(c) })
	return errors.Join(errs...)
}

// each calls f for all at once.
func each(list []string, f func(i int, c string)) {
	var wg sync.WaitGroup
	for i, c := range list {
		wg.Go(func() { f(i, c) })
	}
	wg.Wait()
}

// pss is a process's proportional share of memory in bytes, from the text of
// its smaps_rollup.
func pss(rollup string) (float64, error) {
	for line := range strings.Lines(rollup) {
		var kb float64
		if n, _ := fmt.Sscanf(line, "Pss: %f kB", &kb); n == 1 {
			return kb * 1024, nil
		}
	}
	return 0, fmt.Errorf("no Pss in %.100q", rollup)
}

// pssOf adds up the processes of this computer whose command begins so.
func pssOf(commands ...string) (sum float64, err error) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	n := 0
	for _, d := range dirs {
		comm, _ := os.ReadFile(d + "/comm")
		for _, c := range commands {
			if strings.TrimSpace(string(comm)) != c {
				continue
			}
			b, err := os.ReadFile(d + "/smaps_rollup")
			if err != nil {
				continue // it has ended
			}
			p, err := pss(string(b))
			if err != nil {
				return 0, err
			}
			sum += p
			n++
		}
	}
	if n == 0 {
		return 0, fmt.Errorf("no process of %v", commands)
	}
	return sum, nil
}

// ours is our engine.
func ours(b *testing.B) *side {
	e := engine.New(b, "--exec-root", "/run/engine") // in memory, as both have it on a real host
	e.Busybox()
	s := newSide(e.AgentSocket(), e.Dir)
	s.memory = func() (own, holders float64, err error) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", e.AgentPid()))
		if err != nil {
			return 0, 0, err
		}
		if own, err = pss(string(text)); err != nil {
			return 0, 0, err
		}
		for _, c := range strings.Fields(e.Run("ps", "-q")) {
			pid := e.Run("inspect", "-f", "{{.State.Pid}}", c)
			out, err := e.HostRun("sh", "-c", "cat /proc/$(awk '/^PPid:/ {print $2}' /proc/"+pid+"/status)/smaps_rollup")
			if err != nil {
				return 0, 0, fmt.Errorf("shim of %s: %s", c, out)
			}
			p, err := pss(out)
			if err != nil {
				return 0, 0, err
			}
			holders += p
		}
		return own, holders, nil
	}
	return s
}

// dockerd is Debian's engine on a host of namespaces of its own, or nil where
// it is not installed or does not start.
func dockerd(b *testing.B, busyboxTar string) *side {
	const program = "/usr/sbin/dockerd"
	if _, err := os.Stat(program); err != nil {
		b.Log("no peer: ", err)
		return nil
	}
	dir, err := os.MkdirTemp("/var/tmp", "dockerd-")
	if err != nil {
		b.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	socket := filepath.Join(dir, "docker.sock")
	// The shell stays process 1, to reap what the daemons leave.
	script := fmt.Sprintf(`mount --make-rprivate / && ip link set lo up && mount -t tmpfs tmpfs /run && mkdir -p /run/lock
%s -H unix://%s --data-root %s/data --exec-root /run/docker --pidfile %s/pid --cgroup-parent /%s &
wait`, program, socket, dir, dir, filepath.Base(dir))
	c := exec.Command("unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script)
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
		for range 100 { // the kernel takes a moment to end a PID namespace
			if os.RemoveAll(dir) == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	s := newSide(socket, dir)
	s.holder = c.Process.Pid
	s.memory = func() (own, holders float64, err error) {
		if own, err = pssOf("dockerd", "containerd"); err != nil {
			return 0, 0, err
		}
		holders, _ = pssOf("containerd-shim") // none while nothing runs
		return own, holders, nil
	}
	for range 1200 {
		if _, err = s.do("GET", "/_ping", ""); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err == nil {
		err = importImage(s, busyboxTar)
	}
	if err != nil {
		text, _ := os.ReadFile(log.Name())
		b.Logf("the peer is left out: %v\n%s", err, text[max(0, len(text)-2000):])
		return nil
	}
	return s
}

func importImage(s *side, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = s.send("POST", "/images/create?fromSrc=-&repo=busybox&tag=latest&changes=ENV+PATH%3D%2Fbin", "application/x-tar", f)
	return err
}
