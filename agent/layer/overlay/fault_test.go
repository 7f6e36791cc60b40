package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"machine/agent/fault"
	"machine/agent/layer/layertest"
)

func openOn(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestF31PowerCut: a layer that was acknowledged is there, to the byte, after
// a power cut right behind it; one that was under way is not; the store opens.
func TestF31PowerCut(t *testing.T) {
	d := layertest.NewDisk(t, 192)
	rnd := rand.New(rand.NewPCG(1, 2))
	want := map[digest.Digest][]byte{}
	var parent digest.Digest
	for round := range 12 {
		s := openOn(t, filepath.Join(d.Dir, "data"))
		for c, b := range want {
			r, err := s.Diff(context.Background(), c)
			if err != nil {
				t.Fatalf("round %d: an acknowledged layer is lost: %v", round, err)
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, b) {
				t.Fatalf("round %d: a layer came back different: %v", round, err)
			}
			r.Close()
		}
		if n := len(s.List()); n != len(want) {
			t.Fatalf("round %d: %d layers, want %d", round, n, len(want))
		}
		var e []layertest.Entry
		for i := range 40 {
			e = append(e, layertest.File(fmt.Sprintf("r%d/f%d", round, i), string(make([]byte, rnd.IntN(30000)))+fmt.Sprint(rnd.Int())))
		}
		b := layertest.Tar(t, e...)
		if round%3 == 2 { // cut before it is acknowledged
			if _, err := s.Stage(context.Background(), bytes.NewReader(b)); err != nil {
				t.Fatal(err)
			}
		} else {
			l, err := s.Apply(context.Background(), parent, bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			parent = l.Chain
			want[parent] = b
		}
		s.Close()
		d.Cut()
	}
}

// TestF33DiskFull: a full disk is an error of its own kind, leaves nothing
// behind, and does not keep anything from being removed.
func TestF33DiskFull(t *testing.T) {
	d := layertest.NewDisk(t, 384)
	s := openOn(t, filepath.Join(d.Dir, "data"))
	defer s.Close()
	ctx := context.Background()
	l, err := s.Apply(ctx, "", bytes.NewReader(layertest.Tar(t, layertest.File("a", "1"))))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Create(ctx, "c", l.Chain); err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 500<<20)
	for i := 0; i < len(big); i += 512 {
		big[i] = 1
	}
	_, err = s.Apply(ctx, l.Chain, bytes.NewReader(layertest.Tar(t, layertest.File("big", string(big)))))
	if !fault.Is(err, fault.Unavailable) || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v", err)
	}
	s.bg.Wait()
	var st unix.Statfs_t
	unix.Statfs(d.Dir, &st)
	if free := st.Bavail * uint64(st.Bsize); free < 200<<20 {
		t.Errorf("only %d MiB are free again", free>>20)
	}
	fill, err := os.Create(filepath.Join(d.Dir, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := fill.Write(big[:4096]); err != nil {
			break
		}
	}
	fill.Close()
	if err := s.Remove(ctx, "c"); err != nil {
		t.Errorf("remove on a full disk: %v", err)
	}
	if err := s.Release(ctx, l.Chain); err != nil {
		t.Errorf("release on a full disk: %v", err)
	}
	if _, err := s.Stage(ctx, bytes.NewReader(layertest.Tar(t, layertest.File("a", "1")))); !fault.Is(err, fault.Unavailable) {
		t.Errorf("stage on a full disk: %v", err)
	}
}
