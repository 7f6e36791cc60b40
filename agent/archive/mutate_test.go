package archive

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"machine/agent/fault"
)

// mutate changes some bytes of an archive and mends the headers' checksums,
// so that the change is not all that is seen.
func mutate(r *rand.Rand, b []byte) []byte {
	for range 1 + r.IntN(6) {
		i := r.IntN(len(b))
		if r.IntN(2) == 0 {
			i = r.IntN(min(len(b), 512))
		}
		b[i] = byte(r.Uint32())
	}
	for o := 0; o+512 <= len(b); o += 512 {
		h := b[o : o+512]
		if h[0] == 0 {
			continue
		}
		copy(h[148:156], "        ")
		sum := 0
		for _, c := range h {
			sum += int(c)
		}
		copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	}
	return b
}

// TestMutatedLayers: what is made of hostile archives by chance is refused,
// or unpacked and given back to the byte.
func TestMutatedLayers(t *testing.T) {
	root(t)
	var seeds [][]byte
	for _, l := range hostile() {
		if len(l) > 0 && len(l[0].Name) < 500 {
			seeds = append(seeds, tarOf(t, l...))
		}
	}
	r := rand.New(rand.NewPCG(rand.Uint64(), 1))
	top := t.TempDir()
	for n := range 600 {
		b := bytes.Clone(seeds[r.IntN(len(seeds))])
		if r.IntN(2) == 0 {
			b = append(b[:len(b)-1024], seeds[r.IntN(len(seeds))]...)
		}
		b = mutate(r, b)
		dir := filepath.Join(top, fmt.Sprint(n))
		if err := roundTrip(dir, b); err != nil {
			name := filepath.Join(os.TempDir(), "mutated.tar")
			os.WriteFile(name, b, 0o600)
			t.Fatalf("%v; the archive is in %s", err, name)
		}
		os.RemoveAll(dir)
	}
}

// roundTrip unpacks a layer and puts it together again.
func roundTrip(dir string, b []byte) error {
	var open [2]*os.File
	for i, n := range []string{"in", "displaced"} {
		os.MkdirAll(filepath.Join(dir, n), 0o755)
		f, err := os.Open(filepath.Join(dir, n))
		if err != nil {
			return err
		}
		defer f.Close()
		open[i] = f
	}
	var skel, again bytes.Buffer
	info, err := UnpackLayer(context.Background(), open[0], open[1], bytes.NewReader(b), &skel)
	if err != nil {
		if k := fault.KindOf(err); k == fault.Internal {
			return fmt.Errorf("an error of the wrong kind: %w", err)
		}
		return nil
	}
	if err := Assemble(context.Background(), io.Writer(&again), open[0], open[1], &skel, info.Moved); err != nil {
		return err
	}
	if !bytes.Equal(again.Bytes(), b) {
		return fmt.Errorf("came back different")
	}
	return nil
}
