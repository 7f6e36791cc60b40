package archive

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
)

// samples are data of all kinds for compressors.
func samples() [][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 300_000)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	few := make([]byte, 300_000)
	for i := range few {
		few[i] = "ab"[r.IntN(2)]
	}
	skew := make([]byte, 300_000) // long codes
	for i := range skew {
		skew[i] = byte(min(255, r.ExpFloat64()*12))
	}
	var text []byte
	for len(text) < 700_000 {
		text = fmt.Appendf(text, "line %d of %x\n", r.IntN(1000), r.Uint32())
		if r.IntN(10) == 0 && len(text) > 40_000 {
			at := len(text) - 1 - r.IntN(40_000)
			text = append(text, text[at:min(at+r.IntN(400), len(text))]...)
		}
	}
	return [][]byte{nil, {7}, []byte("hello"), make([]byte, 1_000_000), noise, few, skew, text, bytes.Repeat([]byte("abc"), 100_000)}
}

func gzipped(t testing.TB, b []byte, level int) []byte {
	var z bytes.Buffer
	w, err := gzip.NewWriterLevel(&z, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Name, w.Comment, w.Extra = "name", "comment", []byte("xx")
	w.Write(b)
	w.Close()
	return z.Bytes()
}

// TestGunzip: what the standard library writes comes back, at all levels,
// however it arrives; members and padding count as gzip(1) has it.
func TestGunzip(t *testing.T) {
	for i, b := range samples() {
		for _, level := range []int{gzip.HuffmanOnly, 0, 1, 6} {
			z := gzipped(t, b, level)
			r, err := newGunzip(bytes.NewReader(z))
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, b) {
				t.Errorf("sample %d at level %d: %d bytes instead of %d, %v", i, level, len(got), len(b), err)
			}
		}
		z := gzipped(t, b, 6)
		r, err := newGunzip(iotest.HalfReader(iotest.DataErrReader(bytes.NewReader(append(append(z, z...), make([]byte, 600)...)))))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, append(b[:len(b):len(b)], b...)) {
			t.Errorf("sample %d twice: %d bytes, %v", i, len(got), err)
		}
	}
}

// TestGunzipBroken: data that end early, are changed or followed by others
// are errors, at every place.
func TestGunzipBroken(t *testing.T) {
	plain := []byte(strings.Repeat("some text that repeats, and 12345 ", 9))
	for _, level := range []int{0, 1, 9, gzip.HuffmanOnly} {
		z := gzipped(t, plain, level)
		read := func(b []byte) ([]byte, error) {
			r, err := newGunzip(iotest.OneByteReader(bytes.NewReader(b)))
			if err != nil {
				return nil, err
			}
			return io.ReadAll(r)
		}
		for n := range z {
			if _, err := read(z[:n]); err != io.ErrUnexpectedEOF && err != errDeflate {
				t.Errorf("level %d cut at %d of %d: %v", level, n, len(z), err)
			}
		}
		if _, err := read(append(z[:len(z):len(z)], 'x')); err == nil {
			t.Error("data behind the end were taken")
		}
		for i := range z {
			c := bytes.Clone(z)
			c[i] ^= 1 << (i % 8)
			if got, err := read(c); err == nil && !bytes.Equal(got, plain) {
				t.Errorf("level %d, bit of byte %d changed: %d bytes and no error", level, i, len(got))
			}
		}
	}
}

// FuzzInflate: our inflater and the standard library's take the same data,
// and to the same end.
func FuzzInflate(f *testing.F) {
	for _, b := range samples() {
		b = b[:min(len(b), 3000)]
		for _, level := range []int{0, 1, 6, flate.HuffmanOnly} {
			var z bytes.Buffer
			w, _ := flate.NewWriter(&z, level)
			w.Write(b)
			w.Close()
			f.Add(z.Bytes())
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		const most = 4 << 20
		want, werr := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(b)), most))
		if werr == nil && len(want) == most {
			return
		}
		z := newInflater(bytes.NewReader(b))
		var got []byte
		var err error
		for err == nil && len(got) <= most {
			err = z.decode()
			got = append(got, z.out[z.rp:z.op]...)
			z.rp = z.op
		}
		if (err == io.EOF) != (werr == nil) {
			t.Fatalf("we: %v; the standard library: %v", err, werr)
		}
		if err == io.EOF && (!bytes.Equal(got, want) || crc32.ChecksumIEEE(got) != crc32.ChecksumIEEE(want)) {
			t.Fatalf("%d bytes differ from %d", len(got), len(want))
		}
	})
}
