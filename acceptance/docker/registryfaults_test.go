package docker

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"machine/acceptance/engine"
	"machine/agent/layer/layertest"
	"machine/agent/registry/registrytest"
)

// A slow registry gives half of the large blob at once and the rest byte by
// byte, and takes uploads as slowly, until it is told to be quick.
type slow struct {
	*registrytest.Registry
	addr string
	stop func()

	mu     sync.Mutex
	quick  bool
	ranges []string      // of requests for the large blob
	came   chan struct{} // a slow request is at its slow half
	gone   chan struct{} // its client has gone
}

// slowly starts one with the image big:1 of 8 MiB that do not compress.
func slowly(e *engine.Engine) *slow {
	e.T.Helper()
	s := &slow{Registry: registrytest.New(e.T, false), came: make(chan struct{}, 100), gone: make(chan struct{}, 100)}
	noise := make([]byte, 8<<20)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	s.Image(e.T.(*testing.T), "big", "1", layertest.Tar(e.T.(*testing.T), layertest.File("noise", string(noise))))
	s.Fault = s.drag
	s.addr, s.stop = serveOn(e, s.Registry)
	return s
}

// serveOn serves on loopback of the engine's host.
func serveOn(e *engine.Engine, h http.Handler) (addr string, stop func()) {
	l := listenOn(e)
	srv := &http.Server{Handler: h}
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(l) })
	stop = sync.OnceFunc(func() { srv.Close(); wg.Wait() })
	e.T.Cleanup(stop)
	return l.Addr().String(), stop
}

func (s *slow) drag(w http.ResponseWriter, q *http.Request) bool {
	s.mu.Lock()
	quick := s.quick
	s.mu.Unlock()
	switch {
	case q.Method == http.MethodGet && strings.Contains(q.URL.Path, "/blobs/"):
		rec := httptest.NewRecorder()
		s.SetFault(nil) // not for this request, and no other comes meanwhile
		s.Registry.ServeHTTP(rec, q)
		s.SetFault(s.drag)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		b := rec.Body.Bytes()
		if len(b) < 1<<20 {
			w.WriteHeader(rec.Code)
			w.Write(b)
			return true
		}
		s.mu.Lock()
		s.ranges = append(s.ranges, q.Header.Get("Range"))
		s.mu.Unlock()
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		w.WriteHeader(rec.Code)
		if quick {
			w.Write(b)
			return true
		}
		w.Write(b[:len(b)/2])
		w.(http.Flusher).Flush()
		s.dribble(q, func(i int) { w.Write(b[len(b)/2+i:][:1]); w.(http.Flusher).Flush() })
		return true
	case q.Method == http.MethodPatch && !quick:
		s.dribble(q, func(int) { io.CopyN(io.Discard, q.Body, 8<<10) }) // more than a buffer: its end is seen
		return true
	}
	return false
}

