package image

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"machine/agent/fault"
	"machine/agent/oci"
)

// A Use is a container that was made from an image.
type Use struct {
	Container string // id
	Running   bool
}

// InUse tells what uses an image: a running container, if any does, else any.
type InUse func(id digest.Digest) (Use, bool)

// Removed is what a removal did, in its order; one field of each is set.
type Removed struct {
	Untagged string // familiar name
	Deleted  string // id or layer
}

// RemoveOptions of Remove.
type RemoveOptions struct {
	Force   bool  // also when it has several names or stopped containers
	NoPrune bool  // keep the untagged images that it was made from
	InUse   InUse // nil: nothing is in use
}

// Remove removes a name, and with the last one the image and the layers that
// nothing else needs: Docker's rules. Conflict when it is in use.
func (s *Store) Remove(ctx context.Context, ref string, o RemoveOptions) ([]Removed, error) {
	if o.InUse == nil {
		o.InUse = func(digest.Digest) (Use, bool) { return Use{}, false }
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e, byID, err := s.resolve(ref)
	if err != nil {
		return nil, err
	}
	r := &removal{s: s, o: o, ctx: ctx}
	if byID {
		err = r.byID(e, ref)
	} else {
		err = r.byName(e, ref)
	}
	return r.out, err
}

type removal struct {
	s   *Store
	o   RemoveOptions
	ctx context.Context
	out []Removed
}

func short(id digest.Digest) string { return id.Encoded()[:12] }

func shortC(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

// single tells whether all names are of one repository, with at most one tag.
func single(refs []reference.Named) bool {
	tags, repo := 0, ""
	for _, n := range refs {
		if _, ok := n.(reference.Canonical); !ok {
			tags++
		}
		if repo != "" && n.Name() != repo {
			return false
		}
		repo = n.Name()
	}
	return tags <= 1
}

func (r *removal) untag(n reference.Named, id digest.Digest) error {
	if err := r.s.delRef(n.String()); err != nil {
		return fmt.Errorf("untag %s: %w", oci.Familiar(n), err)
	}
	r.out = append(r.out, Removed{Untagged: oci.Familiar(n)})
	r.s.o.Event("untag", id, oci.Familiar(n))
	return nil
}

func (r *removal) byName(e *entry, ref string) error {
	n, err := oci.ParseRef(ref)
	if err != nil {
		return err
	}
	if c, ok := n.(reference.Canonical); ok {
		if n, err = reference.WithDigest(reference.TrimNamed(n), c.Digest()); err != nil {
			return fault.Invalid.Errorf("%w", err)
		}
	}
	refs := r.s.refsOf(e.ID)
	if use, used := r.o.InUse(e.ID); used && !r.o.Force && single(refs) {
		return fault.Conflict.Errorf("conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s", ref, shortC(use.Container), short(e.ID))
	}
	if err := r.untag(n, e.ID); err != nil {
		return err
	}
	refs = r.s.refsOf(e.ID)
	if _, ok := n.(reference.Canonical); !ok {
		tagged := slices.ContainsFunc(refs, func(o reference.Named) bool {
			_, isDigest := o.(reference.Canonical)
			return o.Name() == n.Name() && !isDigest
		})
		for _, o := range refs { // digests say where the last tag came from
			if !tagged && o.Name() == n.Name() {
				if err := r.untag(o, e.ID); err != nil {
					return err
				}
			}
		}
		refs = r.s.refsOf(e.ID)
	}
	if len(refs) > 0 {
		return nil
	}
	return r.image(e, true, false)
}

func (r *removal) byID(e *entry, ref string) error {
	refs := r.s.refsOf(e.ID)
	if !single(refs) && !r.o.Force {
		return fault.Conflict.Errorf("conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", short(e.ID))
	}
	if err := r.conflict(e); err != nil {
		return err
	}
	for _, n := range refs {
		if err := r.untag(n, e.ID); err != nil {
			return err
		}
	}
	return r.image(e, false, false)
}

// conflict tells why an image must stay.
func (r *removal) conflict(e *entry) error {
	for _, c := range r.s.images {
		if c.Parent == e.ID {
			return fault.Conflict.Errorf("conflict: unable to delete %s (cannot be forced) - image has dependent child images", short(e.ID))
		}
	}
	use, used := r.o.InUse(e.ID)
	switch {
	case used && use.Running:
		return fault.Conflict.Errorf("conflict: unable to delete %s (cannot be forced) - image is being used by running container %s", short(e.ID), shortC(use.Container))
	case used && !r.o.Force:
		return fault.Conflict.Errorf("conflict: unable to delete %s (must be forced) - image is being used by stopped container %s", short(e.ID), shortC(use.Container))
	}
	return nil
}

// image removes an image without names, its layers, and its untagged
// parents. quiet keeps it when it is in use, without an error.
func (r *removal) image(e *entry, quiet, parent bool) error {
	if err := r.conflict(e); err != nil {
		if quiet {
			return nil
		}
		return err
	}
	if parent && len(r.s.refsOf(e.ID)) > 0 {
		return nil
	}
	gone, err := r.s.drop(r.ctx, e)
	r.out = append(r.out, Removed{Deleted: e.ID.String()})
	for _, c := range gone {
		r.out = append(r.out, Removed{Deleted: c.String()})
	}
	if err != nil {
		return err
	}
	r.s.o.Event("delete", e.ID, e.ID.String())
	if p := r.s.images[e.Parent]; p != nil && !r.o.NoPrune {
		return r.image(p, true, true)
	}
	return nil
}

// drop forgets an image and frees the layers that nothing else needs. s.mu
// is held.
func (s *Store) drop(ctx context.Context, e *entry) ([]digest.Digest, error) {
	if err := s.recs.Delete(e.ID.Encoded()); err != nil {
		return nil, fmt.Errorf("delete image %s: %w", e.ID, err)
	}
	delete(s.images, e.ID)
	err := s.o.Blobs.Delete(e.ID)
	needed := s.needed()
	var gone []digest.Digest
	for _, c := range slices.Backward(e.chains) {
		if needed[c] {
			break
		}
		if rerr := s.o.Layers.Release(ctx, c); rerr != nil {
			if !fault.Is(rerr, fault.Conflict) { // a container's: freed when the store opens, or by prune
				err = errors.Join(err, rerr)
			}
			break
		}
		gone = append(gone, c)
	}
	return gone, err
}

// needed gives the chains that images, those set aside too, and work in
// progress stand on. s.mu is held.
func (s *Store) needed() map[digest.Digest]bool {
	out := map[digest.Digest]bool{}
	for c := range s.leases {
		out[c] = true
	}
	for _, e := range s.images {
		for _, c := range e.chains {
			out[c] = true
		}
	}
	for _, chains := range s.aside {
		for _, c := range chains {
			out[c] = true
		}
	}
	return out
}

// gc frees layers that no image needs; none while there is an image set aside
// of which nobody knows what it needs. It returns their bytes.
func (s *Store) gc(ctx context.Context) (freed int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, chains := range s.aside {
		if chains == nil {
			s.o.Log.Warn("no layers are freed: an image was set aside that may need them", "image", id)
			return 0
		}
	}
	needed := s.needed()
	for again := true; again; {
		again = false
		for _, l := range s.o.Layers.List() {
			if needed[l.Chain] {
				continue
			}
			if err := s.o.Layers.Release(ctx, l.Chain); err == nil {
				again = true
				freed += l.Size
			} else if !fault.Is(err, fault.Conflict) {
				s.o.Log.Warn("free unused layer", "chain", l.Chain, "err", err)
				return freed
			}
		}
	}
	return freed
}

// PruneOptions of Prune.
type PruneOptions struct {
	All   bool // all images without containers, not only those without a tag
	Keep  func(*Summary) bool
	InUse InUse
}

// Prune removes images that nothing uses, and frees layers that nothing
// needs. It goes on after an image that cannot be removed.
func (s *Store) Prune(ctx context.Context, o PruneOptions) (removed []Removed, freed int64, err error) {
	before, err := s.DiskUsage(ctx)
	if err != nil {
		return nil, 0, err
	}
	list, err := s.List(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, i := range list {
		if ctx.Err() != nil {
			break
		}
		if len(i.RepoTags) > 0 && !o.All || i.Children && len(i.RepoTags) == 0 || o.Keep != nil && o.Keep(&i) {
			continue
		}
		if o.InUse != nil {
			if _, used := o.InUse(i.ID); used {
				continue
			}
		}
		names := i.RepoTags
		if len(names) == 0 {
			names = []string{i.ID.String()}
		}
		for _, n := range names {
			out, err := s.Remove(ctx, n, RemoveOptions{InUse: o.InUse})
			removed = append(removed, out...)
			if err != nil && !fault.Is(err, fault.Conflict) && !fault.Is(err, fault.NotFound) {
				s.o.Log.Warn("prune image", "image", n, "err", err)
			}
		}
	}
	s.gc(ctx)
	after, err := s.DiskUsage(ctx)
	return removed, before.Layers - after.Layers, err
}
