package image

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"machine/agent/failpoint"
	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/oci"
)

// Pull gets an image from its registry: name, name:tag or name@digest, for a
// platform ("" is the host's). Layers that are here are not fetched; others
// are unpacked while they arrive, several at once, and a layer whose download
// was cut short by whatever is taken up where it was. The name is saved last.
// Pulls that need the same layer at once share it, and one that is given up
// does not end the others. NotFound when the registry has none.
func (s *Store) Pull(ctx context.Context, ref, platform string, auth model.RegistryAuth, progress model.Progress) (*model.Image, error) {
	if s.o.Source == nil {
		return nil, fault.NotImplemented.Errorf("pull: no registry client")
	}
	n, err := oci.ParseRef(ref)
	if err != nil {
		return nil, err
	}
	img, updated, err := s.pullOne(ctx, n, platform, auth, progress)
	if err != nil {
		return nil, err
	}
	s.pulled(n, updated, progress)
	have := img.Config.Platform
	if want, err := oci.ParsePlatform(platform); err == nil && platform != "" && !oci.Matches(want, have) {
		// Not what was asked for, but the only one that the name stands for.
		progress(model.ProgressEvent{Status: fmt.Sprintf("WARNING: image with reference %s was found but its platform (%s) does not match the specified platform (%s)", oci.Familiar(n), oci.FormatPlatform(have), oci.FormatPlatform(want))})
	}
	return img, nil
}

// pulled tells how a pull has ended.
func (s *Store) pulled(n reference.Named, updated bool, progress model.Progress) {
	status := "Status: Image is up to date for "
	if updated {
		status = "Status: Downloaded newer image for "
	}
	progress(model.ProgressEvent{Status: status + oci.Familiar(n)})
	s.moved("pull", n)
}

// pullOne pulls one reference. updated tells that it meant something else
// before, or nothing.
func (s *Store) pullOne(ctx context.Context, n reference.Named, platform string, auth model.RegistryAuth, progress model.Progress) (_ *model.Image, updated bool, err error) {
	var gone atomic.Bool // the client; a shared download may go on
	defer gone.Store(true)
	p := &pull{s: s, ctx: ctx, ref: n, auth: auth, progress: func(e model.ProgressEvent) {
		if !gone.Load() {
			progress(e)
		}
	}}
	if p.platform, err = oci.ParsePlatform(platform); err != nil {
		return nil, false, err
	}
	return p.run()
}

// PullAll gets all tags of a repository, one after the other.
func (s *Store) PullAll(ctx context.Context, name, platform string, auth model.RegistryAuth, progress model.Progress) error {
	if s.o.Source == nil {
		return fault.NotImplemented.Errorf("pull: no registry client")
	}
	n, err := oci.ParseName(name)
	if err != nil {
		return err
	}
	n = reference.TrimNamed(n)
	tags, err := s.o.Source.Tags(ctx, n.Name(), auth)
	if err != nil {
		return (&pull{ref: n}).denied(err)
	}
	any := false
	for _, tag := range tags {
		t, err := reference.WithTag(n, tag)
		if err != nil {
			return fault.Invalid.Errorf("pull %s: tag %.100q: %w", reference.FamiliarName(n), tag, err)
		}
		_, updated, err := s.pullOne(ctx, t, platform, auth, progress)
		if err != nil {
			return err
		}
		any = any || updated
	}
	s.pulled(n, any, progress)
	return nil
}

type pull struct {
	s        *Store
	ctx      context.Context
	ref      reference.Named
	platform v1.Platform
	auth     model.RegistryAuth
	progress model.Progress

	top      digest.Digest // what the reference names: an index or the manifest
	manifest *oci.Manifest
	config   []byte
	diffs    []digest.Digest
	chains   []digest.Digest
}

func (p *pull) say(id, status string) { p.progress(model.ProgressEvent{ID: id, Status: status}) }

func (p *pull) run() (_ *model.Image, updated bool, err error) {
	if err := p.resolve(); err != nil {
		return nil, false, err
	}
	failpoint.Hit("pull.resolved")
	before, _ := p.s.Get(p.ctx, p.ref.String())
	if err := p.getConfig(); err != nil {
		return nil, false, err
	}
	failpoint.Hit("pull.config")
	p.chains = chainsOf(p.diffs)
	defer p.s.lease(p.chains)()
	if err := p.layers(); err != nil {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			p.dropBlobs() // to take it up again would need what they take
		}
		return nil, false, err
	}
	failpoint.Hit("pull.layers")
	id, err := p.save()
	if err != nil {
		return nil, false, err
	}
	p.dropBlobs()
	failpoint.Hit("pull.saved")
	p.progress(model.ProgressEvent{Status: "Digest: " + p.top.String()})
	img, err := p.s.Get(p.ctx, id.String())
	return img, before == nil || before.ID != id, err
}

