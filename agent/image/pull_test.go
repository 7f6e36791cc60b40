package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"machine/agent/fault"
	"machine/agent/layer/layertest"
	"machine/agent/model"
	"machine/agent/oci"
	"machine/agent/registry"
	"machine/agent/registry/registrytest"
)

func client(t testing.TB) *registry.Client {
	t.Helper()
	c, err := registry.New(registry.Options{CertsDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// noise does not compress.
func noise(n int, seed uint64) string {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

func lay(t *testing.T, name, body string) []byte {
	return layertest.Tar(t, layertest.File(name, body))
}

func pulled(t *testing.T, s *Store, ref string) *model.Image {
	t.Helper()
	img, err := s.Pull(bg, ref, "", model.RegistryAuth{}, model.Nothing)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func blobRequests(r *registrytest.Registry) (n int) {
	for _, q := range r.Seen() {
		if strings.Contains(q.URL.Path, "/blobs/sha256") {
			n++
		}
	}
	return n
}

// TestPullProgress: what is said of each layer, in Docker's words and order,
// with the bytes that have come and gone.
func TestPullProgress(t *testing.T) {
	r := registrytest.New(t, false)
	var tars [][]byte
	for i := range 5 {
		tars = append(tars, lay(t, "f", noise(3<<20, uint64(i))))
	}
	r.Image(t, "p", "v1", tars...)
	s := openAt(t, t.TempDir(), client(t))
	var mu sync.Mutex
	said, last := map[string][]string{}, map[string]model.ProgressEvent{}
	layers, waiting := false, make(chan string, 5)
	r.SetFault(func(http.ResponseWriter, *http.Request) bool { // three go at once: the first ends when two wait
		mu.Lock()
		hold := layers && len(waiting) < 2
		mu.Unlock()
		for deadline := time.Now().Add(20 * time.Second); hold && len(waiting) < 2 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		return false
	})
	_, err := s.Pull(bg, r.Host+"/p:v1", "", model.RegistryAuth{}, func(e model.ProgressEvent) {
		mu.Lock()
		defer mu.Unlock()
		if len(e.ID) != 12 {
			return
		}
		layers = true
		if e.Status == "Waiting" {
			waiting <- e.ID
		}
		was := last[e.ID+e.Status]
		if e.Current < was.Current || e.Current > e.Total {
			t.Errorf("%s %s: %d of %d behind %d", e.ID, e.Status, e.Current, e.Total, was.Current)
		}
		last[e.ID+e.Status] = e
		if l := said[e.ID]; len(l) == 0 || l[len(l)-1] != e.Status {
			said[e.ID] = append(l, e.Status)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for id, l := range said {
		got := strings.Replace(strings.Join(l, ", "), "Waiting, ", "", 1)
		if want := "Pulling fs layer, Downloading, Verifying Checksum, Download complete, Extracting, Pull complete"; got != want {
			t.Errorf("%s: %s", id, got)
		}
		for _, status := range []string{"Downloading", "Extracting"} {
			if e := last[id+status]; e.Current != e.Total || e.Total < 2<<20 {
				t.Errorf("%s %s ends at %d of %d", id, status, e.Current, e.Total)
			}
		}
	}
	if len(said) != 5 || len(waiting) != 2 {
		t.Errorf("%d layers, %d of them waited", len(said), len(waiting))
	}
}

func TestPull(t *testing.T) {
	r := registrytest.New(t, false)
	a, b := lay(t, "a", "1"), lay(t, "b", "2")
	d := r.Image(t, "x/y", "v1", a, b, a)
	s := openAt(t, t.TempDir(), client(t))
	var mu sync.Mutex
	var said []string
	img, err := s.Pull(bg, r.Host+"/x/y:v1", "", model.RegistryAuth{}, func(e model.ProgressEvent) {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, strings.TrimSpace(e.ID+" "+e.Status))
	})
	if err != nil {
		t.Fatal(err)
	}
	if img.RepoTags[0] != r.Host+"/x/y:v1" || img.Digests[0] != r.Host+"/x/y@"+d.String() || img.Size != 3 {
		t.Errorf("got %+v", img)
	}
	all := strings.Join(said, "\n")
	for _, want := range []string{"v1 Pulling from x/y", "Pulling fs layer", "Pull complete", "Digest: " + d.String(), "Status: Downloaded newer image for " + r.Host + "/x/y:v1"} {
		if !strings.Contains(all, want) {
			t.Errorf("not said: %s\n%s", want, all)
		}
	}
	n := blobRequests(r)
	if again := pulled(t, s, r.Host+"/x/y@"+d.String()); again.ID != img.ID {
		t.Errorf("by digest: %s", again.ID)
	}
	if m := blobRequests(r); m != n {
		t.Errorf("%d blobs were fetched again", m-n)
	}
	// The same layers under another configuration.
	r.Image(t, "x/y", "v2", a, b)
	pulled(t, s, r.Host+"/x/y:v2")
	if m := blobRequests(r); m > n+2 {
		t.Errorf("%d requests for a configuration", m-n)
	}
	if list, _ := os.ReadDir(filepath.Join(filepath.Dir(s.o.Root), "blobs", "partial")); len(list) != 0 {
		t.Errorf("%d partial blobs are left", len(list))
	}
}

func TestPullIndex(t *testing.T) {
	r := registrytest.New(t, false)
	mine := r.Image(t, "x", "mine", lay(t, "a", "mine"))
	r.Image(t, "x", "other", lay(t, "a", "other"))
	m := r.Manifests["x@"+mine.String()]
	p := oci.Host()
	idx := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{
		{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString("none"), Size: 3, Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}},
		{MediaType: m.Type, Digest: mine, Size: int64(len(m.Body)), Platform: &p},
	}}
	idx.SchemaVersion = 2
	top := r.Put(t, "x", "multi", idx, v1.MediaTypeImageIndex)
	s := openAt(t, t.TempDir(), client(t))
	img := pulled(t, s, r.Host+"/x:multi")
	if img.Digests[0] != r.Host+"/x@"+top.String() {
		t.Errorf("digests %v, want that of the index", img.Digests)
	}
	_, err := s.Pull(bg, r.Host+"/x:multi", "linux/riscv64", model.RegistryAuth{}, model.Nothing)
	if err == nil || !strings.Contains(err.Error(), "no matching manifest for linux/riscv64 in the manifest list entries") {
		t.Errorf("riscv64: %v", err)
	}
	// Another platform's image takes the tag, but not the index's digest.
	other := r.Image(t, "x", "s390x", lay(t, "a", "foreign"))
	om := r.Manifests["x@"+other.String()]
	idx.Manifests[0] = v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: other, Size: int64(len(om.Body)), Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}
	both := r.Put(t, "x", "both", idx, v1.MediaTypeImageIndex)
	pulled(t, s, r.Host+"/x:both")
	foreign, err := s.Pull(bg, r.Host+"/x:both", "linux/s390x", model.RegistryAuth{}, model.Nothing)
	if err != nil || foreign.ID == img.ID || len(foreign.Digests) != 0 {
		t.Errorf("s390x: %+v, %v", foreign, err)
	}
	byDigest := r.Host + "/x@" + both.String()
	if got, err := s.Get(bg, byDigest); err != nil || got.ID != img.ID {
		t.Errorf("%s: %v, %v, want the first image", byDigest, got, err)
	}
	if _, err := s.Pull(bg, byDigest, "linux/s390x", model.RegistryAuth{}, model.Nothing); err != nil {
		t.Error(err)
	}
	if got, err := s.Get(bg, byDigest); err != nil || got.ID != foreign.ID {
		t.Errorf("%s: %v, %v, want the image that was pulled by it", byDigest, got, err)
	}
	// A name that stands for one image alone gives that one, with a warning.
	var warned string
	one, err := s.Pull(bg, r.Host+"/x:mine", "linux/s390x", model.RegistryAuth{}, func(e model.ProgressEvent) { warned = e.Status })
	if err != nil || one.ID != img.ID || !strings.HasPrefix(warned, "WARNING: image with reference "+r.Host+"/x:mine was found but its platform") {
		t.Errorf("s390x: %v, %q", err, warned)
	}
}

func TestPushPull(t *testing.T) {
	r := registrytest.New(t, false)
	s := openAt(t, t.TempDir(), client(t))
	img := imported(t, s, r.Host+"/a/b:1", layertest.File("f", noise(1<<20, 1)))
	var digestLine string
	err := s.Push(bg, r.Host+"/a/b:1", model.RegistryAuth{}, func(e model.ProgressEvent) {
		if strings.Contains(e.Status, "digest: sha256:") {
			digestLine = e.Status
		}
	})
	if err != nil || digestLine == "" {
		t.Fatalf("push: %q, %v", digestLine, err)
	}
	other := openAt(t, t.TempDir(), client(t))
	if got := pulled(t, other, r.Host+"/a/b:1"); got.ID != img.ID {
		t.Errorf("came back as %s", got.ID)
	}
	if err := s.Push(bg, "nope", model.RegistryAuth{}, model.Nothing); !fault.Is(err, fault.NotFound) {
		t.Errorf("push nope: %v", err)
	}
}

// bigBlob makes a fault that applies to the layer, not to small things.
func bigBlob(r *registrytest.Registry, f func(w http.ResponseWriter, q *http.Request, b []byte) bool) {
	r.SetFault(func(w http.ResponseWriter, q *http.Request) bool {
		b := r.Blobs[digest.Digest(q.URL.Path[strings.LastIndex(q.URL.Path, "/")+1:])]
		return len(b) > 1<<20 && f(w, q, b)
	})
}

// TestF35PullResumes: a pull that was cut short goes on where it was, also
// after a restart.
func TestF35PullResumes(t *testing.T) {
	r := registrytest.New(t, false)
	r.Image(t, "x", "1", lay(t, "big", noise(4<<20, 2)))
	dir := t.TempDir()
	s := openAt(t, dir, client(t))
	ctx, cancel := context.WithCancel(bg)
	var sent atomic.Int64
	bigBlob(r, func(w http.ResponseWriter, q *http.Request, b []byte) bool {
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		w.Write(b[:3<<20])
		w.(http.Flusher).Flush()
		for range 2000 { // until it has arrived
			if p, _ := filepath.Glob(filepath.Join(dir, "blobs", "partial", "sha256-*")); len(p) == 1 {
				if st, err := os.Stat(p[0]); err == nil && st.Size() >= 2<<20 {
					break
				}
			}
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
		<-q.Context().Done()
		return true
	})
	if _, err := s.Pull(ctx, r.Host+"/x:1", "", model.RegistryAuth{}, model.Nothing); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	r.SetFault(func(w http.ResponseWriter, q *http.Request) bool {
		var from int64
		if n, _ := fmt.Sscanf(q.Header.Get("Range"), "bytes=%d-", &from); n == 1 {
			sent.Store(from)
		}
		return false
	})
	s = openAt(t, dir, client(t))
	pulled(t, s, r.Host+"/x:1")
	if sent.Load() < 2<<20 {
		t.Errorf("the second pull began at byte %d", sent.Load())
	}
}

// TestF35PullDamaged: a damaged beginning is thrown away; a registry that lies
// about content leaves nothing.
func TestF35PullDamaged(t *testing.T) {
	r := registrytest.New(t, false)
	r.Image(t, "x", "1", lay(t, "big", noise(4<<20, 2)))
	m := r.Manifests["x:1"]
	man, _ := oci.ParseManifest(m.Body, m.Type)
	dir := t.TempDir()
	s := openAt(t, dir, client(t))
	part := filepath.Join(dir, "blobs", "partial", "sha256-"+man.Layers[0].Digest.Encoded())
	os.WriteFile(part, bytes.Repeat([]byte("damage"), 1000), 0o600)
	pulled(t, s, r.Host+"/x:1")
	// Wrong bytes of the right length.
	bigBlob(r, func(w http.ResponseWriter, q *http.Request, b []byte) bool {
		bad := bytes.Clone(b)
		bad[len(bad)/2] ^= 1
		w.Write(bad)
		return true
	})
	s = openAt(t, t.TempDir(), client(t))
	if _, err := s.Pull(bg, r.Host+"/x:1", "", model.RegistryAuth{}, model.Nothing); !fault.Is(err, fault.Invalid) {
		t.Errorf("corrupt: %v", err)
	}
	if list, _ := s.List(bg); len(list) != 0 || len(s.o.Layers.List()) != 0 {
		t.Error("something of it stayed")
	}
}

// TestF36ParallelPulls: of many pulls of images that share layers one is
// killed; the others finish, and each layer is fetched once.
func TestF36ParallelPulls(t *testing.T) {
	r := registrytest.New(t, false)
	base := lay(t, "base", noise(2<<20, 3))
	for i := range 4 {
		r.Image(t, "x", fmt.Sprint(i), base, lay(t, "own", noise(1<<20, uint64(10+i))))
	}
	var fetched atomic.Int32
	started := make(chan struct{}, 100)
	r.SetFault(func(w http.ResponseWriter, q *http.Request) bool {
		if len(r.Blobs[digest.Digest(q.URL.Path[strings.LastIndex(q.URL.Path, "/")+1:])]) > 3<<19 {
			if q.TLS == nil {
				fetched.Add(1)
			}
			started <- struct{}{}
			time.Sleep(100 * time.Millisecond)
		}
		return false
	})
	s := openAt(t, t.TempDir(), client(t))
	killed, kill := context.WithCancel(bg)
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		wg.Go(func() {
			ctx := bg
			if i == 0 {
				ctx = killed
			}
			_, errs[i] = s.Pull(ctx, fmt.Sprint(r.Host, "/x:", i), "", model.RegistryAuth{}, model.Nothing)
		})
	}
	<-started
	kill()
	wg.Wait()
	for i, err := range errs {
		if i > 0 && err != nil {
			t.Errorf("pull %d: %v", i, err)
		}
	}
	if n := fetched.Load(); n > 2 { // twice when the killed one was alone with it
		t.Errorf("the shared layer was fetched %d times", n)
	}
	if s.flight.running != nil && len(s.flight.running) != 0 {
		t.Errorf("%d flights are left", len(s.flight.running))
	}
}

// TestS27Labels: nothing that an image says about itself changes more than
// what it shows.
func TestS27Labels(t *testing.T) {
	s := open(t)
	conf := `{"architecture":"amd64","os":"linux","config":{"Labels":{"com.docker.volume.anonymous":"x","containerd.io/gc.root":"1","Parent":"sha256:0"}},"Parent":"evil","Sources":[{"Repo":"evil"}],"rootfs":{"type":"layers","diff_ids":[]}}`
	b := archiveOf(t, map[string]string{"c.json": conf, "manifest.json": `[{"Config":"c.json","RepoTags":["l:1"],"Layers":[]}]`})
	if _, err := s.Load(bg, bytes.NewReader(b), model.Nothing); err != nil {
		t.Fatal(err)
	}
	img, err := s.Get(bg, "l:1")
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Details(bg, img.ID)
	if err != nil || d.Parent != "" || len(s.images[img.ID].Sources) != 0 {
		t.Errorf("got %+v, %v", d, err)
	}
	if _, _, err := s.Prune(bg, PruneOptions{All: true}); err != nil {
		t.Fatal(err)
	}
	if list, _ := s.List(bg); len(list) != 0 {
		t.Error("a label kept the image")
	}
}

// TestS26ImageConfig: configurations that are none are refused.
func TestS26ImageConfig(t *testing.T) {
	r := registrytest.New(t, false)
	s := openAt(t, t.TempDir(), client(t))
	for name, conf := range map[string]string{
		"null": "null", "array": "[]", "text": "hello", "no layers": `{"rootfs":{"diff_ids":[]}}`,
		"bad diff": `{"os":"linux","rootfs":{"diff_ids":["md5:x"]}}`, "huge": strings.Repeat(" ", oci.MaxManifest+10),
	} {
		m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: r.Blob([]byte(conf), v1.MediaTypeImageConfig), Layers: []v1.Descriptor{r.Blob([]byte("x"), v1.MediaTypeImageLayer)}}
		m.SchemaVersion = 2
		r.Put(t, "x", "1", m, m.MediaType)
		if _, err := s.Pull(bg, r.Host+"/x:1", "", model.RegistryAuth{}, model.Nothing); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzChanges(f *testing.F) {
	f.Add(`ENV a="b c" d='e' f=\g h=${i:-j}$k`)
	f.Fuzz(func(t *testing.T, s string) {
		var c dockerspec.DockerOCIImageConfig
		ApplyChanges(&c, []string{"ENV A=b", s})
	})
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(`[{"Config":"c.json","RepoTags":["l:1"],"Layers":[]}]`), []byte(`{"rootfs":{"diff_ids":[]}}`), []byte("layer"))
	f.Add([]byte(`[{"Config":"c.json","Layers":["l"]}]`), []byte(`{"rootfs":{"diff_ids":["sha256:x"]}}`), []byte("\x1f\x8b\x08"))
	f.Fuzz(func(t *testing.T, manifest, config, layer []byte) {
		s := open(t)
		e := []layertest.Entry{layertest.File("c.json", string(config)), layertest.File("l", string(layer)), layertest.File("manifest.json", string(manifest)), layertest.File("index.json", string(manifest))}
		s.Load(bg, bytes.NewReader(layertest.Tar(t, e...)), model.Nothing)
	})
}
