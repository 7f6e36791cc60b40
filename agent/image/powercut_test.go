package image

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"machine/agent/blob"
	"machine/agent/layer/layertest"
	"machine/agent/layer/overlay"
	"machine/agent/model"
	"machine/agent/registry/registrytest"
)

// TestF31PowerCutAnywhere cuts the power at random moments of imports, loads,
// pulls, tags and removals. Each time all layers that are there must be whole,
// and all names that were acknowledged. POWERCUT_ROUNDS is how often ("make
// powercut" has 250), POWERCUT_SEED which ones.
func TestF31PowerCutAnywhere(t *testing.T) {
	rounds, _ := strconv.Atoi(os.Getenv("POWERCUT_ROUNDS"))
	if rounds == 0 {
		rounds = 6
	}
	seed, _ := strconv.ParseUint(os.Getenv("POWERCUT_SEED"), 10, 64)
	d := layertest.NewDisk(t, 768)
	c := &cutter{t: t, d: d, r: rand.New(rand.NewPCG(seed, 1)), want: map[string]digest.Digest{}, maybe: map[string][]digest.Digest{}, reg: registrytest.New(t, false), counts: map[string]int{}}
	c.prepare()
	for c.round = range rounds {
		c.one()
		if t.Failed() {
			break
		}
	}
	var said []string
	for _, k := range slices.Sorted(maps.Keys(c.counts)) {
		said = append(said, fmt.Sprintf("%s %d", k, c.counts[k]))
	}
	t.Logf("%d power cuts (seed %d): %s", c.round+1, seed, strings.Join(said, ", "))
}

// A cutter keeps the books on what must be there.
type cutter struct {
	t     *testing.T
	d     *layertest.Disk
	r     *rand.Rand
	reg   *registrytest.Registry
	round int
	n     int

	archives [][]byte // what docker load gets, one image each
	mu       sync.Mutex
	cut      bool
	want     map[string]digest.Digest   // acknowledged
	maybe    map[string][]digest.Digest // under way at the cut; "" is absent
	doing    string
	counts   map[string]int
}

// prepare makes what is loaded and pulled.
func (c *cutter) prepare() {
	base := layertest.Tar(c.t, layertest.Dir("base"), layertest.File("base/f", noise(300_000, 1)))
	for i := range 6 {
		var layers [][]byte
		for l := range 1 + i%3 {
			e := []layertest.Entry{layertest.Dir(fmt.Sprint("d", l))}
			for f := range 30 {
				e = append(e, layertest.File(fmt.Sprintf("d%d/f%d", l, f), noise(c.r.IntN(40_000), uint64(i*100+l*10+f))))
			}
			layers = append(layers, layertest.Tar(c.t, e...))
		}
		c.reg.Image(c.t, "p", fmt.Sprint(i), append([][]byte{base}, layers...)...)
	}
	puller := openAt(c.t, c.t.TempDir(), client(c.t))
	for i := range 6 {
		ref := fmt.Sprintf("%s/p:%d", c.reg.Host, i)
		pulled(c.t, puller, ref)
		if err := puller.Tag(bg, ref, fmt.Sprint("loaded:", i)); err != nil {
			c.t.Fatal(err)
		}
		var b bytes.Buffer
		if err := puller.Save(bg, []string{fmt.Sprint("loaded:", i)}, &b); err != nil {
			c.t.Fatal(err)
		}
		c.archives = append(c.archives, b.Bytes())
	}
}

// asides finds what a store sets aside, which is what it found torn.
type asides struct {
	slog.Handler
	c *cutter
}

func (a asides) Enabled(context.Context, slog.Level) bool { return true }
func (a asides) WithAttrs([]slog.Attr) slog.Handler       { return a }
func (a asides) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "aside") {
		text := r.Message
		r.Attrs(func(at slog.Attr) bool { text += " " + at.String(); return true })
		a.c.t.Errorf("round %d, behind a cut in %s: %s", a.c.round, a.c.doing, text)
	}
	return nil
}

func (c *cutter) open() (*Store, *overlay.Store) {
	log := slog.New(asides{slog.DiscardHandler, c})
	dir := filepath.Join(c.d.Dir, "data")
	l, err := overlay.Open(filepath.Join(dir, "layers"), log)
	if err != nil {
		c.t.Fatalf("round %d, behind a cut in %s: %v", c.round, c.doing, err)
	}
	b, err := blob.Open(filepath.Join(dir, "blobs"))
	if err != nil {
		c.t.Fatal(err)
	}
	s, err := Open(Options{Root: filepath.Join(dir, "images"), Layers: l, Blobs: b, Source: client(c.t), Log: log})
	if err != nil {
		c.t.Fatalf("round %d, behind a cut in %s: %v", c.round, c.doing, err)
	}
	return s, l
}

// one round works until the power goes, and looks what is left.
func (c *cutter) one() {
	s, l := c.open()
	c.cut, c.doing = false, "nothing"
	ctx, cancel := context.WithCancel(bg)
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil && c.step(s) {
		}
	})
	c.mu.Lock()
	after := c.r.ExpFloat64()
	c.mu.Unlock()
	time.Sleep(time.Duration(after * float64(60*time.Millisecond)))
	c.mu.Lock()
	c.cut = true
	c.counts["cut in "+c.doing]++
	c.mu.Unlock()
	c.d.Off()
	cancel()
	wg.Wait()
	l.Close()
	c.d.On()
	s, l = c.open()
	c.check(s, l)
	l.Close()
	c.maybe = map[string][]digest.Digest{}
}

