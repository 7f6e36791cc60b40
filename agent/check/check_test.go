package check_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"machine/agent/blob"
	"machine/agent/check"
	"machine/agent/image"
	"machine/agent/layer/layertest"
	"machine/agent/layer/overlay"
	"machine/agent/model"
)

var bg = context.Background()

// An engine's data root, without the engine.
type root struct {
	t      *testing.T
	dir    string
	layers *overlay.Store
	images *image.Store
}

// open is a start of the engine, as far as images go.
func (r *root) open() {
	r.t.Helper()
	log := slog.New(slog.DiscardHandler)
	var err error
	if r.layers, err = overlay.Open(r.dir, log); err != nil {
		r.t.Fatal(err)
	}
	b, err := blob.Open(filepath.Join(r.dir, "image/blobs"))
	if err != nil {
		r.t.Fatal(err)
	}
	if r.images, err = image.Open(image.Options{Root: filepath.Join(r.dir, "image"), Layers: r.layers, Blobs: b, Log: log}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *root) restart() {
	r.t.Helper()
	r.layers.Close()
	r.open()
}

// check runs it on the closed root, and wants so many faults.
func (r *root) check(want int, o check.Options) string {
	r.t.Helper()
	var out bytes.Buffer
	o.Root, o.Out = r.dir, &out
	n, err := check.Run(bg, o)
	if err != nil {
		r.t.Fatal(err)
	}
	if n != want {
		r.t.Errorf("%d faults, not %d:\n%s", n, want, out.String())
	}
	return out.String()
}

func (r *root) has(name string, want bool) {
	r.t.Helper()
	if _, err := r.images.Get(bg, name); (err == nil) != want {
		r.t.Errorf("image %s: %v", name, err)
	}
}

// whole reads all of an image again.
func (r *root) whole(name string) {
	r.t.Helper()
	if err := r.images.Save(bg, []string{name}, io.Discard); err != nil {
		r.t.Errorf("save %s: %v", name, err)
	}
}

// newRoot has the images base:1 of one layer, and child:1 with a second one,
// in which a file comes twice.
func newRoot(t *testing.T) (r *root, base, child *model.Image, archive []byte) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	r = &root{t: t, dir: t.TempDir()}
	r.open()
	t.Cleanup(func() { r.layers.Close() })
	base, err := r.images.Import(bg, bytes.NewReader(layertest.Tar(t, layertest.Dir("d"), layertest.File("d/f", strings.Repeat("abc", 9000)), layertest.Symlink("l", "d/f"))), image.ImportOptions{Ref: "base:1"})
	if err != nil {
		t.Fatal(err)
	}
	child, err = r.images.Commit(bg, bytes.NewReader(layertest.Tar(t, layertest.File("g", "1"), layertest.File("h", "22"))), image.CommitOptions{Parent: base.ID, Ref: "child:1"})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := r.images.Save(bg, []string{"base:1", "child:1"}, &b); err != nil {
		t.Fatal(err)
	}
	r.check(0, check.Options{})
	return r, base, child, b.Bytes()
}

func (r *root) layerDir(c digest.Digest) string {
	return filepath.Join(r.dir, "overlay2", c.Encoded()[:16])
}

