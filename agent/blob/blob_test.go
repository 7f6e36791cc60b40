package blob

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"machine/agent/fault"
)

var bg = context.Background()

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPutGet(t *testing.T) {
	s := open(t)
	for range 2 {
		if d, err := s.Put([]byte("hello")); err != nil || d != digest.FromString("hello") {
			t.Fatalf("%s, %v", d, err)
		}
	}
	d := digest.FromString("hello")
	if b, err := s.Get(d); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := s.Get(digest.FromString("none")); !fault.Is(err, fault.NotFound) {
		t.Errorf("none: %v", err)
	}
	name, _ := s.path(d)
	os.WriteFile(name, []byte("jello"), 0o600)
	if _, err := s.Get(d); err == nil {
		t.Error("a damaged blob was believed")
	}
	for range 2 {
		if err := s.Delete(d); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSweep: a Put that a crash cut short leaves nothing for long.
func TestSweep(t *testing.T) {
	s := open(t)
	d, err := s.Put([]byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(s.dir, "sha256", ".tmp-HALF")
	if err := os.WriteFile(half, []byte("hel"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(s.dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(half); !os.IsNotExist(err) {
		t.Errorf("the half is still there: %v", err)
	}
	if list, err := s.List(); err != nil || !slices.Equal(list, []digest.Digest{d}) {
		t.Errorf("got %v, %v", list, err)
	}
}

// TestS24Names: a digest becomes a file name only when it is one.
func TestS24Names(t *testing.T) {
	s := open(t)
	for _, bad := range []digest.Digest{"", "sha256:../../etc/passwd", "sha256:", "../x:aa", "md5:aa", "sha256:zz"} {
		if _, err := s.Get(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("get %q: %v", bad, err)
		}
		if _, err := s.Resume(bg, bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("resume %q: %v", bad, err)
		}
		if err := s.Delete(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("delete %q: %v", bad, err)
		}
	}
}

func TestResume(t *testing.T) {
	s := open(t)
	data := bytes.Repeat([]byte("0123456789"), 100_000)
	d := digest.FromBytes(data)
	w, err := s.Resume(bg, d)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(data[:300_000])
	ctx, cancel := context.WithTimeout(bg, 50*time.Millisecond)
	defer cancel()
	if _, err := s.Resume(ctx, d); err != context.DeadlineExceeded {
		t.Errorf("two writers at once: %v", err)
	}
	w.Close()
	w.Close()
	s, err = Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	if w, err = s.Resume(bg, d); err != nil || w.Offset() != 300_000 {
		t.Fatalf("offset %d, %v", w.Offset(), err)
	}
	got, err := io.ReadAll(w.Reader())
	if err != nil || !bytes.Equal(got, data[:300_000]) {
		t.Errorf("read %d, %v", len(got), err)
	}
	w.Write(data[300_000:])
	if err := w.Check(bg); err != nil {
		t.Error(err)
	}
	w.Close()
	w, _ = s.Resume(bg, d) // not read before the check
	if err := w.Check(bg); err != nil {
		t.Error(err)
	}
	w.Write([]byte("more"))
	if err := w.Check(bg); !fault.Is(err, fault.Invalid) || w.Offset() != 0 {
		t.Errorf("with more: %v, offset %d", err, w.Offset())
	}
	w.Close()
	if list, _ := os.ReadDir(s.dir + "/partial"); len(list) != 0 {
		t.Error("an empty beginning was kept")
	}
	s.Put([]byte("kept"))
	kept := digest.FromString("kept")
	w, _ = s.Resume(bg, kept)
	w.Write([]byte("ke"))
	w.Close()
	for range 2 {
		if err := s.Forget(kept); err != nil {
			t.Error(err)
		}
	}
	if list, _ := os.ReadDir(s.dir + "/partial"); len(list) != 0 {
		t.Error("a forgotten beginning was kept")
	}
	if b, err := s.Get(kept); err != nil || string(b) != "kept" {
		t.Errorf("what is whole was forgotten: %v", err)
	}
}