// dribble does a byte now and then until the client has gone.
func (s *slow) dribble(q *http.Request, one func(i int)) {
	s.came <- struct{}{}
	for i := 0; ; i++ {
		one(i)
		select {
		case <-q.Context().Done():
			s.gone <- struct{}{}
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *slow) hurry() {
	s.mu.Lock()
	s.quick = true
	s.mu.Unlock()
}

// arrived waits until the engine has the first half of a download.
func (s *slow) arrived(e *engine.Engine, what string) {
	e.T.Helper()
	if what == "pull" {
		e.Eventually("the engine has what came", func() bool { return partial(e) >= 4<<20 })
	}
}

// interrupted runs a docker command, interrupts it when the registry is slow,
// and waits until the engine has left the registry, too.
func (s *slow) interrupted(e *engine.Engine, args ...string) {
	e.T.Helper()
	c := e.Docker(args...)
	if err := c.Start(); err != nil {
		e.T.Fatal(err)
	}
	<-s.came
	s.arrived(e, args[0])
	c.Process.Signal(syscall.SIGINT)
	c.Wait()
	if c.ProcessState.Success() {
		e.T.Errorf("%v: interrupted, and it succeeded", args)
	}
	select {
	case <-s.gone:
	case <-time.After(20 * time.Second):
		e.T.Errorf("%v: the engine goes on for nobody", args)
	}
}

// nothingStaged tells that no half of a layer is left.
func nothingStaged(e *engine.Engine) {
	e.T.Helper()
	for _, d := range []string{"staging", "trash"} {
		e.Eventually(d+" is empty", func() bool {
			list, err := os.ReadDir(filepath.Join(e.Dir, "data", d))
			return err == nil && len(list) == 0
		})
	}
}

// TestInterruptedPull: Ctrl-C ends the download in the engine, too; what came
// is kept, and the next pull fetches the rest.
func TestInterruptedPull(t *testing.T) {
	e := start(t)
	s := slowly(e)
	s.interrupted(e, "pull", s.addr+"/big:1")
	nothingStaged(e)
	kept := partial(e)
	if kept < 4<<20 {
		t.Errorf("only %d bytes are kept", kept)
	}
	engine.Equal(t, "images", e.Run("images", "-q", s.addr+"/big"), "")
	s.hurry()
	e.Run("pull", s.addr+"/big:1")
	s.mu.Lock()
	ranges := s.ranges
	s.mu.Unlock()
	if len(ranges) != 2 || !strings.HasPrefix(ranges[1], "bytes="+strconv.FormatInt(kept, 10)+"-") {
		t.Errorf("asked for %q with %d bytes here", ranges, kept)
	}
	engine.Equal(t, "left of the download", strconv.FormatInt(partial(e), 10), "0")
	s.stop()
	e.Audit()
}

// TestInterruptedPush: Ctrl-C ends the upload, too.
func TestInterruptedPush(t *testing.T) {
	e := start(t)
	s := slowly(e)
	e.Run("tag", "busybox", s.addr+"/box:1")
	s.interrupted(e, "push", s.addr+"/box:1")
	s.hurry()
	engine.Contains(t, "push", e.Run("push", s.addr+"/box:1"), "digest: sha256:")
	s.stop()
	e.Audit()
}

// TestRegistryDies: a registry that ends in the middle is an error soon; what
// came is kept.
func TestRegistryDies(t *testing.T) {
	e := start(t)
	s := slowly(e)
	e.Run("tag", "busybox", s.addr+"/box:1")
	done := make(chan string, 2)
	for _, args := range [][]string{{"pull", s.addr + "/big:1"}, {"push", s.addr + "/box:1"}} {
		c := e.Docker(args...)
		go func() {
			out, err := c.CombinedOutput()
			done <- fmt.Sprintf("%s ended, %v: %s", args[0], err, out)
		}()
		<-s.came
		s.arrived(e, args[0])
	}
	s.stop()
	for range 2 {
		select {
		case out := <-done:
			engine.Contains(t, "words", out, "exit status 1")
			engine.Contains(t, "words", out, "connection refused")
		case <-time.After(60 * time.Second):
			t.Fatal("they go on")
		}
	}
	nothingStaged(e)
	if kept := partial(e); kept < 4<<20 {
		t.Errorf("only %d bytes are kept", kept)
	}
	e.Audit()
}

// TestF33DiskFullInPull: a pull and a load that the disk cannot hold say so and
// leave nothing on it; what fits is pulled afterwards.
func TestF33DiskFullInPull(t *testing.T) {
	e := start(t)
	data := filepath.Join(e.Dir, "data")
	e.Run("save", "-o", filepath.Join(e.Dir, "busybox.tar.saved"), "busybox")
	e.Kill()
	if out, err := e.HostRun("mount", "-t", "tmpfs", "-o", "size=20m,mode=710", "tmpfs", data); err != nil {
		t.Skipf("no tmpfs here: %v %s", err, out)
	}
	e.Start()
	s := slowly(e)
	s.hurry()
	noise := make([]byte, 24<<20)
	r := rand.New(rand.NewPCG(3, 4))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	s.Image(t, "huge", "1", layertest.Tar(t, layertest.File("small", "x")), layertest.Tar(t, layertest.File("noise", string(noise))))
	free := func() string {
		out, _ := e.HostRun("sh", "-c", "df -k "+data+" | tail -1 | awk '{print int($4/1024)}'")
		return out
	}
	before := free()
	for range 2 {
		e.Fails(1, "no space left on device", "pull", s.addr+"/huge:1")
		nothingStaged(e)
		engine.Equal(t, "space after a pull", free(), before)
	}
	archive := filepath.Join(e.Dir, "huge.tar")
	if err := os.WriteFile(archive, hugeArchive(t, noise), 0o600); err != nil {
		t.Fatal(err)
	}
	e.Fails(1, "no space left on device", "load", "-i", archive)
	nothingStaged(e)
	e.Fails(1, "no space left on device", "import", archive)
	nothingStaged(e)
	engine.Equal(t, "space after a load", free(), before)
	engine.Equal(t, "images", e.Run("images", "-aq"), "")
	e.Run("load", "-i", filepath.Join(e.Dir, "busybox.tar.saved"))
	engine.Equal(t, "what fits", e.Run("run", "--rm", "--network", "none", "busybox", "echo", "yes"), "yes")
	s.stop()
	e.Terminate()
	if out, err := e.HostRun("umount", data); err != nil {
		t.Errorf("something holds the disk: %s", out)
	}
	e.Start()
	e.Audit()
}

// hugeArchive is an archive of an image with one layer.
func hugeArchive(t *testing.T, content []byte) []byte {
	layer := layertest.Tar(t, layertest.File("noise", string(content)))
	config := fmt.Sprintf(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["%s"]}}`, digest.FromBytes(layer))
	return layertest.Tar(t, layertest.File("layer.tar", string(layer)), layertest.File("c.json", config), layertest.File("manifest.json", `[{"Config":"c.json","RepoTags":["huge:1"],"Layers":["layer.tar"]}]`))
}
