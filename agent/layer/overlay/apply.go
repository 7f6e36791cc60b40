package overlay

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"machine/agent/archive"
	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/oci"
	"machine/agent/undo"
)

// staged is an unpacked layer without a place.
type staged struct {
	s    *Store
	dir  string
	diff digest.Digest
	info archive.LayerInfo
	tar  int64
	seen int // failed syncs when it began
	used atomic.Bool
}

func (g *staged) DiffID() digest.Digest { return g.diff }
func (g *staged) Size() int64           { return g.info.Size }

func (g *staged) Discard() {
	if g.used.Swap(true) {
		return
	}
	if err := g.s.discard(g.dir); err != nil {
		g.s.log.Warn("discard staged layer", "dir", g.dir, "err", err)
	}
	g.s.sweep()
}

// Stage unpacks a layer tar that has no parent yet.
func (s *Store) Stage(ctx context.Context, r io.Reader) (_ model.StagedLayer, err error) {
	dir, err := os.MkdirTemp(s.staging, "l")
	if err != nil {
		return nil, fmt.Errorf("unpack layer: %w", noSpace(err))
	}
	g := &staged{s: s, dir: dir, seen: s.sync.failures()}
	defer func() {
		if err != nil {
			g.Discard()
		}
	}()
	var open undo.Stack
	defer open.Run(&err)
	var dirs [2]*os.File
	for i, n := range []string{"diff", "displaced"} {
		if err := os.Mkdir(filepath.Join(dir, n), 0o755); err != nil {
			return nil, fmt.Errorf("unpack layer: %w", noSpace(err))
		}
		if dirs[i], err = os.Open(filepath.Join(dir, n)); err != nil {
			return nil, fmt.Errorf("unpack layer: %w", err)
		}
		open.Add(dirs[i].Close)
	}
	if err := dirs[0].Chmod(0o755); err != nil {
		return nil, fmt.Errorf("unpack layer: %w", err)
	}
	skel, err := os.OpenFile(filepath.Join(dir, "skel.zst"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("unpack layer: %w", noSpace(err))
	}
	open.Add(skel.Close)
	plain, err := archive.Decompress(r)
	if err != nil {
		return nil, fmt.Errorf("unpack layer: %w", err)
	}
	open.Add(plain.Close)
	flush := s.sync.begin()
	open.Add(flush.close)
	h := &hashed{r: plain, h: sha256.New(), flush: flush} // while files are made, on another processor
	ahead := archive.Ahead(ctx, h)
	open.Add(ahead.Close)
	if g.info, err = archive.UnpackLayer(ctx, dirs[0], dirs[1], ahead, skel); err != nil {
		return nil, fmt.Errorf("unpack layer: %w", err)
	}
	g.diff, g.tar = digest.NewDigest(digest.SHA256, h.h), h.n
	return g, nil
}

func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.Unavailable.Errorf("%w", err)
	}
	return err
}

// hashed takes what passes into a digest.
type hashed struct {
	r     io.Reader
	h     hash.Hash
	flush *flusher
	n     int64
}

func (h *hashed) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.h.Write(p[:n])
	h.n += int64(n)
	h.flush.wrote(n)
	return n, err
}

// Apply stages and commits one layer.
func (s *Store) Apply(ctx context.Context, parent digest.Digest, r io.Reader) (model.Layer, error) {
	g, err := s.Stage(ctx, r)
	if err != nil {
		return model.Layer{}, err
	}
	l, err := s.Commit(ctx, parent, []model.StagedLayer{g})
	if err != nil {
		return model.Layer{}, err
	}
	return l[0], nil
}

