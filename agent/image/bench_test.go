package image

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"machine/agent/layer/layertest"
	"machine/agent/model"
	"machine/agent/registry/registrytest"
)

// bigLayer is some 60 MB in 2,700 files that compress to a third.
func bigLayer(b *testing.B, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 7))
	text := make([]byte, 1<<20)
	for i := range text {
		text[i] = "etaoin shrdlu\n0123456789"[r.IntN(24)&r.IntN(24)]
	}
	var e []layertest.Entry
	for i := range 2700 {
		if i%100 == 0 {
			e = append(e, layertest.Dir(fmt.Sprintf("d%d-%d", seed, i/100)))
		}
		n := int(r.ExpFloat64() * 22_000)
		at := r.IntN(len(text) / 2)
		e = append(e, layertest.File(fmt.Sprintf("d%d-%d/f%d", seed, i/100, i), string(text[at:min(at+n, len(text))])))
	}
	return layertest.Tar(b, e...)
}

// BenchmarkTransfer moves an image of four layers in all ways. The figures
// are plain bytes a second.
func BenchmarkTransfer(b *testing.B) {
	r := registrytest.New(b, false)
	var layers [][]byte
	total := 0
	for i := range 4 {
		l := bigLayer(b, uint64(i))
		layers = append(layers, l)
		total += len(l)
	}
	r.Image(b, "big", "1", layers...)
	for b.Loop() {
		step := func(what string, f func() error) {
			at := time.Now()
			if err := f(); err != nil {
				b.Fatalf("%s: %v", what, err)
			}
			b.ReportMetric(float64(total)/1e6/time.Since(at).Seconds(), what+"-MB/s")
		}
		s := openAt(b, b.TempDir(), client(b))
		step("pull", func() error {
			_, err := s.Pull(bg, r.Host+"/big:1", "", model.RegistryAuth{}, model.Nothing)
			return err
		})
		var saved bytes.Buffer
		saved.Grow(total + 1<<20)
		step("save", func() error { return s.Save(bg, []string{r.Host + "/big:1"}, io.Writer(&saved)) })
		other := openAt(b, b.TempDir(), client(b))
		step("load", func() error { _, err := other.Load(bg, &saved, model.Nothing); return err })
		if err := other.Tag(bg, r.Host+"/big:1", r.Host+"/again:1"); err != nil {
			b.Fatal(err)
		}
		step("push", func() error { return other.Push(bg, r.Host+"/again:1", model.RegistryAuth{}, model.Nothing) })
	}
}
