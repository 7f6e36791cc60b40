// Package layertest is the conformance suite of layer storage.
package layertest

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"

	"machine/agent/fault"
	"machine/agent/layer"
	"machine/agent/model"
	"machine/agent/oci"
)

// An Entry is one entry of a test layer; Body's length is its size.
type Entry struct {
	tar.Header
	Body string
}

// File is a regular file, 0644.
func File(name, body string) Entry {
	return Entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, ModTime: time.Unix(1e9, 0)}, body}
}

// Dir is a directory, 0755.
func Dir(name string) Entry {
	return Entry{tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(1e9, 0)}, ""}
}

// Link is a hard link, Symlink a symbolic one.
func Link(name, target string) Entry {
	return Entry{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}, ""}
}

// Symlink is a symbolic link.
func Symlink(name, target string) Entry {
	return Entry{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}, ""}
}

// Tar makes a tar of entries.
func Tar(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.Size = int64(len(e.Body))
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, e.Body)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Gzip compresses b.
func Gzip(b []byte) []byte {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(b)
	w.Close()
	return z.Bytes()
}

// Run runs the suite; open opens an empty store, which the suite closes.
func Run(t *testing.T, open func(t *testing.T) layer.Store) {
	for _, c := range []struct {
		name string
		f    func(*testing.T, layer.Store)
	}{
		{"apply", testApply}, {"same bytes", testSameBytes}, {"chain", testChain}, {"container", testContainer},
		{"changes", testChanges}, {"release", testRelease}, {"broken", testBroken}, {"deep", testF48Depth}, {"implied", testImplied},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t)
			defer s.Close()
			c.f(t, s)
		})
	}
}

func apply(t *testing.T, s layer.Store, parent digest.Digest, e ...Entry) model.Layer {
	t.Helper()
	l, err := s.Apply(context.Background(), parent, bytes.NewReader(Tar(t, e...)))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func testApply(t *testing.T, s layer.Store) {
	plain := Tar(t, Dir("etc"), File("etc/hosts", "hello"), File("a", "xy"))
	l, err := s.Apply(context.Background(), "", bytes.NewReader(Gzip(plain)))
	if err != nil {
		t.Fatal(err)
	}
	if want := digest.FromBytes(plain); l.DiffID != want || l.Chain != want || l.Size != 7 || l.Tar != int64(len(plain)) {
		t.Fatalf("got %+v, want diff %s size 7 tar %d", l, want, len(plain))
	}
	again, err := s.Apply(context.Background(), "", bytes.NewReader(plain))
	if err != nil || again != l {
		t.Fatalf("second time: %+v, %v", again, err)
	}
	if !s.Has(l.Chain) || len(s.List()) != 1 {
		t.Fatal("the layer is not listed once")
	}
}

func testSameBytes(t *testing.T, s layer.Store) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 70_000)
	sets := map[string][]Entry{
		"plain": {Dir("d"), File("d/f", "x"), File("d/big", string(big)), Link("d/l", "d/f"), Symlink("d/s", "../x"), File("empty", "")},
		"twice": {File("f", "one"), File("f", "two"), Dir("d"), File("d/x", "deep"), File("d", "now a file")},
		"white": {File("a/.wh.gone", ""), File("b/.wh..wh..opq", ""), File("b/new", "n")},
		"names": {Dir("./"), File("./x", "1"), File("/y", "2"), File("z/../w", "3")},
		"zeros": {File("holes", string(make([]byte, 3<<20))+"end"), File("allzero", string(make([]byte, 1<<20)))},
		"none":  {},
	}
	for name, set := range sets {
		plain := Tar(t, set...)
		plain = append(plain, make([]byte, 10240)...) // as GNU tar pads
		l, err := s.Apply(context.Background(), "", bytes.NewReader(plain))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		r, err := s.Diff(context.Background(), l.Chain)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := io.ReadAll(r)
		r.Close()
		if err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("%s: the tar came back different: %d bytes of %d, %v", name, len(got), len(plain), err)
		}
	}
}

