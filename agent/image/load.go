package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"machine/agent/archive"
	"machine/agent/failpoint"
	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/oci"
)

// Limits on what an archive may make us keep in memory.
const (
	maxMemory = 64 << 20 // bytes of all small files
	maxFiles  = 100_000  // names
)

// Loaded is an image that Load brought.
type Loaded struct {
	ID   digest.Digest
	Tags []string // familiar names
}

// Load reads an archive of images: what `docker save`, podman and skopeo
// write (docker-archive), or a tar of an OCI layout, plain or compressed. It
// is read once, from its beginning to its end, and never kept on disk: layers
// are unpacked while they pass, before it is known what they are good for.
// Images before a broken one stay. Invalid when the archive is at fault.
func (s *Store) Load(ctx context.Context, r io.Reader, progress model.Progress) ([]Loaded, error) {
	return s.LoadFor(ctx, r, nil, progress)
}

// LoadFor is Load of the images for one platform; nil is the host's where an
// index offers several, and else all. NotFound when there is none for it.
func (s *Store) LoadFor(ctx context.Context, r io.Reader, platform *v1.Platform, progress model.Progress) ([]Loaded, error) {
	plain, err := archive.Decompress(r)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	l := &loader{s: s, ctx: ctx, platform: platform, progress: progress, small: map[string][]byte{}, layers: map[string]*passed{}, alias: map[string]string{}}
	defer l.discard()
	if err := l.read(plain); err != nil {
		return nil, err
	}
	failpoint.Hit("load.read")
	out, err := l.images()
	if err != nil {
		return out, err
	}
	return out, nil
}

// passed is a file of the archive that was taken for a layer.
type passed struct {
	staged model.StagedLayer // nil when err is set, or when it is here already
	blob   digest.Digest     // of the file
	diff   digest.Digest
	err    error
}

type loader struct {
	s        *Store
	ctx      context.Context
	progress model.Progress
	small    map[string][]byte
	memory   int
	files    int
	layers   map[string]*passed
	alias    map[string]string // symlinks and hard links of old archives
	platform *v1.Platform
}

func (l *loader) discard() {
	for _, p := range l.layers {
		if p.staged != nil {
			p.staged.Discard()
		}
	}
}

func (l *loader) read(r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			if fault.KindOf(err) == fault.Internal && l.ctx.Err() == nil {
				err = fault.Invalid.Errorf("read archive: %w", err)
			}
			return err
		}
		if l.files++; l.files > maxFiles {
			return fault.Invalid.Errorf("archive has more than %d files", maxFiles)
		}
		name := path.Clean("/" + h.Name)[1:]
		switch h.Typeflag {
		case tar.TypeSymlink:
			l.alias[name] = path.Clean("/" + path.Join(path.Dir(name), h.Linkname))[1:]
		case tar.TypeLink:
			l.alias[name] = path.Clean("/" + h.Linkname)[1:]
		case tar.TypeReg:
			if err := l.file(name, h.Size, tr); err != nil {
				return err
			}
		}
	}
}

// file takes one file in: small JSON to memory, what looks like a layer to
// layer storage.
func (l *loader) file(name string, size int64, r io.Reader) error {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(int(min(size, 512)))
	if err != nil {
		return fault.Invalid.Errorf("read %q: %w", name, err)
	}
	if looksLikeLayer(head) || path.Base(name) == "layer.tar" {
		return l.layer(name, size, br, archive.Compressed(head))
	}
	if size > oci.MaxManifest {
		return nil // no manifest, no layer: nothing that an image is made of
	}
	if l.memory += int(size); l.memory > maxMemory {
		return fault.Invalid.Errorf("archive holds more than %d MiB of metadata", maxMemory>>20)
	}
	b, err := io.ReadAll(br)
	if err != nil {
		return fault.Invalid.Errorf("read %q: %w", name, err)
	}
	l.small[name] = b
	return nil
}

func looksLikeLayer(b []byte) bool {
	return archive.Compressed(b) || len(b) >= 512 && (isTar(b[:512]) || bytes.Count(b[:512], []byte{0}) == 512)
}

// isTar tells by its checksum whether b is a tar header of any kind.
func isTar(b []byte) bool {
	sum := 8 * int(' ')
	for i, c := range b {
		if i < 148 || i >= 156 {
			sum += int(c)
		}
	}
	want, err := strconv.ParseInt(strings.Trim(string(b[148:156]), " \x00"), 8, 32)
	return err == nil && int(want) == sum
}

// known tells whether name is that of a layer which is here already, by its
// plain digest.
func (l *loader) known(name string) (digest.Digest, bool) {
	hex, ok := strings.CutPrefix(name, "blobs/sha256/")
	if !ok || !oci.IsID(hex) {
		return "", false
	}
	d := digest.Digest("sha256:" + hex)
	for _, have := range l.s.o.Layers.List() {
		if have.DiffID == d {
			return d, true
		}
	}
	return "", false
}