// Commit gives staged layers their place.
func (s *Store) Commit(ctx context.Context, parent digest.Digest, list []model.StagedLayer) (_ []model.Layer, err error) {
	defer func() {
		for _, g := range list {
			g.Discard()
		}
	}()
	lower, err := s.diffs(parent)
	if err != nil {
		return nil, fmt.Errorf("commit layer: %w", err)
	}
	if len(lower)+len(list) > oci.MaxLayers {
		return nil, fault.Invalid.Errorf("commit layer: max depth exceeded: an image cannot have more than %d layers", oci.MaxLayers)
	}
	imgs := make([]*image, len(list))
	chain := parent
	for i, l := range list {
		g, ok := l.(*staged)
		if !ok || g.used.Load() {
			return nil, fmt.Errorf("commit layer: it was not staged here, or is used up")
		}
		img := &image{Layer: model.Layer{Chain: oci.ChainID(chain, g.diff), DiffID: g.diff, Parent: chain, Size: g.info.Size, Tar: g.tar}, Moved: g.info.Moved, Depth: len(lower) + 1}
		chain = img.Chain
		img.dir = filepath.Join(s.layers, shortName(chain))
		imgs[i] = img
		if s.Has(chain) {
			lower = append([]string{filepath.Join(img.dir, "diff")}, lower...)
			continue
		}
		if err := g.adapt(lower); err != nil {
			return nil, fmt.Errorf("commit layer %s: %w", g.diff, err)
		}
		if err := g.record(img); err != nil {
			return nil, fmt.Errorf("commit layer %s: %w", g.diff, noSpace(err))
		}
		lower = append([]string{filepath.Join(g.dir, "diff")}, lower...)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.sync.all(); err != nil {
		return nil, fmt.Errorf("commit layer: write to disk: %w", noSpace(err))
	}
	for _, l := range list {
		if l.(*staged).seen != s.sync.failures() {
			return nil, fmt.Errorf("commit layer: write to disk: %w", unix.EIO)
		}
	}
	return s.place(parent, list, imgs)
}

// place renames synced layers to where they belong, lowest first.
func (s *Store) place(parent digest.Digest, list []model.StagedLayer, imgs []*image) ([]model.Layer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if parent != "" && s.images[parent] == nil {
		return nil, fault.Conflict.Errorf("commit layer: the layer %s below it was removed meanwhile", parent)
	}
	out := make([]model.Layer, len(imgs))
	for i, img := range imgs {
		out[i] = img.Layer
		if have := s.images[img.Chain]; have != nil { // another pull was quicker
			out[i] = have.Layer
			continue
		}
		g := list[i].(*staged)
		if _, err := os.Lstat(filepath.Join(g.dir, recordName)); err != nil {
			return nil, fault.Conflict.Errorf("commit layer: layer %s was removed meanwhile", img.Chain)
		}
		if err := os.Rename(g.dir, img.dir); err != nil {
			return nil, fmt.Errorf("commit layer: %w", err)
		}
		s.discard(filepath.Join(s.root, brokenDir, filepath.Base(img.dir))) // there is better now
		g.used.Store(true)
		s.images[img.Chain] = img
		if p := s.images[img.Parent]; p != nil {
			p.users++
		}
	}
	d, err := os.Open(s.layers)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return nil, fmt.Errorf("commit layer: write to disk: %w", err)
	}
	return out, nil
}

// adapt gives directories that the tar has no entry for the attributes that
// they have below.
func (g *staged) adapt(lower []string) error {
	if len(g.info.Implied) == 0 || len(lower) == 0 {
		return nil
	}
	to, err := os.Open(filepath.Join(g.dir, "diff"))
	if err != nil {
		return err
	}
	defer to.Close()
	from := make([]*os.File, 0, len(lower))
	defer func() {
		for _, f := range from {
			f.Close()
		}
	}()
	for _, d := range lower {
		f, err := os.Open(d)
		if err != nil {
			return err
		}
		from = append(from, f)
	}
	for i := len(g.info.Implied) - 1; i >= 0; i-- { // children first
		if err := archive.CopyAttributes(to, g.info.Implied[i], from); err != nil {
			return err
		}
	}
	return nil
}

func (g *staged) record(img *image) error {
	b, err := json.Marshal(img)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(g.dir, recordName), b, 0o600)
}

// Diff assembles a layer's tar.
func (s *Store) Diff(ctx context.Context, chain digest.Digest) (io.ReadCloser, error) {
	s.mu.Lock()
	img := s.images[chain]
	s.mu.Unlock()
	if img == nil {
		return nil, fault.NotFound.Errorf("layer %s does not exist", chain)
	}
	p, err := openParts(img.dir)
	if err != nil {
		return nil, fmt.Errorf("read layer %s: %w", chain, err)
	}
	return generate(ctx, func(ctx context.Context, w io.Writer) error {
		got, _, err := p.assemble(ctx, w, img.Moved)
		if err == nil && got != img.DiffID {
			err = errors.New("its files were changed on disk: remove the image, then pull or load it again")
		}
		if err != nil {
			return fmt.Errorf("read layer %s: %w", chain, err)
		}
		return nil
	}, p.close), nil
}

