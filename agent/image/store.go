// Package image keeps images: configurations, names, and the layers that they
// stand on.
//
// An image is the bytes of its configuration, whose digest is its id; a
// record says what else is known of it. Names are records of their own, one
// file each, so a name moves from image to image by one rename. Layers come
// first, then the configuration, then the image's record, then its names:
// after a crash an image is whole or not there, and what only it needed is
// freed when the store opens.
package image

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/oci"
	"machine/agent/state"
)

// Layers is what images need of layer storage.
type Layers interface {
	Get(chain digest.Digest) (model.Layer, error)
	List() []model.Layer
	Diff(ctx context.Context, chain digest.Digest) (io.ReadCloser, error)
	Stage(ctx context.Context, r io.Reader) (model.StagedLayer, error)
	Commit(ctx context.Context, parent digest.Digest, staged []model.StagedLayer) ([]model.Layer, error)
	Release(ctx context.Context, chain digest.Digest) error
}

// Blobs is what images need of blob storage.
type Blobs interface {
	Put(b []byte) (digest.Digest, error)
	Get(d digest.Digest) ([]byte, error)
	Delete(d digest.Digest) error
	Resume(ctx context.Context, d digest.Digest) (model.BlobWriter, error)
	// List gives the blobs that are whole. All are the images'.
	List() ([]digest.Digest, error)
	Forget(digest.Digest) error // of what a writer was given only
}

// Options are all that a store needs.
type Options struct {
	Root    string // folder of the records, made when absent
	Layers  Layers
	Blobs   Blobs
	Source  Registry // nil: pull and push are refused
	Log     *slog.Logger
	Event   func(Event) // when set, is told what happened; it must not block
	Version string      // of the engine, for the record of new images
	// Parallel bounds the layers that are pulled at once, Uploads those that
	// are pushed; 0 is 3 and 5.
	Parallel, Uploads int
}

// A Store keeps images. It is safe for concurrent use.
type Store struct {
	o    Options
	recs *state.Store[record]
	refs *state.Store[refRecord]

	mu     sync.Mutex
	images map[digest.Digest]*entry
	byRef  map[string]digest.Digest          // canonical name with tag or digest, to id
	leases map[digest.Digest]int             // chains that work in progress needs
	aside  map[digest.Digest][]digest.Digest // chains of images that were set aside; nil where nobody knows
	flight flights
}

// record is what is stored of an image beside its configuration.
type record struct {
	ID      digest.Digest
	Parent  digest.Digest `json:",omitempty"` // the image it was made from, here
	Made    time.Time     // when it came here
	Tagged  time.Time     `json:",omitzero"`
	Sources []source      `json:",omitempty"`
}

// source says where a layer can be had, compressed: pushes need not send it
// again.
type source struct {
	Diff digest.Digest
	Repo string
	Blob v1.Descriptor
}

type refRecord struct {
	Ref string
	ID  digest.Digest
}

// entry is an image in memory.
type entry struct {
	record
	config dockerspec.DockerOCIImage
	chains []digest.Digest // lowest first
	size   int64
}

func refKey(ref string) string { return digest.FromString(ref).Encoded() }

// lease keeps chains from being freed until the returned function runs.
func (s *Store) lease(chains []digest.Digest) func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range chains {
		s.leases[c]++
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, c := range chains {
			if s.leases[c]--; s.leases[c] == 0 {
				delete(s.leases, c)
			}
		}
	}
}

// chainsOf gives all chains of a configuration, lowest first.
func chainsOf(diffs []digest.Digest) []digest.Digest {
	out := make([]digest.Digest, len(diffs))
	var c digest.Digest
	for i, d := range diffs {
		c = oci.ChainID(c, d)
		out[i] = c
	}
	return out
}

// add records an image whose layers are there. Safe to repeat.
func (s *Store) add(config []byte, r record) (digest.Digest, error) {
	id, err := s.o.Blobs.Put(config)
	if err != nil {
		return "", err
	}
	r.ID = id
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.images[id]; old != nil {
		r.Made, r.Tagged = old.Made, old.Tagged
		if r.Parent == "" {
			r.Parent = old.Parent
		}
		r.Sources = mergeSources(old.Sources, r.Sources)
		if len(r.Sources) == len(old.Sources) && r.Parent == old.Parent {
			return id, nil
		}
	} else {
		r.Made = time.Now().UTC()
	}
	e, err := s.load(r)
	if err != nil {
		return "", fmt.Errorf("record image %s: %w", id, err)
	}
	if err := s.recs.Put(id.Encoded(), r); err != nil {
		return "", err
	}
	s.images[id] = e
	if _, ok := s.aside[id]; ok {
		s.recs.Replaced(id.Encoded())
		delete(s.aside, id)
		s.takeNames(id)
	}
	return id, nil
}

// takeNames gives an image that was set aside and is here again its old names,
// as far as no other has got them. s.mu is held.
func (s *Store) takeNames(id digest.Digest) {
	for _, r := range s.refs.All() {
		if r.ID == id && s.byRef[r.Ref] == "" {
			s.byRef[r.Ref] = id
		}
	}
}

