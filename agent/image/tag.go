package image

import (
	"context"
	"fmt"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"machine/agent/fault"
	"machine/agent/oci"
)

// Tag gives an image another name, which is taken from whatever has it.
// Invalid for a name with a digest.
func (s *Store) Tag(ctx context.Context, ref, name string) error {
	n, err := oci.ParseRef(name)
	if err != nil {
		return err
	}
	if _, ok := n.(reference.Digested); ok {
		return fault.Invalid.Errorf("refusing to create a tag with a digest reference")
	}
	if reference.FamiliarName(n) == string(digest.Canonical) {
		return fault.Invalid.Errorf("refusing to create an ambiguous tag using digest algorithm as name")
	}
	s.mu.Lock()
	e, _, err := s.resolve(ref)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return s.tag(e, n)
}

// tag gives an image a name as a user does.
func (s *Store) tag(e *entry, n reference.Named) error {
	if err := s.tagRef(n, e.ID); err != nil {
		return fmt.Errorf("tag %s: %w", e.ID, err)
	}
	s.event("tag", e.ID.String(), oci.Familiar(n), e)
	return nil
}

// setRef points a name at an image, durably.
func (s *Store) setRef(n reference.Named, id digest.Digest) error {
	return s.point(n, id, time.Time{})
}

// tagRef is setRef for what a user tags: it is the image's last time of that.
func (s *Store) tagRef(n reference.Named, id digest.Digest) error {
	return s.point(n, id, time.Now().UTC())
}

func (s *Store) point(n reference.Named, id digest.Digest, tagged time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.images[id]
	if e == nil {
		return fault.NotFound.Errorf("No such image: %s", id)
	}
	if s.byRef[n.String()] != id {
		if err := s.refs.Put(refKey(n.String()), refRecord{n.String(), id}); err != nil {
			return err
		}
		s.byRef[n.String()] = id
	}
	if tagged.IsZero() {
		return nil
	}
	r := e.record
	r.Tagged = tagged
	if err := s.recs.Put(id.Encoded(), r); err != nil {
		return err
	}
	e.Tagged = tagged // alone: the rest of the record is read without the lock
	return nil
}

// named tells whether a name stands for an image.
func (s *Store) named(n reference.Named) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.byRef[n.String()]
	return ok
}
