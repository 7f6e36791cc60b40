package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"machine/acceptance/engine"
)

// A host is an engine under test, spoken to without a client in between.
type host struct {
	b        testing.TB
	e        *engine.Engine
	registry string
	at       string // what is being tried
	failures int
	broken   string // the last round that failed
}

func newHost(b testing.TB) *host {
	e := engine.New(b)
	e.Busybox()
	e.Run("network", "create", "side")
	h := &host{b: b, e: e}
	h.registry = h.startRegistry(5009)
	// An image of its own with a layer of its own, so that a pull has work.
	e.Run("run", "--name", "cc", "busybox", "sh", "-c", "echo new >/new")
	e.Run("commit", "cc", h.registry+"/new")
	e.Run("push", h.registry+"/new")
	e.Run("tag", h.registry+"/new", "new")
	e.Run("save", "-o", filepath.Join(e.Dir, "new.tar"), "new")
	e.Run("rm", "cc")
	e.Run("rmi", "new", h.registry+"/new")
	return h
}

// startRegistry runs Debian's registry on the engine's host, as long as that.
func (h *host) startRegistry(port int) string {
	dir := filepath.Join(h.e.Dir, "registry")
	conf := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: \"127.0.0.1:%d\"}\n", dir, port)
	if err := os.WriteFile(dir+".yml", []byte(conf), 0o600); err != nil {
		h.b.Fatal(err)
	}
	c := h.e.Host("docker-registry", "serve", dir+".yml")
	if err := c.Start(); err != nil {
		h.b.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); c.Wait() }()
	h.b.Cleanup(func() { c.Process.Kill(); <-done })
	h.e.Eventually("the registry answers", func() bool {
		_, err := h.e.HostRun("curl", "-sf", fmt.Sprintf("http://127.0.0.1:%d/v2/", port))
		return err == nil
	})
	return fmt.Sprintf("127.0.0.1:%d", port)
}

func (h *host) fail(format string, args ...any) {
	h.failures++
	h.broken = h.at
	h.b.Errorf(h.at+": "+format, args...)
}

func (h *host) failed() bool { return h.broken == h.at }

func (h *host) must(err error) {
	if err != nil {
		h.fail("%v", err)
	}
}

// answer makes a request and reads its answer to the end.
func (h *host) answer(method, path, kind string, body io.Reader) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", h.e.AgentSocket())
	}}}
	req, err := http.NewRequestWithContext(ctx, method, "http://engine/v1.51"+path, body)
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", kind)
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 400 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, strings.TrimSpace(string(b)))
	}
	return string(b), err
}

func (h *host) send(method, path string, body io.Reader) error {
	_, err := h.answer(method, path, "application/json", body)
	return err
}

func (h *host) post(path string) error { return h.send("POST", path, nil) }

// stream is a request whose answer says at its end whether it went well.
func (h *host) stream(path string) error {
	out, err := h.answer("POST", path, "application/json", nil)
	if err == nil && strings.Contains(out, `"error"`) {
		err = fmt.Errorf("POST %s: %s", path, out)
	}
	return err
}

// file sends a file of the engine's folder.
func (h *host) file(path, name string) error {
	f, err := os.Open(filepath.Join(h.e.Dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	out, err := h.answer("POST", path, "application/x-tar", f)
	if err == nil && strings.Contains(out, `"error"`) {
		err = fmt.Errorf("POST %s: %s", path, out)
	}
	return err
}

func (h *host) create(name, config, host string, cmd ...string) error {
	return h.createOf("busybox", name, config, host, cmd...)
}

// createOf makes a container; config and host are further JSON.
func (h *host) createOf(ref, name, config, host string, cmd ...string) error {
	args, _ := json.Marshal(cmd)
	if config != "" {
		config = "," + config
	}
	return h.send("POST", "/containers/create?name="+name, strings.NewReader(fmt.Sprintf(`{"Image":%q,"Cmd":%s%s,"HostConfig":{%s}}`, ref, args, config, host)))
}

// exec runs a command in a container to its end.
func (h *host) exec(c string, cmd ...string) (code int, err error) {
	args, _ := json.Marshal(cmd)
	out, err := h.answer("POST", "/containers/"+c+"/exec", "application/json", strings.NewReader(fmt.Sprintf(`{"Cmd":%s,"AttachStdout":true}`, args)))
	if err != nil {
		return 0, err
	}
	var v struct {
		ID       string
		ExitCode int
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		return 0, err
	}
	if err := h.send("POST", "/exec/"+v.ID+"/start", strings.NewReader(`{"Detach":false}`)); err != nil {
		return 0, err
	}
	if out, err = h.answer("GET", "/exec/"+v.ID+"/json", "", nil); err == nil {
		err = json.Unmarshal([]byte(out), &v)
	}
	return v.ExitCode, err
}

type inspected struct {
	State struct {
		Status string
		Pid    int
	}
	HostConfig struct{ AutoRemove bool }
}

func (h *host) inspect(c string) (v inspected) {
	if out, err := h.answer("GET", "/containers/"+c+"/json", "", nil); err == nil {
		h.must(json.Unmarshal([]byte(out), &v))
	}
	return v
}

// state is a container's; empty for none.
func (h *host) state(c string) string { return h.inspect(c).State.Status }

func (h *host) containers() (names []string) {
	var list []struct{ Names []string }
	out, err := h.answer("GET", "/containers/json?all=1", "", nil)
	if err == nil {
		err = json.Unmarshal([]byte(out), &list)
	}
	h.must(err)
	for _, c := range list {
		names = append(names, strings.TrimPrefix(c.Names[0], "/"))
	}
	return names
}

func (h *host) images() (refs []string) {
	var list []struct{ RepoTags []string }
	out, err := h.answer("GET", "/images/json", "", nil)
	if err == nil {
		err = json.Unmarshal([]byte(out), &list)
	}
	h.must(err)
	for _, i := range list {
		refs = append(refs, i.RepoTags...)
	}
	return refs
}

// leftovers is what nobody uses any more.
func (h *host) leftovers() (left []string) {
	for _, l := range h.e.Leftovers() {
		if !strings.Contains(l, "docker-registry") {
			left = append(left, l)
		}
	}
	v, _ := filepath.Glob(filepath.Join(h.e.Dir, "data/volumes/*/_data"))
	t, _ := filepath.Glob(filepath.Join(h.e.Dir, "data/image/blobs/*/*.part"))
	c, _ := filepath.Glob(filepath.Join(h.e.Dir, "data/layers/containers/*"))
	left = append(append(append(left, v...), t...), c...)
	if n := h.images(); len(n) != 1 {
		left = append(left, fmt.Sprint("images ", n))
	}
	return left
}