// greet names what is being pulled: it exists.
func (p *pull) greet() {
	what := p.ref.String()
	if _, ok := p.ref.(reference.Digested); !ok {
		if t, ok := p.ref.(reference.Tagged); ok {
			what = t.Tag()
		}
	} else if c, ok := p.ref.(reference.Canonical); ok { // a tag beside the digest means nothing
		if d, err := reference.WithDigest(reference.TrimNamed(p.ref), c.Digest()); err == nil {
			what = d.String()
		}
	}
	p.progress(model.ProgressEvent{ID: what, Status: "Pulling from " + reference.Path(p.ref), Plain: true})
}

// resolve finds the manifest for the platform.
func (p *pull) resolve() error {
	want := p.ref.String()
	for depth := 0; ; depth++ {
		b, mt, err := p.s.o.Source.Manifest(p.ctx, want, p.auth)
		if err != nil {
			return p.denied(err)
		}
		m, err := oci.ParseManifest(b, mt)
		if err != nil {
			return fmt.Errorf("pull %s: %w", oci.Familiar(p.ref), err)
		}
		if p.top == "" {
			p.greet()
			p.top = m.Digest
			if d, ok := p.ref.(reference.Digested); ok {
				p.top = d.Digest()
			}
		}
		if !m.Index {
			p.manifest = m
			return nil
		}
		if depth > 4 {
			return fault.Invalid.Errorf("pull %s: indexes nest too deep", oci.Familiar(p.ref))
		}
		d, err := oci.Choose(m.Manifests, p.platform)
		if err != nil {
			return err
		}
		c, err := reference.WithDigest(reference.TrimNamed(p.ref), d.Digest)
		if err != nil {
			return fault.Invalid.Errorf("pull %s: %w", oci.Familiar(p.ref), err)
		}
		want = c.String()
	}
}

// denied says what users know from Docker.
func (p *pull) denied(err error) error {
	if fault.Is(err, fault.Unauthorized) || fault.Is(err, fault.Forbidden) {
		return fault.NotFound.Errorf("pull access denied for %s, repository does not exist or may require 'docker login': %w", reference.FamiliarName(p.ref), err)
	}
	return err
}

// repo is a reference to the image's repository.
func (p *pull) repo() string { return p.ref.String() }

func (p *pull) getConfig() error {
	d := p.manifest.Config
	b, err := p.s.o.Blobs.Get(d.Digest)
	if err != nil {
		if b, err = p.fetchSmall(d); err != nil {
			return err
		}
	}
	var conf dockerspec.DockerOCIImage
	if err := oci.ParseConfig(b, &conf); err != nil {
		return fmt.Errorf("pull %s: %w", oci.Familiar(p.ref), err)
	}
	if len(conf.RootFS.DiffIDs) != len(p.manifest.Layers) {
		return fault.Invalid.Errorf("pull %s: the manifest has %d layers, its configuration (%s) %d: it is no container image", oci.Familiar(p.ref), len(p.manifest.Layers), d.MediaType, len(conf.RootFS.DiffIDs))
	}
	if len(conf.RootFS.DiffIDs) > oci.MaxLayers {
		return fault.Invalid.Errorf("pull %s: max depth exceeded: %d layers", oci.Familiar(p.ref), len(conf.RootFS.DiffIDs))
	}
	for _, d := range conf.RootFS.DiffIDs {
		if _, err := oci.ParseDigest(string(d)); err != nil {
			return fmt.Errorf("pull %s: %w", oci.Familiar(p.ref), err)
		}
	}
	if conf.OS != "" && conf.OS != runtime.GOOS {
		return fault.Invalid.Errorf("image operating system %q cannot be used on this platform", conf.OS)
	}
	p.config, p.diffs = b, conf.RootFS.DiffIDs
	return nil
}

func (p *pull) fetchSmall(d v1.Descriptor) ([]byte, error) {
	if d.Size > oci.MaxManifest {
		return nil, fault.Invalid.Errorf("pull %s: configuration of %d bytes is too large", oci.Familiar(p.ref), d.Size)
	}
	r, err := p.s.o.Source.Blob(p.ctx, p.repo(), d, 0, p.auth)
	if err != nil {
		return nil, p.denied(err)
	}
	defer r.Close()
	b, err := oci.ReadLimited(r, oci.MaxManifest)
	if err != nil {
		return nil, err
	}
	if got := d.Digest.Algorithm().FromBytes(b); got != d.Digest {
		return nil, fault.Invalid.Errorf("pull %s: configuration %s arrived as %s", oci.Familiar(p.ref), d.Digest, got)
	}
	return b, nil
}

