package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/distribution/reference"
	"github.com/klauspost/pgzip"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/oci"
)

// Push uploads an image under its name; a name without a tag means all tags
// of the repository that are here. Layers that the registry has, in this
// repository or another one that they are known to be in, are not sent.
func (s *Store) Push(ctx context.Context, ref string, auth model.RegistryAuth, progress model.Progress) error {
	if s.o.Source == nil {
		return fault.NotImplemented.Errorf("push: no registry client")
	}
	n, err := oci.ParseName(ref)
	if err != nil {
		return err
	}
	if _, ok := n.(reference.Digested); ok {
		return fault.Invalid.Errorf("cannot push a digest reference")
	}
	progress(model.ProgressEvent{Status: "The push refers to repository [" + n.Name() + "]"})
	list, err := s.toPush(n)
	if err != nil {
		return err
	}
	for _, t := range list {
		p := &push{s: s, ctx: ctx, ref: t.ref, e: t.e, auth: auth, progress: progress}
		release := s.lease(t.e.chains)
		err := p.run()
		release()
		if err != nil {
			return err
		}
	}
	s.moved("push", n)
	return nil
}

type target struct {
	ref reference.NamedTagged
	e   *entry
}

func (s *Store) toPush(n reference.Named) ([]target, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []target
	some := false // of the repository
	for r, id := range s.byRef {
		o, err := reference.ParseNormalizedNamed(r)
		t, ok := o.(reference.NamedTagged)
		some = some || err == nil && o.Name() == n.Name()
		if err == nil && ok && (r == n.String() || reference.IsNameOnly(n) && o.Name() == n.Name()) {
			out = append(out, target{t, s.images[id]})
		}
	}
	switch {
	case len(out) > 0:
	case some && reference.IsNameOnly(n):
		return nil, fault.NotFound.Errorf("no tags to push for %s", reference.FamiliarName(n))
	case some:
		return nil, fault.NotFound.Errorf("tag does not exist: %s", oci.Familiar(n))
	default:
		return nil, fault.NotFound.Errorf("An image does not exist locally with the tag: %s", reference.FamiliarName(n))
	}
	slices.SortFunc(out, func(a, b target) int {
		if a.ref.String() < b.ref.String() {
			return -1
		}
		return 1
	})
	return out, nil
}

type push struct {
	s        *Store
	ctx      context.Context
	ref      reference.NamedTagged
	e        *entry
	auth     model.RegistryAuth
	progress model.Progress
}

func (p *push) say(diff digest.Digest, status string) {
	p.progress(model.ProgressEvent{ID: short(diff), Status: status})
}

