package transfer

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// random is data that no compression and no chance makes alike.
func random(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	_, _ = r.Read(b)
	return b
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// TestDeltaInserted: what was inserted, taken away or moved costs about its own
// length, wherever it is, and not the rest of the file.
func TestDeltaInserted(t *testing.T) {
	old := random(3_000_001, 1)
	block := int64(rollBlock(int64(len(old))))
	zeros := make([]byte, 1<<20)
	for name, c := range map[string]struct {
		old, now []byte
		most     int64 // bytes that may travel
	}{
		"before":      {old, join([]byte("new first line\n"), old), 15},
		"in between":  {old, join(old[:1_234_567], []byte("word"), old[1_234_567:]), block + 4},
		"taken out":   {old, join(old[:700_000], old[700_100:]), block},
		"first bytes": {old, old[3:], block},
		"halves":      {old, join(old[1_500_000:], old[:1_500_000]), 3 * block},
		"doubled":     {old, join(old, old), block},
		"every 300k": {old, join(old[:300_000], []byte{1}, old[300_000:600_000], []byte{2}, old[600_000:900_000], []byte{3}, old[900_000:]),
			3 * (block + 1)},
		"other":        {old, random(1_000_000, 2), 1_000_000},
		"cut":          {old, old[:1_000_000], block},
		"cut in block": {old, old[:100], 100},
		"the same":     {old, old, 0},
		"tiny":         {[]byte("abc"), []byte("abc, and d"), 10},
		"tiny same":    {[]byte("abc"), []byte("abc"), 0},
		"was empty":    {nil, old[:5000], 5000},
		"is empty":     {old, nil, 0},
		"zeros":        {zeros, join([]byte("x"), zeros, []byte("y")), 1024 + 2},
		"few letters":  {bytes.Repeat([]byte("ab"), 1<<19), join([]byte("b"), bytes.Repeat([]byte("ab"), 1<<19)), 1024 + 1},
		"one more":     {old[:int(block)*7], join([]byte("!"), old[:int(block)*7]), 1},
	} {
		t.Run(name, func(t *testing.T) {
			src, dst := t.TempDir(), t.TempDir()
			write(t, src+"/f", string(c.now), 0o600, time.Unix(2e9, 0))
			write(t, dst+"/f", string(c.old), 0o600, time.Unix(1e9, 0))
			sent, got, err := copyBetween(t, src+"/f", dst, true)
			if err != nil {
				t.Fatal(err)
			}
			if back, _ := os.ReadFile(dst + "/f"); !bytes.Equal(back, c.now) {
				t.Fatal("the file differs")
			}
			if sent.Sent > c.most || sent.Sent+sent.Kept != int64(len(c.now)) || got.Sent != sent.Sent || got.Kept != sent.Kept {
				t.Errorf("sent %+v, got %+v; at most %d bytes may travel", sent, got, c.most)
			}
		})
	}
}

// TestDeltaOnTheWire counts all that travels, both ways.
func TestDeltaOnTheWire(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	old := random(64<<20, 3)
	write(t, dst+"/f", string(old), 0o600, time.Unix(1e9, 0))
	write(t, src+"/f", "inserted"+string(old), 0o600, time.Unix(2e9, 0))
	r1, w1 := io.Pipe()
	r2, w2 := io.Pipe()
	there, back := &counted{w: w1}, &counted{w: w2}
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := Send(r2, there, Order{Path: src + "/f", Delta: true}, nil)
		if err != nil {
			t.Error(err)
		}
	})
	start := time.Now()
	if _, err := Receive(r1, back, Order{Path: dst, Delta: true}, nil); err != nil {
		t.Error(err)
	}
	wg.Wait()
	t.Logf("64 MiB with 8 bytes before them: %d bytes there, %d back, %v", there.n, back.n, time.Since(start).Round(time.Millisecond))
	if there.n > 1000 || back.n > 64<<20/rollBlockOf(old)*sumSize+1000 {
		t.Errorf("%d bytes there, %d back", there.n, back.n)
	}
}

func rollBlockOf(b []byte) int { return rollBlock(int64(len(b))) }

type counted struct {
	w io.WriteCloser
	n int
}

func (c *counted) Write(b []byte) (int, error) { c.n += len(b); return c.w.Write(b) }
func (c *counted) Close() error                { return c.w.Close() }

