package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"machine/agent/fault"
	"machine/agent/oci"
)

// Save writes images as one tar that is both what `docker load` has always
// read and an OCI layout, as Docker does since 25. Layers are plain. A name
// without a tag stands for all tags of its repository. NotFound before
// anything is written when a name is not here.
func (s *Store) Save(ctx context.Context, names []string, w io.Writer) error {
	list, free, err := s.choose(names)
	if err != nil {
		return err
	}
	defer free()
	v := &saver{s: s, ctx: ctx, tw: tar.NewWriter(w), done: map[string]bool{}, repos: map[string]map[string]string{}}
	for _, p := range list {
		if err := v.image(p); err != nil {
			return fmt.Errorf("save %s: %w", p.e.ID, err)
		}
	}
	if err := v.finish(); err != nil {
		return fmt.Errorf("save: %w", err)
	}
	for _, p := range list {
		s.happened("save", p.e)
	}
	return nil
}

type saved struct {
	e    *entry
	tags []reference.NamedTagged
}

// choose finds what to save, and keeps its layers until free runs.
func (s *Store) choose(names []string) (list []*saved, free func(), err error) {
	s.mu.Lock()
	at := map[digest.Digest]*saved{}
	add := func(e *entry, n reference.Named) {
		p := at[e.ID]
		if p == nil {
			p = &saved{e: e}
			at[e.ID] = p
			list = append(list, p)
		}
		if t, ok := n.(reference.NamedTagged); ok && !slices.ContainsFunc(p.tags, func(o reference.NamedTagged) bool { return o.String() == t.String() }) {
			p.tags = append(p.tags, t)
		}
	}
	for _, name := range names {
		if err := s.chooseOne(name, add); err != nil {
			s.mu.Unlock()
			return nil, nil, err
		}
	}
	var chains []digest.Digest
	for _, p := range list {
		chains = append(chains, p.e.chains...)
	}
	s.mu.Unlock()
	if len(list) == 0 {
		return nil, nil, fault.Invalid.Errorf("no image named")
	}
	return list, s.lease(chains), nil
}

func (s *Store) chooseOne(name string, add func(*entry, reference.Named)) error {
	if n, err := oci.ParseName(name); err == nil && reference.IsNameOnly(n) && !oci.IsID(name) {
		found := false
		var all []string
		for r := range s.byRef {
			all = append(all, r)
		}
		slices.Sort(all)
		for _, r := range all {
			t, err := reference.ParseNormalizedNamed(r)
			if _, ok := t.(reference.Tagged); err == nil && ok && t.Name() == n.Name() {
				add(s.images[s.byRef[r]], t)
				found = true
			}
		}
		if found {
			return nil
		}
	}
	e, byID, err := s.resolve(name)
	if err != nil {
		return err
	}
	var n reference.Named
	if !byID {
		n, _ = oci.ParseRef(name)
	}
	if _, ok := n.(reference.Digested); ok {
		n = nil // a tag beside a digest means nothing
	}
	add(e, n)
	return nil
}

type saver struct {
	s     *Store
	ctx   context.Context
	tw    *tar.Writer
	done  map[string]bool // names written
	docks []dockerEntry
	index []v1.Descriptor
	repos map[string]map[string]string
}

// dockerEntry is an image in manifest.json.
type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func blobName(d digest.Digest) string { return "blobs/" + string(d.Algorithm()) + "/" + d.Encoded() }

// folder writes the entry of a folder, once.
func (v *saver) folder(name string) error {
	if v.done[name] {
		return nil
	}
	v.done[name] = true
	return v.tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(0, 0)})
}

func (v *saver) bytes(name string, b []byte) error {
	if v.done[name] {
		return nil
	}
	v.done[name] = true
	if err := v.tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(b)), ModTime: time.Unix(0, 0)}); err != nil {
		return err
	}
	_, err := v.tw.Write(b)
	return err
}

func (v *saver) blob(b []byte, mediaType string) (v1.Descriptor, error) {
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	return d, v.bytes(blobName(d.Digest), b)
}

func (v *saver) image(p *saved) error {
	for _, d := range []string{"blobs/", "blobs/sha256/"} {
		if err := v.folder(d); err != nil {
			return err
		}
	}
	cfg, err := v.s.o.Blobs.Get(p.e.ID)
	if err != nil {
		return err
	}
	conf, err := v.blob(cfg, v1.MediaTypeImageConfig)
	if err != nil {
		return err
	}
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: conf, Layers: []v1.Descriptor{}}
	one := dockerEntry{Config: blobName(conf.Digest), Layers: []string{}}
	for _, c := range p.e.chains {
		d, err := v.layer(c)
		if err != nil {
			return err
		}
		m.Layers = append(m.Layers, d)
		one.Layers = append(one.Layers, blobName(d.Digest))
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	md, err := v.blob(b, v1.MediaTypeImageManifest)
	if err != nil {
		return err
	}
	md.Platform = &v1.Platform{OS: p.e.config.OS, Architecture: p.e.config.Architecture, Variant: p.e.config.Variant}
	v.names(p, md, one)
	return nil
}

func (v *saver) names(p *saved, md v1.Descriptor, one dockerEntry) {
	if len(p.tags) == 0 {
		v.index = append(v.index, md)
	}
	for _, t := range p.tags {
		one.RepoTags = append(one.RepoTags, reference.FamiliarString(t))
		d := md
		d.Annotations = map[string]string{"io.containerd.image.name": t.String(), v1.AnnotationRefName: t.Tag()}
		v.index = append(v.index, d)
		repo := reference.FamiliarName(t)
		if v.repos[repo] == nil {
			v.repos[repo] = map[string]string{}
		}
		if n := len(p.e.config.RootFS.DiffIDs); n > 0 {
			v.repos[repo][t.Tag()] = p.e.config.RootFS.DiffIDs[n-1].Encoded()
		}
	}
	v.docks = append(v.docks, one)
}

func (v *saver) layer(chain digest.Digest) (v1.Descriptor, error) {
	l, err := v.s.o.Layers.Get(chain)
	if err != nil {
		return v1.Descriptor{}, err
	}
	d := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: l.DiffID, Size: l.Tar}
	name := blobName(l.DiffID)
	if v.done[name] {
		return d, nil
	}
	v.done[name] = true
	r, err := v.s.o.Layers.Diff(v.ctx, chain)
	if err != nil {
		return d, err
	}
	defer r.Close()
	if err := v.tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: l.Tar, ModTime: time.Unix(0, 0)}); err != nil {
		return d, err
	}
	_, err = io.CopyBuffer(onlyWriter{v.tw}, onlyReader{r}, make([]byte, 256<<10))
	return d, err
}

type onlyWriter struct{ io.Writer }
type onlyReader struct{ io.Reader }

func (v *saver) finish() error {
	idx, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: v.index})
	if err != nil {
		return err
	}
	docks, err := json.Marshal(v.docks)
	if err != nil {
		return err
	}
	repos, err := json.Marshal(v.repos)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		b    []byte
	}{
		{"index.json", idx}, {"manifest.json", docks}, {"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)}, {"repositories", repos},
	} {
		if f.name == "repositories" && len(v.repos) == 0 {
			continue
		}
		if err := v.bytes(f.name, f.b); err != nil {
			return err
		}
	}
	return v.tw.Close()
}