func mergeSources(a, b []source) []source {
	out := slices.Clone(a)
	for _, n := range b {
		if !slices.ContainsFunc(out, func(o source) bool {
			return o.Diff == n.Diff && o.Repo == n.Repo && o.Blob.Digest == n.Blob.Digest
		}) {
			out = append(out, n)
		}
	}
	return out
}

// delRef forgets a name. s.mu is held.
func (s *Store) delRef(ref string) error {
	if err := s.refs.Delete(refKey(ref)); err != nil {
		return err
	}
	delete(s.byRef, ref)
	return nil
}

// refsOf gives the names of an image, sorted. s.mu is held.
func (s *Store) refsOf(id digest.Digest) []reference.Named {
	var out []reference.Named
	for r, i := range s.byRef {
		if i != id {
			continue
		}
		if n, err := reference.ParseNormalizedNamed(r); err == nil {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b reference.Named) int { return cmp.Compare(a.String(), b.String()) })
	return out
}

// resolve finds an image by what a user calls it. s.mu is held. byID tells
// that it was an id or the beginning of one.
func (s *Store) resolve(ref string) (e *entry, byID bool, err error) {
	bare := strings.TrimPrefix(ref, "sha256:")
	if oci.IsID(bare) {
		if e := s.images[digest.Digest("sha256:"+bare)]; e != nil {
			return e, true, nil
		}
		return nil, true, noSuchImage(ref)
	}
	if n, perr := oci.ParseName(ref); perr == nil {
		full := reference.TagNameOnly(n)
		if c, ok := n.(reference.Canonical); ok { // name:tag@digest means the digest
			if t, err := reference.WithDigest(reference.TrimNamed(n), c.Digest()); err == nil {
				full = t
			}
		}
		if id, ok := s.byRef[full.String()]; ok {
			return s.images[id], false, nil
		}
	} else if !isHex(bare) {
		return nil, false, perr
	}
	if !isHex(bare) {
		return nil, false, noSuchImage(ref)
	}
	var found *entry
	for id, e := range s.images {
		if strings.HasPrefix(id.Encoded(), bare) {
			if found != nil {
				return nil, true, fault.NotFound.Errorf("No such image: %s: the prefix is ambiguous", ref)
			}
			found = e
		}
	}
	if found == nil {
		return nil, false, noSuchImage(ref)
	}
	return found, true, nil
}

func isHex(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// noSuchImage has the text that clients look for.
func noSuchImage(ref string) error {
	if n, err := oci.ParseRef(ref); err == nil {
		ref = oci.Familiar(n)
	}
	return fault.NotFound.Errorf("No such image: %s", ref)
}

// view makes the record that others see. s.mu is held.
func (s *Store) view(e *entry) *model.Image {
	img := &model.Image{ID: e.ID, Config: e.config, Size: e.size, RepoTags: []string{}, Digests: []string{}}
	if len(e.chains) > 0 {
		img.TopLayer = e.chains[len(e.chains)-1]
	}
	if e.config.Created != nil {
		img.Created = *e.config.Created
	}
	for _, n := range s.refsOf(e.ID) {
		if _, ok := n.(reference.Canonical); ok {
			img.Digests = append(img.Digests, oci.Familiar(n))
		} else {
			img.RepoTags = append(img.RepoTags, oci.Familiar(n))
		}
	}
	return img
}

// Get finds an image by name, name@digest, id, or the beginning of an id.
// NotFound reads "No such image: NAME", which clients look for.
func (s *Store) Get(ctx context.Context, ref string) (*model.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, _, err := s.resolve(ref)
	if err != nil {
		return nil, err
	}
	return s.view(e), nil
}

// Details are what inspect shows beyond model.Image.
type Details struct {
	Parent     digest.Digest
	LastTagged time.Time
	Raw        []byte // the configuration to the byte
}

// Details looks an image up by its id.
func (s *Store) Details(ctx context.Context, id digest.Digest) (Details, error) {
	s.mu.Lock()
	e := s.images[id]
	if e == nil {
		s.mu.Unlock()
		return Details{}, noSuchImage(id.String())
	}
	d := Details{Parent: e.Parent, LastTagged: e.Tagged}
	s.mu.Unlock()
	var err error
	if d.Raw, err = s.o.Blobs.Get(id); err != nil {
		return Details{}, err
	}
	return d, nil
}

// Summary is an image in a list.
type Summary struct {
	*model.Image
	Parent   digest.Digest
	Children bool // other images were made from it
}

// List gives all images, the newest first.
func (s *Store) List(ctx context.Context) ([]Summary, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	parents := map[digest.Digest]bool{}
	for _, e := range s.images {
		parents[e.Parent] = true
	}
	out := make([]Summary, 0, len(s.images))
	for _, e := range s.images {
		out = append(out, Summary{s.view(e), e.Parent, parents[e.ID]})
	}
	slices.SortFunc(out, func(a, b Summary) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

// encode marshals without escaping of <, > and &: configurations are read by
// people.
func encode(v any) ([]byte, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return []byte(strings.TrimRight(b.String(), "\n")), nil
}