func read(t *testing.T, root *os.File, name string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/%s", root.Fd(), name))
	if err != nil {
		return "error: " + err.Error()
	}
	return string(b)
}

func testChain(t *testing.T, s layer.Store) {
	a := apply(t, s, "", Dir("d"), File("d/one", "1"), File("d/two", "2"), Dir("e"), File("e/x", "x"))
	b := apply(t, s, a.Chain, File("d/.wh.one", ""), File("e/.wh..wh..opq", ""), File("e/y", "y"))
	if b.Chain != oci.ChainID(a.Chain, b.DiffID) || b.Parent != a.Chain {
		t.Fatalf("chain of %+v on %+v", b, a)
	}
	root, release, err := s.OpenImage(context.Background(), b.Chain)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if got := read(t, root, "d/two"); got != "2" {
		t.Errorf("d/two: %s", got)
	}
	for _, gone := range []string{"d/one", "e/x"} {
		if _, err := os.Lstat(fmt.Sprintf("/proc/self/fd/%d/%s", root.Fd(), gone)); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", gone, err)
		}
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/self/fd/%d/new", root.Fd()), nil, 0o644); err == nil {
		t.Error("an image could be written to")
	}
}

func testContainer(t *testing.T, s layer.Store) {
	ctx := context.Background()
	a := apply(t, s, "", Dir("d"), File("d/f", "image"))
	if err := s.Create(ctx, "c1", a.Chain); err != nil {
		t.Fatal(err)
	}
	if err := s.Create(ctx, "c1", a.Chain); !fault.Is(err, fault.Conflict) {
		t.Fatalf("created twice: %v", err)
	}
	if err := s.Create(ctx, "../evil", a.Chain); !fault.Is(err, fault.Invalid) {
		t.Fatalf("created outside: %v", err)
	}
	root, release, err := s.OpenRoot(ctx, "c1")
	if err != nil {
		t.Fatal(err)
	}
	dir := fmt.Sprintf("/proc/self/fd/%d", root.Fd())
	if err := os.WriteFile(filepath.Join(dir, "d", "f"), []byte("changed!"), 0o644); err != nil {
		t.Fatal(err)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if bytes.Contains(mounts, []byte("c-c1")) {
		t.Error("the mount shows in the table of mounts")
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Size(ctx, "c1"); err != nil || n != 8 {
		t.Errorf("size %d, %v", n, err)
	}
	img, release, err := s.OpenImage(ctx, a.Chain)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, img, "d/f"); got != "image" {
		t.Errorf("the image changed to %q", got)
	}
	release()
	if err := s.Release(ctx, a.Chain); !fault.Is(err, fault.Conflict) {
		t.Errorf("released below a container: %v", err)
	}
	for range 2 {
		if err := s.Remove(ctx, "c1"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Rootfs("c1"); !fault.Is(err, fault.NotFound) {
		t.Errorf("root of a removed container: %v", err)
	}
}

func testChanges(t *testing.T, s layer.Store) {
	ctx := context.Background()
	a := apply(t, s, "", Dir("d"), File("d/f", "image"), File("gone", "g"), Dir("re"), File("re/old", "o"), Dir("still"), File("still/x", ""))
	if err := s.Create(ctx, "c", a.Chain); err != nil {
		t.Fatal(err)
	}
	root, release, err := s.OpenRoot(ctx, "c")
	if err != nil {
		t.Fatal(err)
	}
	// Somebody else looks at it meanwhile.
	other, release2, err := s.OpenRoot(ctx, "c")
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, other, "gone"); got == "" {
		t.Error("the second root is empty")
	}
	if err := release2(); err != nil {
		t.Error(err)
	}
	dir := fmt.Sprintf("/proc/self/fd/%d/", root.Fd())
	for _, err := range []error{
		os.WriteFile(dir+"d/f", []byte("2"), 0o644), os.WriteFile(dir+"d/new", nil, 0o600), os.Remove(dir + "gone"),
		os.RemoveAll(dir + "re"), os.Mkdir(dir+"re", 0o755), os.WriteFile(dir+"re/new", nil, 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	release()
	got, err := s.Changes(ctx, "c")
	if err != nil {
		t.Fatal(err)
	}
	want := []model.Change{{Kind: model.Modified, Path: "/d"}, {Kind: model.Modified, Path: "/d/f"}, {Kind: model.Added, Path: "/d/new"},
		{Kind: model.Deleted, Path: "/gone"}, {Kind: model.Modified, Path: "/re"}, {Kind: model.Added, Path: "/re/new"}, {Kind: model.Deleted, Path: "/re/old"}}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	testChangesAsLayer(t, s, a.Chain)
}

// testChangesAsLayer: the changes of testChanges, as a layer on top of those
// that they were made to, show the same tree.
func testChangesAsLayer(t *testing.T, s layer.Store, base digest.Digest) {
	ctx := context.Background()
	r, err := s.DiffContainer(ctx, "c")
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Apply(ctx, base, r)
	r.Close()
	if err != nil {
		t.Fatal(err)
	}
	img, release, err := s.OpenImage(ctx, l.Chain)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if got := read(t, img, "d/f"); got != "2" {
		t.Errorf("d/f: %s", got)
	}
	for _, gone := range []string{"gone", "re/old"} {
		if _, err := os.Lstat(fmt.Sprintf("/proc/self/fd/%d/%s", img.Fd(), gone)); !os.IsNotExist(err) {
			t.Errorf("%s is still there", gone)
		}
	}
}

func testRelease(t *testing.T, s layer.Store) {
	ctx := context.Background()
	a := apply(t, s, "", File("a", ""))
	b := apply(t, s, a.Chain, File("b", ""))
	if err := s.Release(ctx, a.Chain); !fault.Is(err, fault.Conflict) {
		t.Fatalf("released below another: %v", err)
	}
	for _, c := range []digest.Digest{b.Chain, b.Chain, a.Chain} {
		if err := s.Release(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.List()) != 0 {
		t.Fatal("layers are left")
	}
}

func testBroken(t *testing.T, s layer.Store) {
	good := Tar(t, File("a", string(make([]byte, 5000))))
	for name, b := range map[string][]byte{"cut": good[:3000], "cut gzip": Gzip(good)[:20], "noise": bytes.Repeat([]byte("x"), 2000)} {
		if _, err := s.Apply(context.Background(), "", bytes.NewReader(b)); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.Apply(context.Background(), digest.FromString("none"), bytes.NewReader(good)); !fault.Is(err, fault.NotFound) {
		t.Errorf("on a missing parent: %v", err)
	}
	if len(s.List()) != 0 {
		t.Error("a broken layer is listed")
	}
}

func testF48Depth(t *testing.T, s layer.Store) {
	var chain digest.Digest
	for i := range oci.MaxLayers {
		chain = apply(t, s, chain, File(fmt.Sprint("f", i), fmt.Sprint(i))).Chain
	}
	if err := s.Create(context.Background(), "deep", chain); err != nil {
		t.Fatal(err)
	}
	root, release, err := s.OpenRoot(context.Background(), "deep")
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	for i := range oci.MaxLayers {
		if got := read(t, root, fmt.Sprint("f", i)); got != fmt.Sprint(i) {
			t.Errorf("f%d: %s", i, got)
		}
	}
	if _, err := s.Apply(context.Background(), chain, bytes.NewReader(Tar(t, File("x", "")))); !fault.Is(err, fault.Invalid) {
		t.Errorf("one layer too many: %v", err)
	}
}

// testImplied: a layer without entries for directories leaves them as they are.
func testImplied(t *testing.T, s layer.Store) {
	d := Dir("secret")
	d.Mode, d.Uid = 0o700, 42
	a := apply(t, s, "", d)
	b := apply(t, s, a.Chain, File("secret/key", "k"))
	root, release, err := s.OpenImage(context.Background(), b.Chain)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	st, err := os.Stat(fmt.Sprintf("/proc/self/fd/%d/secret", root.Fd()))
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}