// TestDeltaRandom: any edits, holes among them, give the new file.
func TestDeltaRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 2))
	for range 60 {
		old := random(1+r.IntN(300_000), r.Uint64())
		now := bytes.Clone(old)
		for range r.IntN(6) {
			at, n := r.IntN(len(now)+1), r.IntN(5000)
			switch r.IntN(4) {
			case 0:
				now = join(now[:at], random(n, r.Uint64()), now[at:])
			case 1:
				now = join(now[:at], now[min(len(now), at+n):])
			case 2:
				now = join(now[:at], make([]byte, 50*n), now[at:])
			case 3:
				now = join(now[at:], now[:at])
			}
		}
		src, dst := t.TempDir(), t.TempDir()
		write(t, src+"/f", "", 0o600, time.Unix(2e9, 0))
		writeSparse(t, src+"/f", now)
		write(t, dst+"/f", string(old), 0o600, time.Unix(1e9, 0))
		if _, _, err := copyBetween(t, src+"/f", dst, true); err != nil {
			t.Fatal(err)
		}
		if back, _ := os.ReadFile(dst + "/f"); !bytes.Equal(back, now) {
			t.Fatalf("the file differs: %d bytes, were %d", len(now), len(old))
		}
	}
}

// writeSparse leaves pages of zeros out.
func writeSparse(t *testing.T, name string, data []byte) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for off := 0; off < len(data); off += 4096 {
		if page := data[off:min(len(data), off+4096)]; len(bytes.Trim(page, "\x00")) > 0 {
			_, err = f.WriteAt(page, int64(off))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(int64(len(data))); err != nil {
		t.Fatal(err)
	}
}

// TestDeltaOldPeer: a sender of before that looks for blocks at their own
// places only is asked as it understands.
func TestDeltaOldPeer(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	old := random(1<<20, 5)
	now := bytes.Clone(old)
	now[500_000]++
	write(t, src+"/f", string(now), 0o600, time.Unix(2e9, 0))
	write(t, dst+"/f", string(old), 0o600, time.Unix(1e9, 0))
	r1, w1 := io.Pipe()
	r2, w2 := io.Pipe()
	r3, w3 := io.Pipe()
	var wg sync.WaitGroup
	var sent Stats
	var err error
	wg.Go(func() {
		sent, err = Send(r2, w1, Order{Path: src + "/f", Delta: true}, nil)
		_ = w1.Close()
	})
	wg.Go(func() { // says nothing of what the sender can do
		in, out := newWire(r1, nil), newWire(nil, w3)
		for {
			kind, payload, err := in.recv()
			if err != nil {
				_ = w3.Close()
				return
			}
			if kind == kindDone {
				payload = nil
			}
			_ = errors.Join(out.send(kind, payload), out.flush())
		}
	})
	if _, err := Receive(r3, w2, Order{Path: dst, Delta: true}, nil); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if back, _ := os.ReadFile(filepath.Join(dst, "f")); err != nil || !bytes.Equal(back, now) || sent.Sent != blockSize {
		t.Errorf("%v, sent %+v", err, sent)
	}
}

// TestSignatures: sums that are none are refused.
func TestSignatures(t *testing.T) {
	for _, bad := range []string{"", "\x01", "\x80\x08", "\x80\x08\x00", "\x80\x08\x01", "\x80\x08\x01" + string(make([]byte, 21)),
		"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80", "\x01\x01" + string(make([]byte, 20)), "\x80\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f"} {
		if g, err := readSignature([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, g)
		}
	}
	if g, err := readSignature([]byte("\x80\x08\x01" + string(make([]byte, 20)))); err != nil || g.last != 1 {
		t.Errorf("a good one: %+v %v", g, err)
	}
}

// FuzzSums: whatever sums a receiver claims to have, the file is sent whole.
func FuzzSums(f *testing.F) {
	old := random(5000, 6)
	dir := f.TempDir()
	name := filepath.Join(dir, "old")
	if err := os.WriteFile(name, old, 0o600); err != nil {
		f.Fatal(err)
	}
	file, err := os.Open(name)
	if err != nil {
		f.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	good, err := (&receiver{}).sums(nil, file, 5000)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, []byte("x"))
	f.Fuzz(func(t *testing.T, sums, more []byte) {
		g, err := readSignature(sums)
		if err != nil {
			return
		}
		now := filepath.Join(t.TempDir(), "now")
		if err := os.WriteFile(now, join(more, old, more), 0o600); err != nil {
			t.Fatal(err)
		}
		in, err := os.Open(now)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = in.Close() }()
		var out bytes.Buffer
		s := &sender{wire: newWire(&out, &out), tell: func(string, int64) {}}
		if err := errors.Join(s.roll(in, g, sparse(in)), s.flush()); err != nil {
			t.Fatal(err)
		}
		if got := s.stats.Sent + s.stats.Kept; got != int64(len(old)+2*len(more)) {
			t.Errorf("%d bytes of %d", got, len(old)+2*len(more))
		}
	})
}
