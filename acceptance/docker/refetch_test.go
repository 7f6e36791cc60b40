package docker

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"machine/acceptance/engine"
)

// A counter is a proxy in front of a registry that counts what blobs weigh on
// the wire, and can stop giving.
type counter struct {
	addr string

	mu        sync.Mutex
	bytes     int64 // of blobs, since reset
	manifests int   // asked for, since reset
	limit     int64 // what may pass; 0 is all
	gate      func() bool
}

// listenOn listens on loopback of the engine's host, from this process.
func listenOn(e *engine.Engine) net.Listener {
	type result struct {
		l   net.Listener
		err error
	}
	done := make(chan result)
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", e.AgentPid()))
	if err != nil {
		e.T.Fatal(err)
	}
	defer ns.Close()
	go func() {
		// The thread must come back: what it has started dies with it.
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- result{nil, err}
			return
		}
		defer home.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{nil, err}
			return
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
			done <- result{nil, back}
			return
		}
		runtime.UnlockOSThread()
		done <- result{l, err}
	}()
	r := <-done
	if r.err != nil {
		e.T.Fatal(r.err)
	}
	return r.l
}

// counted starts a registry behind a counter.
func counted(e *engine.Engine) (c *counter, stop func()) {
	dir := filepath.Join(e.Dir, "counted")
	os.MkdirAll(dir, 0o700)
	conf := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {net: unix, addr: %s/socket, relativeurls: true}\n", dir, dir)
	if err := os.WriteFile(dir+".yml", []byte(conf), 0o600); err != nil {
		e.T.Fatal(err)
	}
	reg := e.Host("sh", "-c", fmt.Sprintf("echo $$ >%s.pid; exec docker-registry serve %s.yml", dir, dir))
	if err := reg.Start(); err != nil {
		e.T.Fatal(err)
	}
	l := listenOn(e)
	c = &counter{addr: l.Addr().String()}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", c.addr, c.addr
		},
		FlushInterval: -1,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", dir+"/socket")
		}},
		ModifyResponse: c.count,
		ErrorLog:       log.New(io.Discard, "", 0),
	}
	srv := &http.Server{Handler: proxy}
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(l) })
	stop = sync.OnceFunc(func() {
		srv.Close()
		wg.Wait()
		e.HostRun("sh", "-c", fmt.Sprintf("kill -9 $(cat %s.pid)", dir))
		reg.Wait()
	})
	e.T.Cleanup(stop)
	e.Eventually("the registry answers", func() bool {
		_, err := e.HostRun("curl", "-sf", "http://"+c.addr+"/v2/")
		return err == nil
	})
	return c, stop
}

func (c *counter) count(r *http.Response) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.Request.Method != http.MethodGet {
		return nil
	}
	if strings.Contains(r.Request.URL.Path, "/manifests/") {
		c.manifests++
	}
	if strings.Contains(r.Request.URL.Path, "/blobs/sha256:") {
		r.Body = &countedBody{r.Body, c, r.Request.Context()}
	}
	return nil
}

type countedBody struct {
	io.ReadCloser
	c   *counter
	ctx context.Context
}

func (b *countedBody) Read(p []byte) (int, error) {
	for b.c.closed() { // until the limit is lifted, or the client is gone
		select {
		case <-b.ctx.Done():
			return 0, b.ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	n, err := b.ReadCloser.Read(p)
	b.c.mu.Lock()
	b.c.bytes += int64(n)
	b.c.mu.Unlock()
	return n, err
}

func (c *counter) closed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.limit > 0 && c.bytes >= c.limit || c.gate != nil && !c.gate()
}

// reset begins to count anew, with a limit.
func (c *counter) reset(limit int64) (was int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was = c.bytes
	c.bytes, c.manifests, c.limit, c.gate = 0, 0, limit, nil
	return was
}

func (c *counter) seen() (bytes int64, manifests int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes, c.manifests
}

// heavy pushes an image with three layers that do not compress, removes it
// here, and gives its name and the bytes of its blobs.
func heavy(e *engine.Engine, c *counter) (name string, size int64) {
	name = c.addr + "/heavy:3"
	from := "busybox"
	for i := range 3 {
		e.Run("run", "--name", "cc", "--network", "none", from, "sh", "-c", fmt.Sprintf("dd if=/dev/urandom of=/a%d bs=1M count=12 2>/dev/null; md5sum /a* >/sum", i))
		from = fmt.Sprint(c.addr, "/heavy:", i+1)
		e.Run("commit", "cc", from)
		e.Run("rm", "cc")
	}
	e.Run("push", name)
	e.Run("rmi", "-f", name, c.addr+"/heavy:2", c.addr+"/heavy:1", "busybox")
	engine.Equal(e.T.(*testing.T), "images", e.Run("images", "-aq"), "")
	c.reset(0)
	e.Run("pull", name)
	size = c.reset(0)
	e.Run("rmi", name)
	return name, size
}

// small is what may come twice: configurations, and what was on the way in
// buffers of sockets and programs when the agent was killed.
const small = 2 << 20

// partial is what the engine keeps of blobs that are not whole.
func partial(e *engine.Engine) (n int64) {
	list, _ := filepath.Glob(filepath.Join(e.Dir, "data/image/blobs/partial/*"))
	for _, f := range list {
		if st, err := os.Stat(f); err == nil {
			n += st.Size()
		}
	}
	return n
}

// TestF28PullFetchesTheRest: a pull that a kill of the agent has cut short
// and that is repeated fetches what was missing and no more, wherever it was.
func TestF28PullFetchesTheRest(t *testing.T) {
	e := start(t)
	c, stop := counted(e)
	name, size := heavy(e, c)
	for _, part := range []int64{10, 45, 95} {
		c.reset(size * part / 100)
		pull := e.Docker("pull", name)
		if err := pull.Start(); err != nil {
			t.Fatal(err)
		}
		e.Eventually("the registry has stopped", c.closed)
		at, same := int64(-1), 0
		e.Eventually("the agent has what came", func() bool {
			if n := partial(e); n != at {
				at, same = n, 0
			}
			same++
			return same > 25
		})
		e.Kill()
		pull.Wait()
		first := c.reset(0)
		e.Start()
		e.Run("pull", name)
		second, _ := c.seen()
		t.Logf("%d of %d bytes, then %d", first, size, second)
		if first+second > size+small {
			t.Errorf("%d bytes were fetched twice", first+second-size)
		}
		engine.Equal(t, "whole", e.Run("run", "--rm", name, "sh", "-c", "md5sum -c /sum | grep -c OK"), "3")
		e.Run("rmi", name)
	}
	stop()
	e.Audit()
}

// TestF36TwoPullsOneDownload: of two pulls at once each layer is fetched once.
func TestF36TwoPullsOneDownload(t *testing.T) {
	e := start(t)
	c, stop := counted(e)
	name, size := heavy(e, c)
	c.mu.Lock()
	c.gate = func() bool { return c.manifests >= 2 }
	c.mu.Unlock()
	a, b := e.Docker("pull", name), e.Docker("pull", name)
	for _, p := range []interface{ Start() error }{a, b} {
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Wait(); err != nil {
		t.Error(err)
	}
	if err := b.Wait(); err != nil {
		t.Error(err)
	}
	got, _ := c.seen()
	if got > size+small {
		t.Errorf("%d bytes were fetched for an image of %d", got, size)
	}
	engine.Equal(t, "whole", e.Run("run", "--rm", name, "sh", "-c", "md5sum -c /sum | grep -c OK"), "3")
	stop()
	e.Audit()
}
