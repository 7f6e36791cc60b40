package image

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"

	"machine/agent/oci"
	"machine/agent/state"
)

// Open opens the store. An image whose configuration or layers cannot be had
// is set aside and reported in the log: its names and what is left of it stay,
// for Check and Mend, until it comes here again. Layers that no image needs
// are freed.
func Open(o Options) (*Store, error) {
	s := &Store{o: o, images: map[digest.Digest]*entry{}, byRef: map[string]digest.Digest{}, leases: map[digest.Digest]int{}, aside: map[digest.Digest][]digest.Digest{}}
	if s.o.Parallel <= 0 {
		s.o.Parallel = 3
	}
	if s.o.Uploads <= 0 {
		s.o.Uploads = 5
	}
	if s.o.Event == nil {
		s.o.Event = func(Event) {}
	}
	s.flight.running = map[string]*flight{}
	var err error
	var broken, more []error
	if s.recs, broken, err = state.OpenChecked(filepath.Join(o.Root, recordsDir), checkRecord); err != nil {
		return nil, fmt.Errorf("open images: %w", err)
	}
	if s.refs, more, err = state.OpenChecked(filepath.Join(o.Root, namesDir), checkName); err != nil {
		return nil, fmt.Errorf("open images: %w", err)
	}
	for _, err := range append(broken, more...) {
		o.Log.Error("image record", "err", err)
	}
	for key, r := range s.recs.All() {
		e, err := s.load(r)
		if err != nil {
			o.Log.Error("image set aside: pull or load it again", "image", r.ID, "err", err)
			if err := s.recs.SetAside(key); err != nil {
				return nil, fmt.Errorf("open images: %w", err)
			}
			continue
		}
		s.images[r.ID] = e
	}
	for _, key := range s.recs.AllBroken() {
		id := digest.NewDigestFromEncoded(digest.SHA256, key)
		s.aside[id] = s.chainsAside(id)
	}
	for key, r := range s.refs.All() {
		if s.images[r.ID] != nil {
			s.byRef[r.Ref] = r.ID
		} else if _, ok := s.aside[r.ID]; !ok {
			s.refs.Delete(key)
		}
	}
	s.gc(context.Background())
	return s, s.dropBlobs()
}

const (
	recordsDir = "records"
	namesDir   = "names"
)

func checkRecord(id string, r *record) error {
	if r.ID.Validate() != nil || r.ID.Encoded() != id {
		return errors.New("it is no image's of that id")
	}
	return nil
}

func checkName(id string, r *refRecord) error {
	if refKey(r.Ref) != id || r.ID.Validate() != nil {
		return errors.New("it is no name's")
	}
	return nil
}

// chainsAside gives the layers of an image that was set aside, where its
// configuration still tells.
func (s *Store) chainsAside(id digest.Digest) []digest.Digest {
	_, chains, err := readConfig(s.o.Blobs.Get, id)
	if err != nil {
		return nil
	}
	return chains
}

// readConfig reads an image's configuration, and gives its chains with it.
func readConfig(get func(digest.Digest) ([]byte, error), id digest.Digest) (c dockerspec.DockerOCIImage, chains []digest.Digest, err error) {
	b, err := get(id)
	if err != nil {
		return c, nil, err
	}
	if err := oci.ParseConfig(b, &c); err != nil {
		return c, nil, err
	}
	for _, d := range c.RootFS.DiffIDs {
		if _, err := oci.ParseDigest(string(d)); err != nil {
			return c, nil, err
		}
	}
	return c, chainsOf(c.RootFS.DiffIDs), nil
}

// dropBlobs deletes configurations that a crash left without a record.
func (s *Store) dropBlobs() error {
	list, err := s.o.Blobs.List()
	if err != nil {
		return fmt.Errorf("open images: %w", err)
	}
	for _, d := range list {
		if _, ok := s.aside[d]; ok || s.images[d] != nil {
			continue
		}
		if err := s.o.Blobs.Delete(d); err != nil {
			s.o.Log.Warn("delete unused blob", "blob", d, "err", err)
		}
	}
	return nil
}

// load reads the configuration of a record and finds its layers.
func (s *Store) load(r record) (*entry, error) {
	e := &entry{record: r}
	var err error
	if e.config, e.chains, err = readConfig(s.o.Blobs.Get, r.ID); err != nil {
		return nil, err
	}
	for _, c := range e.chains {
		l, err := s.o.Layers.Get(c)
		if err != nil {
			return nil, err
		}
		e.size += l.Size
	}
	return e, nil
}