// step does one thing; false when the power is gone.
func (c *cutter) step(s *Store) bool {
	c.mu.Lock()
	c.n++
	n, kind := c.n, c.r.IntN(10)
	c.mu.Unlock()
	switch {
	case len(c.want) > 9 || kind < 2 && len(c.want) > 0:
		name := slices.Sorted(maps.Keys(c.want))[n%len(c.want)]
		return c.do("removal", name, "", func() (digest.Digest, error) {
			_, err := s.Remove(bg, name, RemoveOptions{Force: true})
			return "", err
		})
	case kind < 4 && len(c.want) > 0:
		from := slices.Sorted(maps.Keys(c.want))[n%len(c.want)]
		to := fmt.Sprint("moved:", n%3)
		return c.do("tag", to, c.want[from], func() (digest.Digest, error) { return c.want[from], s.Tag(bg, from, to) })
	case kind < 6:
		name := fmt.Sprint("imported:", n)
		b := layertest.Tar(c.t, layertest.Dir("d"), layertest.File("d/f", noise(1000+n*7919%400_000, uint64(n))), layertest.File("d/g", fmt.Sprint(n)))
		return c.do("import", name, "", func() (digest.Digest, error) {
			i, err := s.Import(bg, bytes.NewReader(b), ImportOptions{Ref: name})
			if err != nil {
				return "", err
			}
			return i.ID, nil
		})
	case kind < 8:
		return c.do("load", fmt.Sprint("loaded:", n%6), "", func() (digest.Digest, error) {
			out, err := s.Load(bg, bytes.NewReader(c.archives[n%6]), model.Nothing)
			if err != nil || len(out) != 1 {
				return "", fmt.Errorf("%d images: %w", len(out), err)
			}
			return out[0].ID, nil
		})
	}
	name := fmt.Sprintf("%s/p:%d", c.reg.Host, n%6)
	return c.do("pull", name, "", func() (digest.Digest, error) {
		i, err := s.Pull(bg, name, "", model.RegistryAuth{}, model.Nothing)
		if err != nil {
			return "", err
		}
		return i.ID, nil
	})
}

// do books an act that makes name mean something else, which is "" for not
// known before, or for nothing.
func (c *cutter) do(kind, name string, to digest.Digest, f func() (digest.Digest, error)) bool {
	c.mu.Lock()
	if c.cut {
		c.mu.Unlock()
		return false
	}
	before := c.want[name]
	c.doing = kind
	c.mu.Unlock()
	id, err := f()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil && id != "":
		c.want[name] = id
	case err == nil: // a removal
		delete(c.want, name)
		c.maybe[name] = []digest.Digest{before, ""}
	case !c.cut:
		c.t.Errorf("round %d: %s of %s: %v", c.round, kind, name, err)
		return false
	default:
		delete(c.want, name)
		c.maybe[name] = []digest.Digest{before, to, ""}
		if before != "" && kind != "removal" {
			c.maybe[name] = []digest.Digest{before, to}
		}
	}
	if err == nil {
		c.counts["acknowledged"]++
	}
	return !c.cut
}

// check reads every byte that is there.
func (c *cutter) check(s *Store, l *overlay.Store) {
	for _, x := range l.List() {
		r, err := l.Diff(bg, x.Chain)
		if err == nil {
			_, err = io.Copy(io.Discard, r) // checks the digest
			r.Close()
		}
		if err != nil {
			c.t.Errorf("round %d, behind a cut in %s: layer %s: %v", c.round, c.doing, x.Chain, err)
		}
		c.counts["layers read"]++
	}
	list, err := s.List(bg)
	if err != nil {
		c.t.Fatal(err)
	}
	have := map[string]digest.Digest{}
	for _, i := range list {
		for _, n := range i.RepoTags {
			have[n] = i.ID
		}
		if err := s.Save(bg, []string{i.ID.String()}, io.Discard); err != nil {
			c.t.Errorf("round %d, behind a cut in %s: image %v: %v", c.round, c.doing, i.RepoTags, err)
		}
	}
	for n, id := range c.want {
		if have[n] != id {
			c.t.Errorf("round %d, behind a cut in %s: %s is %q instead of %q", c.round, c.doing, n, have[n], id)
		}
		c.counts["acknowledged names found"]++
	}
	for n, ids := range c.maybe {
		id := have[n]
		if _, ok := c.want[n]; ok {
			continue
		}
		if id != "" && ids[0] != "" && !slices.Contains(ids, id) && len(ids) == 3 && ids[1] != "" {
			c.t.Errorf("round %d, behind a cut in %s: %s is %q, which it never was to be", c.round, c.doing, n, id)
		}
		if id == "" && !slices.Contains(ids, "") {
			c.t.Errorf("round %d, behind a cut in %s: %s is lost", c.round, c.doing, n)
		}
		if id != "" { // from now on it is there
			c.want[n] = id
			c.counts["under way and there"]++
		} else {
			c.counts["under way and absent"]++
		}
	}
}