// parts are what a layer's tar is assembled from.
type parts [3]*os.File

func openParts(dir string) (p parts, err error) {
	for i, n := range []string{"diff", "displaced", "skel.zst"} {
		if p[i], err = os.Open(filepath.Join(dir, n)); err != nil {
			p.close()
			return p, err
		}
	}
	return p, nil
}

// assemble writes the tar once and gives its digest and length.
func (p parts) assemble(ctx context.Context, w io.Writer, moved map[int]string) (digest.Digest, int64, error) {
	h := sha256.New()
	n := &counted{w: io.MultiWriter(w, h)}
	err := archive.Assemble(ctx, n, p[0], p[1], p[2], moved)
	return digest.NewDigest(digest.SHA256, h), n.n, err
}

func (p parts) close() {
	for _, f := range p {
		if f != nil {
			f.Close()
		}
	}
}

type counted struct {
	w io.Writer
	n int64
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// generate runs f in a goroutine that writes what the result reads. Closing
// the result ends f and waits for it; then done runs.
func generate(ctx context.Context, f func(context.Context, io.Writer) error, done func()) io.ReadCloser {
	ctx, cancel := context.WithCancel(ctx)
	pr, pw := io.Pipe()
	g := &generator{PipeReader: pr, cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(g.ended)
		defer done()
		w := &chunked{w: pw}
		err := f(ctx, w)
		if err == nil {
			err = w.flush()
		}
		pw.CloseWithError(err)
	}()
	return g
}

// chunked joins small writes: each write of a pipe is a switch of goroutines.
type chunked struct {
	w   io.Writer
	buf []byte
}

func (c *chunked) Write(p []byte) (int, error) {
	if len(c.buf)+len(p) > 256<<10 {
		if err := c.flush(); err != nil {
			return 0, err
		}
	}
	if len(p) >= 128<<10 {
		if err := c.flush(); err != nil {
			return 0, err
		}
		return c.w.Write(p)
	}
	c.buf = append(c.buf, p...)
	return len(p), nil
}

func (c *chunked) flush() error {
	if len(c.buf) == 0 {
		return nil
	}
	_, err := c.w.Write(c.buf)
	c.buf = c.buf[:0]
	return err
}

type generator struct {
	*io.PipeReader
	cancel context.CancelFunc
	ended  chan struct{}
	once   sync.Once
}

func (g *generator) Close() error {
	g.once.Do(func() {
		g.cancel()
		g.PipeReader.Close()
		<-g.ended
	})
	return nil
}

// A syncer writes the file system to disk. While layers arrive it lets the
// disk work in the background, so that the last wait is short.
//
// The kernel tells each descriptor of a failed write once. So there is one
// descriptor, and failures are counted: a layer is on disk only if there was
// none between its first byte and the end of the sync behind its last.
type syncer struct {
	f     *os.File
	mu    sync.Mutex
	fails int
}

const flushEvery = 192 << 20

// all waits for the disk.
func (y *syncer) all() error {
	for {
		err := unix.Syncfs(int(y.f.Fd()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			y.mu.Lock()
			y.fails++
			y.mu.Unlock()
		}
		return err
	}
}

func (y *syncer) failures() int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.fails
}

func (y *syncer) begin() *flusher { return &flusher{y: y} }

// A flusher starts a sync now and then, one at a time.
type flusher struct {
	y       *syncer
	n       int
	running atomic.Bool
	wg      sync.WaitGroup
}

func (f *flusher) wrote(n int) {
	if f.n += n; f.n < flushEvery {
		return
	}
	f.n = 0
	if f.running.Swap(true) {
		return
	}
	f.wg.Add(1)
	go func() {
		defer f.wg.Done()
		defer f.running.Store(false)
		f.y.all() // Commit sees that it failed
	}()
}

func (f *flusher) close() error {
	f.wg.Wait()
	return nil
}
