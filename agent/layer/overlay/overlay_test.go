package overlay

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"machine/agent/layer"
	"machine/agent/layer/layertest"
	"machine/agent/model"
)

func open(t *testing.T) *Store {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	s, err := Open(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestConformance(t *testing.T) {
	layertest.Run(t, func(t *testing.T) layer.Store { return open(t) })
}

// TestReopen: what was committed is there, what was staged is not.
func TestReopen(t *testing.T) {
	s := open(t)
	ctx := context.Background()
	l, err := s.Apply(ctx, "", bytes.NewReader(layertest.Tar(t, layertest.File("a", "1"))))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Create(ctx, "c", l.Chain); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stage(ctx, bytes.NewReader(layertest.Tar(t, layertest.File("b", "1")))); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s, err = Open(s.root, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got, err := s.Get(l.Chain); err != nil || got != l {
		t.Errorf("got %+v, %v", got, err)
	}
	if ids := s.Containers(); len(ids) != 1 || ids[0] != "c" {
		t.Errorf("containers %v", ids)
	}
	if err := s.Release(ctx, l.Chain); err == nil {
		t.Error("released below a container after a restart")
	}
	s.Close()
	for _, d := range []string{s.staging, s.trash} {
		if list, _ := os.ReadDir(d); len(list) != 0 {
			t.Errorf("%s holds %d entries", d, len(list))
		}
	}
}

// TestBrokenRecord: one broken record stops nothing; what stands on it goes
// with it.
func TestBrokenRecord(t *testing.T) {
	s := open(t)
	ctx := context.Background()
	a, _ := s.Apply(ctx, "", bytes.NewReader(layertest.Tar(t, layertest.File("a", "1"))))
	s.Apply(ctx, a.Chain, bytes.NewReader(layertest.Tar(t, layertest.File("b", "1"))))
	c, _ := s.Apply(ctx, "", bytes.NewReader(layertest.Tar(t, layertest.File("c", "1"))))
	if err := os.WriteFile(filepath.Join(s.layers, shortName(a.Chain), "layer.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(s.root, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if l := s.List(); len(l) != 1 || l[0].Chain != c.Chain {
		t.Errorf("got %v", l)
	}
}

// BenchmarkContainer is what layers add to the life of a short container.
func BenchmarkContainer(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root")
	}
	s, err := Open(b.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	l, err := s.Apply(context.Background(), "", bytes.NewReader(layertest.Tar(b, layertest.File("a", "1"))))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := s.Create(context.Background(), "c", l.Chain); err != nil {
			b.Fatal(err)
		}
		if err := s.Remove(context.Background(), "c"); err != nil {
			b.Fatal(err)
		}
	}
}

// TestF34SyncFailed: when the disk failed to take a layer, also one time in
// the background, the layer does not exist; trying the commit again is no way
// to make it.
func TestF34SyncFailed(t *testing.T) {
	s := open(t)
	ctx := context.Background()
	b := layertest.Tar(t, layertest.File("a", "1"))
	g, err := s.Stage(ctx, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	s.sync.fails++ // as a failed syncfs counts
	for range 2 {
		if _, err := s.Commit(ctx, "", []model.StagedLayer{g}); err == nil {
			t.Fatal("a layer was committed that the disk may not have")
		}
	}
	if len(s.List()) != 0 {
		t.Error("it is listed")
	}
	if _, err := s.Apply(ctx, "", bytes.NewReader(b)); err != nil {
		t.Errorf("a new one: %v", err)
	}
}