// layer stages a layer while it passes. The digest of a plain one is its
// DiffID, which is taken anyway.
func (l *loader) layer(name string, size int64, r io.Reader, compressed bool) error {
	if old := l.layers[name]; old != nil {
		return fault.Invalid.Errorf("archive has %q twice", name)
	}
	if d, ok := l.known(name); ok {
		l.layers[name] = &passed{blob: d, diff: d}
		return nil
	}
	dig := digest.SHA256.Digester()
	if compressed {
		r = io.TeeReader(r, dig.Hash())
	}
	c := &counted{r: r, total: size, id: path.Base(strings.TrimSuffix(name, "/layer.tar")), progress: l.progress}
	if len(c.id) > 12 {
		c.id = c.id[:12]
	}
	p := &passed{}
	l.layers[name] = p
	p.staged, p.err = l.s.o.Layers.Stage(l.ctx, c)
	if p.err != nil {
		if fault.Is(p.err, fault.Invalid) { // perhaps no layer at all: matters only if an image names it
			return nil
		}
		return p.err
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		return fault.Invalid.Errorf("read %q: %w", name, err)
	}
	p.blob, p.diff = p.staged.DiffID(), p.staged.DiffID()
	if compressed {
		p.blob = dig.Digest()
	}
	return nil
}

// counted reports what passes.
type counted struct {
	r        io.Reader
	n, at    int64
	total    int64
	id       string
	progress model.Progress
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.n += int64(n); c.n-c.at >= 4<<20 || err == io.EOF && c.n > c.at {
		c.at = c.n
		c.progress(model.ProgressEvent{ID: c.id, Status: "Loading layer", Current: c.n, Total: c.total})
	}
	return n, err
}

// images makes images of what was read.
func (l *loader) images() ([]Loaded, error) {
	if b, ok := l.small["manifest.json"]; ok {
		return l.docker(b)
	}
	if b, ok := l.small["index.json"]; ok {
		return l.layout(b)
	}
	return nil, fault.Invalid.Errorf("archive has no manifest.json and no index.json: it is no image archive")
}

// follow follows links of the archive to a small file or a layer.
func (l *loader) follow(name string) string {
	name = path.Clean("/" + name)[1:]
	for range 10 {
		to, ok := l.alias[name]
		if !ok {
			break
		}
		name = to
	}
	return name
}

func (l *loader) docker(b []byte) ([]Loaded, error) {
	var list []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fault.Invalid.Errorf("parse manifest.json: %w", err)
	}
	var out []Loaded
	for _, m := range list {
		cfg, ok := l.small[l.follow(m.Config)]
		if !ok {
			return out, fault.Invalid.Errorf("archive lacks the configuration %q", m.Config)
		}
		if !l.wanted(cfg) {
			continue
		}
		id := digest.FromBytes(cfg)
		if want := strings.TrimSuffix(path.Base(m.Config), ".json"); oci.IsID(want) && want != id.Encoded() {
			return out, fault.Invalid.Errorf("configuration %q has the digest %s", m.Config, id)
		}
		parts := make([]part, len(m.Layers))
		for i, n := range m.Layers {
			parts[i] = part{name: n}
			if hex, ok := strings.CutPrefix(path.Clean(n), "blobs/sha256/"); ok && oci.IsID(hex) {
				parts[i].blob = digest.Digest("sha256:" + hex)
			}
		}
		if err := l.image(cfg, parts); err != nil {
			return out, err
		}
		one, err := l.tag(id, m.RepoTags)
		if err != nil {
			return out, err
		}
		out = append(out, one)
	}
	return out, l.none(len(list), len(out))
}

// wanted tells whether an image is for the platform that was asked for.
func (l *loader) wanted(cfg []byte) bool {
	var p v1.Platform
	return l.platform == nil || oci.ParseConfig(cfg, &p) != nil || oci.Matches(*l.platform, p)
}

// none is the error when no image was for the platform.
func (l *loader) none(there, loaded int) error {
	if l.platform != nil && there > 0 && loaded == 0 {
		return fault.NotFound.Errorf("the archive has no image for the platform %s", oci.FormatPlatform(*l.platform))
	}
	return nil
}

// part is a layer that an image of the archive names.
type part struct {
	name string
	blob digest.Digest // what its bytes must have; empty: only the DiffID is known
}