func (r *root) write(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// TestF32LostLayerRecord: the record of the lower layer is garbage. Starts
// keep what is left of both images; the record is made anew from the files.
func TestF32LostLayerRecord(t *testing.T) {
	r, base, _, _ := newRoot(t)
	r.write(filepath.Join(r.layerDir(base.TopLayer), "layer.json"), "{")
	if out := r.check(2+2, check.Options{}); !strings.Contains(out, "base:1") {
		t.Errorf("the image is not named:\n%s", out)
	}
	r.restart()
	r.has("base:1", false)
	r.has("child:1", false)
	r.restart() // another start changes nothing
	r.check(2+2, check.Options{})
	if out := r.check(0, check.Options{Repair: true}); strings.Count(out, "put back: image") != 2 || strings.Count(out, "put back: layer") != 2 {
		t.Errorf("told:\n%s", out)
	}
	r.restart()
	r.whole("base:1")
	r.whole("child:1")
	if img, err := r.images.Get(bg, "base:1"); err != nil || img.Size != base.Size {
		t.Errorf("size %v, %v", img, err)
	}
	r.check(0, check.Options{})
}

// TestF32DamagedFile: a file of a layer was changed behind the engine's back.
// Only reading it tells; the layer is taken out, what is left is kept, and
// loading the archive again brings the images back under their names.
func TestF32DamagedFile(t *testing.T) {
	r, _, child, archive := newRoot(t)
	r.write(filepath.Join(r.layerDir(child.TopLayer), "diff/g"), "2")
	r.check(0, check.Options{Quick: true})
	r.check(2, check.Options{}) // the layer, and the image
	r.check(2, check.Options{Repair: true})
	r.restart()
	r.has("base:1", true)
	r.has("child:1", false)
	r.check(2, check.Options{Repair: true}) // still damaged
	if _, err := r.images.Load(bg, bytes.NewReader(archive), model.Nothing); err != nil {
		t.Fatal(err)
	}
	r.whole("child:1")
	r.check(0, check.Options{})
	r.restart()
	r.whole("child:1")
}

// TestF32UnderContainer: a damaged layer that a container stands on stays.
func TestF32UnderContainer(t *testing.T) {
	r, base, child, _ := newRoot(t)
	if err := r.layers.Create(bg, "c1", child.TopLayer); err != nil {
		t.Fatal(err)
	}
	r.write(filepath.Join(r.layerDir(base.TopLayer), "diff/d/f"), strings.Repeat("abd", 9000))
	if out := r.check(3, check.Options{Repair: true}); !strings.Contains(out, "a container stands on it") {
		t.Errorf("told:\n%s", out)
	}
	r.restart()
	r.has("child:1", true)
}

// TestF32ImageRecord: a record that is garbage is made anew from the
// configuration; an image whose configuration is damaged waits for it.
func TestF32ImageRecord(t *testing.T) {
	r, base, child, archive := newRoot(t)
	r.write(filepath.Join(r.dir, "image/records", child.ID.Encoded()+".json"), "null")
	config := filepath.Join(r.dir, "image/blobs/sha256", base.ID.Encoded())
	b, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	r.write(config, strings.ToUpper(string(b))) // of the same size
	r.check(2, check.Options{})
	r.restart()
	r.restart()
	r.has("base:1", false)
	r.has("child:1", false)
	r.check(1, check.Options{Repair: true})
	r.restart()
	r.whole("child:1")
	if _, err := r.images.Load(bg, bytes.NewReader(archive), model.Nothing); err != nil {
		t.Fatal(err)
	}
	r.restart()
	r.whole("base:1")
	r.check(0, check.Options{})
}

// TestF32Discard: what is set aside can be let go of, and its disk space with it.
func TestF32Discard(t *testing.T) {
	r, base, _, _ := newRoot(t)
	r.write(filepath.Join(r.layerDir(base.TopLayer), "diff/d/f"), "")
	r.check(4, check.Options{Repair: true}) // both layers and both images
	r.restart()
	r.check(4, check.Options{Quick: true, Repair: true})
	r.check(0, check.Options{Discard: true})
	r.restart()
	r.check(0, check.Options{})
	if l := r.layers.List(); len(l) != 0 {
		t.Errorf("%d layers are left", len(l))
	}
	for _, dir := range []string{"broken", "image/records", "image/names"} {
		if list, _ := os.ReadDir(filepath.Join(r.dir, dir)); len(list) != 0 {
			t.Errorf("%s holds %d entries", dir, len(list))
		}
	}
}

func TestNoRoot(t *testing.T) {
	if _, err := check.Run(bg, check.Options{Root: filepath.Join(t.TempDir(), "none"), Out: io.Discard}); err == nil {
		t.Error("a data root that is not there has no fault")
	}
}
