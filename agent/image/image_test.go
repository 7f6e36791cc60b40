package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"machine/agent/blob"
	"machine/agent/fault"
	"machine/agent/layer/layertest"
	"machine/agent/layer/overlay"
	"machine/agent/model"
)

var bg = context.Background()

func openAt(t testing.TB, dir string, src Registry) *Store {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	log := slog.New(slog.DiscardHandler)
	l, err := overlay.Open(filepath.Join(dir, "layers"), log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	b, err := blob.Open(filepath.Join(dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{Root: filepath.Join(dir, "images"), Layers: l, Blobs: b, Source: src, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func open(t *testing.T) *Store { return openAt(t, t.TempDir(), nil) }

func imported(t *testing.T, s *Store, ref string, e ...layertest.Entry) *model.Image {
	t.Helper()
	img, err := s.Import(bg, bytes.NewReader(layertest.Tar(t, e...)), ImportOptions{Ref: ref, Changes: []string{"CMD [\"/bin/sh\"]", "ENV A=b"}})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestImportListTagRemove(t *testing.T) {
	s := open(t)
	img := imported(t, s, "test", layertest.File("a", "x"))
	if img.Config.Config.Cmd[0] != "/bin/sh" || img.Config.Config.Env[0] != "A=b" || img.Size != 1 {
		t.Errorf("image %+v", img)
	}
	if err := s.Tag(bg, "test", "host.example:5000/other:v1"); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"test", "test:latest", "docker.io/library/test", "host.example:5000/other:v1", img.ID.String(), img.ID.Encoded(), img.ID.Encoded()[:12]} {
		if got, err := s.Get(bg, ref); err != nil || got.ID != img.ID {
			t.Errorf("get %s: %v", ref, err)
		}
	}
	_, err := s.Get(bg, "nope")
	if !fault.Is(err, fault.NotFound) || err.Error() != "No such image: nope:latest" {
		t.Errorf("get nope: %v", err)
	}
	if _, err := s.Remove(bg, img.ID.Encoded()[:12], RemoveOptions{}); !fault.Is(err, fault.Conflict) {
		t.Errorf("removed with two names: %v", err)
	}
	out, err := s.Remove(bg, "test", RemoveOptions{})
	if err != nil || len(out) != 1 || out[0].Untagged != "test:latest" {
		t.Errorf("untag: %v, %v", out, err)
	}
	used := func(digest.Digest) (Use, bool) { return Use{"0123456789abcdef", true}, true }
	if _, err := s.Remove(bg, img.ID.Encoded(), RemoveOptions{Force: true, InUse: used}); !fault.Is(err, fault.Conflict) {
		t.Errorf("removed below a running container: %v", err)
	}
	out, err = s.Remove(bg, img.ID.Encoded(), RemoveOptions{})
	if err != nil || len(out) != 3 {
		t.Errorf("remove: %v, %v", out, err)
	}
	if n := len(s.o.Layers.List()); n != 0 {
		t.Errorf("%d layers are left", n)
	}
}

func TestSaveLoad(t *testing.T) {
	s := open(t)
	base := imported(t, s, "base:1", layertest.Dir("d"), layertest.File("d/f", strings.Repeat("abc", 100000)))
	same := layertest.Tar(t, layertest.File("same", "1"))
	one, err := s.Commit(bg, bytes.NewReader(same), CommitOptions{Parent: base.ID, Ref: "child:2"})
	if err != nil {
		t.Fatal(err)
	}
	// The same layer twice in one image.
	two, err := s.Commit(bg, bytes.NewReader(same), CommitOptions{Parent: one.ID, Ref: "child:3"})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := s.Save(bg, []string{"base:1", "child"}, &b); err != nil {
		t.Fatal(err)
	}
	forms := map[string][]byte{"plain": b.Bytes(), "gzip": layertest.Gzip(b.Bytes()), "layout": without(t, b.Bytes(), "manifest.json"), "legacy": without(t, b.Bytes(), "index.json")}
	enc, _ := zstd.NewWriter(nil)
	forms["zstd"] = enc.EncodeAll(b.Bytes(), nil)
	for name, form := range forms {
		s := open(t)
		for range 2 { // the second time all is there
			got, err := s.Load(bg, bytes.NewReader(form), model.Nothing)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if len(got) != 3 {
				t.Fatalf("%s: %v", name, got)
			}
		}
		for ref, want := range map[string]digest.Digest{"base:1": base.ID, "child:2": one.ID, "child:3": two.ID} {
			if img, err := s.Get(bg, ref); err != nil || img.ID != want {
				t.Errorf("%s: %s: %v", name, ref, err)
			}
		}
		var again bytes.Buffer
		if err := s.Save(bg, []string{"base:1", "child"}, &again); err != nil || !bytes.Equal(again.Bytes(), b.Bytes()) {
			t.Errorf("%s: saved again: %d bytes of %d, %v", name, again.Len(), b.Len(), err)
		}
	}
	if err := s.Save(bg, []string{"nope"}, io.Discard); !fault.Is(err, fault.NotFound) {
		t.Errorf("save nope: %v", err)
	}
}

// without copies a tar but one file.
func without(t *testing.T, b []byte, name string) []byte {
	t.Helper()
	var out bytes.Buffer
	w, r := tar.NewWriter(&out), tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name != name {
			w.WriteHeader(h)
			io.Copy(w, r)
		}
	}
	w.Close()
	return out.Bytes()
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir, nil)
	img := imported(t, s, "test", layertest.File("a", "x"))
	s = openAt(t, dir, nil)
	if got, err := s.Get(bg, "test"); err != nil || got.ID != img.ID || got.TopLayer == "" {
		t.Errorf("after a restart: %v, %v", got, err)
	}
}

func TestHistoryAndPrune(t *testing.T) {
	s := open(t)
	base := imported(t, s, "base", layertest.File("a", "x"))
	if _, err := s.Commit(bg, nil, CommitOptions{Parent: base.ID, Ref: "kid", Comment: "only config"}); err != nil {
		t.Fatal(err)
	}
	h, err := s.History(bg, "kid")
	if err != nil || len(h) != 2 || h[0].Comment != "only config" || h[1].ID != base.ID.String() || h[1].Size != 1 {
		t.Errorf("history %+v, %v", h, err)
	}
	if _, err := s.Remove(bg, base.ID.String(), RemoveOptions{Force: true}); !fault.Is(err, fault.Conflict) {
		t.Errorf("removed below a child: %v", err)
	}
	if _, _, err := s.Prune(bg, PruneOptions{All: true}); err != nil {
		t.Fatal(err)
	}
	if list, _ := s.List(bg); len(list) != 0 {
		t.Errorf("prune left %d images", len(list))
	}
	if n := len(s.o.Layers.List()); n != 0 {
		t.Errorf("prune left %d layers", n)
	}
}

// archiveOf makes a docker-archive by hand.
func archiveOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var e []layertest.Entry
	for n, b := range files {
		e = append(e, layertest.File(n, b))
	}
	return layertest.Tar(t, e...)
}

// TestS24ImageIDs: digests and names in archives are believed only after a
// look at the bytes; no name reaches the file system.
func TestS24ImageIDs(t *testing.T) {
	lay := string(layertest.Tar(t, layertest.File("a", "1")))
	diff := digest.FromString(lay)
	conf := fmt.Sprintf(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[%q]}}`, diff)
	man := func(config, tag, layer string) string {
		b, _ := json.Marshal([]map[string]any{{"Config": config, "RepoTags": []string{tag}, "Layers": []string{layer}}})
		return string(b)
	}
	good := map[string]string{"c.json": conf, "l/layer.tar": lay, "manifest.json": man("c.json", "ok:1", "l/layer.tar")}
	s := open(t)
	if _, err := s.Load(bg, bytes.NewReader(archiveOf(t, good)), model.Nothing); err != nil {
		t.Fatal(err)
	}
	bad := map[string]map[string]string{
		"id as tag":     {"c.json": conf, "l/layer.tar": lay, "manifest.json": man("c.json", strings.Repeat("a", 64), "l/layer.tar")},
		"dots as tag":   {"c.json": conf, "l/layer.tar": lay, "manifest.json": man("c.json", "../../etc:1", "l/layer.tar")},
		"wrong config":  {strings.Repeat("b", 64) + ".json": conf, "l/layer.tar": lay, "manifest.json": man(strings.Repeat("b", 64)+".json", "x:1", "l/layer.tar")},
		"wrong layer":   {"c.json": conf, "l/layer.tar": string(layertest.Tar(t, layertest.File("b", "2"))), "manifest.json": man("c.json", "x:1", "l/layer.tar")},
		"no layer":      {"c.json": strings.Replace(conf, diff.String(), digest.FromString("other").String(), 1), "manifest.json": man("c.json", "x:1", "l/layer.tar")},
		"outside layer": {"c.json": strings.Replace(conf, diff.String(), digest.FromString("other").String(), 1), "manifest.json": man("c.json", "x:1", "../../../../etc/passwd")},
		"dots in diff":  {"c.json": strings.Replace(conf, diff.String(), "sha256:../../x", 1), "l/layer.tar": lay, "manifest.json": man("c.json", "x:1", "l/layer.tar")},
		"null":          {"manifest.json": "[null]"},
		"no array":      {"manifest.json": "{}"},
		"null config":   {"c.json": "null", "l/layer.tar": lay, "manifest.json": man("c.json", "x:1", "l/layer.tar")},
		"nothing":       {},
	}
	for name, files := range bad {
		if _, err := s.Load(bg, bytes.NewReader(archiveOf(t, files)), model.Nothing); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if list, _ := s.List(bg); len(list) != 1 {
		t.Errorf("%d images", len(list))
	}
}

// TestLoadCancelled: a load that is given up leaves nothing behind.
func TestLoadCancelled(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir, nil)
	ctx, cancel := context.WithCancel(bg)
	lay := layertest.Tar(t, layertest.File("a", strings.Repeat("x", 1<<20)))
	whole := archiveOf(t, map[string]string{"l/layer.tar": string(lay)})
	r := io.MultiReader(bytes.NewReader(whole[:1<<19]), readerFunc(func(p []byte) (int, error) { cancel(); return 0, ctx.Err() }))
	if _, err := s.Load(ctx, r, model.Nothing); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	s.o.Layers.(*overlay.Store).Close()
	if list, _ := os.ReadDir(filepath.Join(dir, "layers", "staging")); len(list) != 0 {
		t.Errorf("%d staged layers are left", len(list))
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