// layers brings all layers here.
func (p *pull) layers() error {
	todo := 0
	for i, c := range p.chains {
		if _, err := p.s.o.Layers.Get(c); err == nil {
			todo = i + 1
		}
	}
	known := p.s.known(p.manifest.Config.Digest)
	for i, d := range p.manifest.Layers {
		switch {
		case i >= todo:
			p.say(short(d.Digest), "Pulling fs layer")
		case !known:
			p.say(short(d.Digest), "Already exists")
		}
	}
	if todo == len(p.chains) {
		return nil
	}
	slots := make(chan struct{}, p.s.o.Parallel)
	return p.ensure(p.ctx, len(p.chains)-1, todo, slots)
}

func (s *Store) known(id digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.images[id] != nil
}

// ensure brings layer i and those below it, down to first, here. Each layer
// is one flight that others may join: it stages its layer and joins its
// parent's flight meanwhile, then commits. A flight only ever waits for one
// nearer to the ground, so flights of many pulls cannot wait in a circle.
func (p *pull) ensure(ctx context.Context, i, first int, slots chan struct{}) error {
	if i < first {
		return nil
	}
	return p.s.flight.do(ctx, p.chains[i].String(), func(ctx context.Context) (err error) {
		if _, err := p.s.o.Layers.Get(p.chains[i]); err == nil {
			return nil
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		var wg sync.WaitGroup
		var below error
		wg.Go(func() {
			if below = p.ensure(ctx, i-1, first, slots); below != nil {
				cancel()
			}
		})
		g, err := p.stage(ctx, i, slots)
		if err != nil {
			cancel()
		}
		wg.Wait()
		if below != nil && (err == nil || errors.Is(err, context.Canceled)) {
			err = below
		}
		if err != nil {
			if g != nil {
				g.Discard()
			}
			return err
		}
		return p.commit(ctx, i, g)
	})
}

func (p *pull) commit(ctx context.Context, i int, g model.StagedLayer) error {
	var parent digest.Digest
	if i > 0 {
		parent = p.chains[i-1]
	}
	failpoint.Hit("pull.staged")
	if _, err := p.s.o.Layers.Commit(ctx, parent, []model.StagedLayer{g}); err != nil {
		return fmt.Errorf("pull %s: %w", oci.Familiar(p.ref), err)
	}
	failpoint.Hit("pull.layer")
	d := p.manifest.Layers[i]
	p.say(short(d.Digest), "Pull complete")
	return nil
}

// dropBlobs deletes the downloads. They are kept until the image has its name:
// an agent that starts sweeps layers without an image, and a pull that is
// repeated after a crash takes them from here.
func (p *pull) dropBlobs() {
	for _, d := range p.manifest.Layers {
		if err := p.s.o.Blobs.Forget(d.Digest); err != nil {
			p.s.o.Log.Warn("delete downloaded layer", "blob", d.Digest, "err", err)
		}
	}
}

// stage downloads and unpacks layer i.
func (p *pull) stage(ctx context.Context, i int, slots chan struct{}) (model.StagedLayer, error) {
	select {
	case slots <- struct{}{}:
	default:
		p.say(short(p.manifest.Layers[i].Digest), "Waiting")
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	defer func() { <-slots }()
	if p.s.anyWith(p.diffs[i]) != "" { // here already, on top of something else
		if g, err := p.s.copyLayer(ctx, p.diffs[i]); err == nil {
			return g, nil
		}
	}
	d := p.manifest.Layers[i]
	w, err := p.s.o.Blobs.Resume(ctx, d.Digest)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	for {
		resumed := w.Offset() > 0
		g, err := p.receive(ctx, i, w)
		if err == nil {
			return g, nil
		}
		// What an earlier run left may be torn: once more from the start.
		if !resumed || !fault.Is(err, fault.Invalid) || ctx.Err() != nil {
			return nil, fmt.Errorf("pull %s: layer %s: %w", oci.Familiar(p.ref), d.Digest, err)
		}
		if err := w.Reset(); err != nil {
			return nil, err
		}
	}
}

// save records the image and its names.
func (p *pull) save() (digest.Digest, error) {
	r := record{}
	for i, d := range p.manifest.Layers {
		r.Sources = append(r.Sources, source{Diff: p.diffs[i], Repo: p.ref.Name(), Blob: v1.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}})
	}
	id, err := p.s.add(p.config, r)
	if err != nil {
		return "", fmt.Errorf("pull %s: %w", oci.Familiar(p.ref), err)
	}
	failpoint.Hit("pull.recorded")
	c, err := reference.WithDigest(reference.TrimNamed(p.ref), p.top)
	if err != nil {
		return "", err
	}
	// An index's digest stays with the image of the platform that was first
	// pulled, as with Docker: who runs NAME@DIGEST means that. A pull by the
	// digest itself moves it.
	_, digested := p.ref.(reference.Digested)
	if digested || !p.s.named(c) {
		if err := p.s.setRef(c, id); err != nil {
			return "", err
		}
	}
	failpoint.Hit("pull.digest")
	if t, ok := p.ref.(reference.NamedTagged); ok && !digested {
		if err := p.s.setRef(t, id); err != nil {
			return "", err
		}
	}
	return id, nil
}