func (p *push) run() error {
	diffs := p.e.config.RootFS.DiffIDs
	for _, d := range slices.Backward(diffs) {
		p.say(d, "Preparing")
	}
	layers := make([]v1.Descriptor, len(diffs))
	g, ctx := errgroup.WithContext(p.ctx)
	g.SetLimit(p.s.o.Uploads)
	var once sync.Map // a layer that comes twice is sent once
	for i := range diffs {
		if _, dup := once.LoadOrStore(diffs[i], i); dup {
			continue
		}
		if i >= p.s.o.Uploads {
			p.say(diffs[i], "Waiting")
		}
		g.Go(func() (err error) {
			layers[i], err = p.layer(ctx, i)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i := range diffs {
		if first, _ := once.Load(diffs[i]); first.(int) != i {
			layers[i] = layers[first.(int)]
		}
	}
	return p.manifest(layers)
}

// sourcesOf gives where a layer is known to be in this registry, the
// repository itself first.
func (p *push) sourcesOf(diff digest.Digest) []source {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	var mine, other []source
	for _, e := range p.s.images {
		for _, c := range e.Sources {
			n, err := reference.ParseNormalizedNamed(c.Repo)
			if c.Diff != diff || err != nil || reference.Domain(n) != reference.Domain(p.ref) {
				continue
			}
			if c.Repo == p.ref.Name() {
				mine = append(mine, c)
			} else {
				other = append(other, c)
			}
		}
	}
	return slices.Concat(mine, other[:min(len(other), 5)])
}

func (p *push) layer(ctx context.Context, i int) (v1.Descriptor, error) {
	diff := p.e.config.RootFS.DiffIDs[i]
	for _, c := range p.sourcesOf(diff) {
		n, err := reference.ParseNormalizedNamed(c.Repo)
		if err != nil {
			continue
		}
		has, mounted, err := p.s.o.Source.HasBlob(ctx, p.ref.String(), c.Blob, reference.Path(n), p.auth)
		if err != nil {
			return c.Blob, err
		}
		if mounted {
			p.say(diff, "Mounted from "+reference.Path(n))
		} else if has {
			p.say(diff, "Layer already exists")
		}
		if has {
			return layerDescriptor(c.Blob), nil
		}
	}
	d, err := p.upload(ctx, i)
	if err != nil {
		return d, err
	}
	p.say(diff, "Pushed")
	p.s.remember(p.e.ID, source{Diff: diff, Repo: p.ref.Name(), Blob: d})
	return d, nil
}

// layerDescriptor has Docker's type for what Docker's manifests can hold.
func layerDescriptor(d v1.Descriptor) v1.Descriptor {
	switch d.MediaType {
	case v1.MediaTypeImageLayerZstd, v1.MediaTypeImageLayer, oci.DockerLayer:
		return v1.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
	}
	return v1.Descriptor{MediaType: oci.DockerLayerGzip, Digest: d.Digest, Size: d.Size}
}

// pushLevel is gzip's: pushing is bound by it, and of the levels this one has
// the best rate at a size within some per cent of the usual level's.
const pushLevel = 2

func (p *push) upload(ctx context.Context, i int) (v1.Descriptor, error) {
	diff := p.e.config.RootFS.DiffIDs[i]
	l, err := p.s.o.Layers.Get(p.e.chains[i])
	if err != nil {
		return v1.Descriptor{}, err
	}
	d, err := p.s.o.Source.PutBlob(ctx, p.ref.String(), func() (io.ReadCloser, error) {
		in, err := p.s.o.Layers.Diff(ctx, p.e.chains[i])
		if err != nil {
			return nil, err
		}
		return gzipped(in, &sent{r: in, p: p, diff: diff, total: l.Tar}), nil
	}, p.auth)
	d.MediaType = oci.DockerLayerGzip
	return d, err
}

// compressing is a layer that is compressed while it is read.
type compressing struct {
	*io.PipeReader
	in io.Closer
	wg sync.WaitGroup
}

// gzipped compresses what r gives, until it is closed, which closes in.
func gzipped(in io.Closer, r io.Reader) *compressing {
	pr, pw := io.Pipe()
	c := &compressing{PipeReader: pr, in: in}
	c.wg.Go(func() {
		z, err := pgzip.NewWriterLevel(pw, pushLevel)
		if err != nil {
			pw.CloseWithError(err)
			return
		}
		_, err = io.CopyBuffer(z, r, make([]byte, 256<<10))
		if cerr := z.Close(); err == nil {
			err = cerr
		}
		pw.CloseWithError(err)
	})
	return c
}

func (c *compressing) Close() error {
	c.PipeReader.CloseWithError(io.ErrClosedPipe)
	c.wg.Wait()
	return c.in.Close()
}

// sent reports what is read for sending.
type sent struct {
	r     io.Reader
	p     *push
	diff  digest.Digest
	n, at int64
	total int64
}

func (s *sent) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	if s.n += int64(n); s.n-s.at >= max(s.total/50, 512<<10) || err == io.EOF {
		s.at = s.n
		s.p.progress(model.ProgressEvent{ID: short(s.diff), Status: "Pushing", Current: s.n, Total: s.total})
	}
	return n, err
}

// remember adds a source to an image's record. It only saves work later, so
// a failure is not the push's.
func (s *Store) remember(id digest.Digest, c source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.images[id]
	if e == nil {
		return
	}
	r := e.record
	r.Sources = mergeSources(r.Sources, []source{c})
	if err := s.recs.Put(id.Encoded(), r); err != nil {
		s.o.Log.Warn("remember where a layer is", "image", id, "err", err)
		return
	}
	e.Sources = r.Sources // alone: the rest is read without the lock
}

func (p *push) manifest(layers []v1.Descriptor) error {
	cfg, err := p.s.o.Blobs.Get(p.e.ID)
	if err != nil {
		return err
	}
	conf := v1.Descriptor{MediaType: oci.DockerConfig, Digest: p.e.ID, Size: int64(len(cfg))}
	mediaType := oci.DockerManifest
	for _, l := range layers { // Docker's format has no zstd
		if l.MediaType != oci.DockerLayerGzip && l.MediaType != oci.DockerLayer {
			mediaType, conf.MediaType = v1.MediaTypeImageManifest, v1.MediaTypeImageConfig
		}
	}
	if mediaType == v1.MediaTypeImageManifest {
		for i := range layers {
			if layers[i].MediaType == oci.DockerLayerGzip {
				layers[i].MediaType = v1.MediaTypeImageLayerGzip
			}
		}
	}
	has, _, err := p.s.o.Source.HasBlob(p.ctx, p.ref.String(), conf, "", p.auth)
	if err != nil {
		return err
	}
	if !has {
		if _, err := p.s.o.Source.PutBlob(p.ctx, p.ref.String(), func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(cfg)), nil }, p.auth); err != nil {
			return err
		}
	}
	if layers == nil {
		layers = []v1.Descriptor{}
	}
	b, err := json.MarshalIndent(v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: mediaType, Config: conf, Layers: layers}, "", "   ")
	if err != nil {
		return err
	}
	if err := p.s.o.Source.PutManifest(p.ctx, p.ref.String(), b, mediaType, p.auth); err != nil {
		return err
	}
	d := digest.FromBytes(b)
	p.progress(model.ProgressEvent{Status: fmt.Sprintf("%s: digest: %s size: %d", p.ref.Tag(), d, len(b))})
	p.progress(model.ProgressEvent{Aux: map[string]any{"Tag": p.ref.Tag(), "Digest": d, "Size": len(b)}})
	c, err := reference.WithDigest(reference.TrimNamed(p.ref), d)
	if err != nil {
		return err
	}
	return p.s.setRef(c, p.e.ID)
}