// image commits the layers of one image and records it.
func (l *loader) image(cfg []byte, parts []part) error {
	var conf dockerspec.DockerOCIImage
	if err := oci.ParseConfig(cfg, &conf); err != nil {
		return err
	}
	diffs := conf.RootFS.DiffIDs
	if len(diffs) != len(parts) {
		return fault.Invalid.Errorf("invalid manifest, layers length mismatch: expected %d, got %d", len(parts), len(diffs))
	}
	for _, d := range diffs {
		if _, err := oci.ParseDigest(string(d)); err != nil {
			return err
		}
	}
	chains := chainsOf(diffs)
	defer l.s.lease(chains)()
	for i, p := range parts {
		if err := l.check(i, p, diffs[i]); err != nil {
			return err
		}
	}
	if err := l.commit(chains, diffs, parts); err != nil {
		return err
	}
	failpoint.Hit("load.layers")
	_, err := l.s.add(cfg, record{})
	failpoint.Hit("load.recorded")
	return err
}

// check compares a part with what the configuration says of it.
func (l *loader) check(i int, p part, want digest.Digest) error {
	got := l.layers[l.follow(p.name)]
	if got == nil {
		if l.s.anyWith(want) != "" {
			return nil // left out because it is here: some tools do
		}
		return fault.Invalid.Errorf("archive lacks the layer %q", p.name)
	}
	if got.err != nil {
		return got.err
	}
	if p.blob != "" && p.blob != got.blob {
		return fault.Invalid.Errorf("layer %q has the digest %s", p.name, got.blob)
	}
	if got.diff != want {
		return fault.Invalid.Errorf("invalid diffID for layer %d: expected %q, got %q", i, want, got.diff)
	}
	return nil
}

// anyWith finds a chain whose top layer has the given plain digest.
func (s *Store) anyWith(diff digest.Digest) digest.Digest {
	for _, have := range s.o.Layers.List() {
		if have.DiffID == diff {
			return have.Chain
		}
	}
	return ""
}

func (l *loader) commit(chains, diffs []digest.Digest, parts []part) error {
	var batch []model.StagedLayer
	var parent digest.Digest // of the batch
	defer func() {
		for _, g := range batch {
			g.Discard()
		}
	}()
	flush := func(next digest.Digest) error {
		list, below := batch, parent
		batch, parent = nil, next
		if len(list) == 0 {
			return nil
		}
		_, err := l.s.o.Layers.Commit(l.ctx, below, list)
		return err
	}
	for i, c := range chains {
		if _, err := l.s.o.Layers.Get(c); err == nil {
			if err := flush(c); err != nil {
				return err
			}
			continue
		}
		if p := l.layers[l.follow(parts[i].name)]; p != nil && p.staged != nil {
			batch = append(batch, p.staged)
			p.staged = nil
			continue
		}
		// The layer is here on top of something else, perhaps only since
		// the batch before.
		var below digest.Digest
		if i > 0 {
			below = chains[i-1]
		}
		if err := flush(below); err != nil {
			return err
		}
		g, err := l.s.copyLayer(l.ctx, diffs[i])
		if err != nil {
			return err
		}
		batch = append(batch, g)
	}
	return flush("")
}

// copyLayer stages a layer that is here already once more.
func (s *Store) copyLayer(ctx context.Context, diff digest.Digest) (model.StagedLayer, error) {
	from := s.anyWith(diff)
	if from == "" {
		return nil, fault.Conflict.Errorf("layer %s was removed meanwhile", diff)
	}
	r, err := s.o.Layers.Diff(ctx, from)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return s.o.Layers.Stage(ctx, r)
}

func (l *loader) tag(id digest.Digest, tags []string) (Loaded, error) {
	out := Loaded{ID: id}
	for _, t := range tags {
		n, err := oci.ParseRef(t)
		if err != nil {
			return out, err
		}
		if _, ok := n.(reference.Tagged); !ok {
			return out, fault.Invalid.Errorf("invalid tag %q", t)
		}
		if err := l.point(n, id); err != nil {
			return out, err
		}
		out.Tags = append(out.Tags, oci.Familiar(n))
		l.progress(model.ProgressEvent{Stream: "Loaded image: " + oci.Familiar(n) + "\n"})
	}
	if len(tags) == 0 {
		l.progress(model.ProgressEvent{Stream: "Loaded image ID: " + id.String() + "\n"})
	}
	l.s.mu.Lock()
	e := l.s.images[id]
	l.s.mu.Unlock()
	if e != nil { // else it was removed meanwhile
		l.s.happened("load", e)
	}
	return out, nil
}

// point gives a loaded image its name and tells whom it takes that from.
func (l *loader) point(n reference.Named, id digest.Digest) error {
	l.s.mu.Lock()
	old := l.s.byRef[n.String()]
	l.s.mu.Unlock()
	if old != "" && old != id {
		l.progress(model.ProgressEvent{Stream: fmt.Sprintf("The image %s already exists, renaming the old one with ID %s to empty string\n", oci.Familiar(n), old)})
	}
	return l.s.setRef(n, id)
}
