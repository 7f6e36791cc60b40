package image

import (
	"bytes"
	"fmt"
	"io"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"machine/agent/layer/layertest"
	"machine/agent/layer/overlay"
	"machine/agent/model"
)

// TestF31ImagePowerCut: images and names that were acknowledged are there
// after a power cut right behind it; what is there is whole, also what had
// been removed and came back; nothing keeps the store from opening.
func TestF31ImagePowerCut(t *testing.T) {
	d := layertest.NewDisk(t, 256)
	want := map[string]digest.Digest{}
	for round := range 10 {
		s := openAt(t, filepath.Join(d.Dir, "data"), nil)
		checkAll(t, round, s, want)
		ref := fmt.Sprint("img:", round)
		img := imported(t, s, ref, layertest.Dir("d"), layertest.File("d/f", noise(50_000, uint64(round))))
		want[ref] = img.ID
		switch round % 4 {
		case 1: // a name that moves
			if err := s.Tag(bg, ref, "img:0"); err != nil {
				t.Fatal(err)
			}
			want["img:0"] = img.ID
		case 2: // a child
			kid, err := s.Commit(bg, bytes.NewReader(lay(t, "kid", fmt.Sprint(round))), CommitOptions{Parent: img.ID, Ref: "kid"})
			if err != nil {
				t.Fatal(err)
			}
			want["kid:latest"] = kid.ID
		case 3:
			if _, err := s.Remove(bg, ref, RemoveOptions{}); err != nil {
				t.Fatal(err)
			}
			delete(want, ref)
		}
		s.o.Layers.(*overlay.Store).Close()
		d.Cut()
	}
}

func checkAll(t *testing.T, round int, s *Store, want map[string]digest.Digest) {
	t.Helper()
	list, err := s.List(bg)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]*model.Image{}
	for _, i := range list {
		for _, n := range i.RepoTags {
			names[n] = i.Image
		}
	}
	for n, id := range want {
		if names[n] == nil || names[n].ID != id {
			t.Fatalf("round %d: %s is lost or moved", round, n)
		}
	}
	for n := range names {
		if err := s.Save(bg, []string{n}, io.Discard); err != nil { // reads and checks every byte
			t.Fatalf("round %d: %s: %v", round, n, err)
		}
	}
}
