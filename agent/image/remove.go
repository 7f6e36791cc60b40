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
		err = r.byID(e)
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

// single tells whether there is one name, or one with digests of the same
// repository: then removing the image by its id surprises nobody.
func single(refs []reference.Named) bool {
	var one reference.Named
	repos := map[string]bool{} // that digests are of
	for _, n := range refs {
		if _, ok := n.(reference.Canonical); ok {
			repos[n.Name()] = true
		} else if one != nil {
			return false
		} else {
			one = n
		}
	}
	switch {
	case len(refs) <= 1:
		return len(refs) == 1
	case one == nil:
		one = refs[0]
	}
	return len(repos) == 1 && repos[one.Name()]
}

// untag forgets a name; quiet is without an event, as for the digests that go
// along with a tag.
func (r *removal) untag(n reference.Named, e *entry, quiet bool) error {
	if err := r.s.delRef(n.String()); err != nil {
		return fmt.Errorf("untag %s: %w", oci.Familiar(n), err)
	}
	r.out = append(r.out, Removed{Untagged: oci.Familiar(n)})
	if !quiet {
		r.s.happened("untag", e)
	}
	return nil
}

// untagAll forgets all names of an image.
func (r *removal) untagAll(e *entry) error {
	for _, n := range r.s.refsOf(e.ID) {
		if err := r.untag(n, e, false); err != nil {
			return err
		}
	}
	return nil
}

func (r *removal) byName(e *entry, ref string) error {
	n, err := oci.ParseRef(ref)
	if err != nil {
		return err
	}
	c, byDigest := n.(reference.Canonical)
	if byDigest {
		if n, err = reference.WithDigest(reference.TrimNamed(n), c.Digest()); err != nil {
			return fault.Invalid.Errorf("%w", err)
		}
	}
	if use, used := r.o.InUse(e.ID); used && !r.o.Force && single(r.s.refsOf(e.ID)) {
		return fault.Conflict.Errorf("conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s", ref, shortC(use.Container), short(e.ID))
	}
	if err := r.untag(n, e, false); err != nil {
		return err
	}
	if !byDigest {
		if err := r.dropDigests(e, n); err != nil {
			return err
		}
	}
	if len(r.s.refsOf(e.ID)) > 0 {
		return nil
	}
	return r.image(e, r.o.Force, true)
}

// dropDigests forgets the digests of a repository that has lost its last tag:
// they say where that came from.
func (r *removal) dropDigests(e *entry, n reference.Named) error {
	refs := slices.DeleteFunc(r.s.refsOf(e.ID), func(o reference.Named) bool { return o.Name() != n.Name() })
	for _, o := range refs {
		if _, ok := o.(reference.Canonical); !ok {
			return nil
		}
	}
	for _, o := range refs {
		if err := r.untag(o, e, true); err != nil {
			return err
		}
	}
	return nil
}

func (r *removal) byID(e *entry) error {
	if single(r.s.refsOf(e.ID)) {
		if c := r.conflict(e, r.o.Force, false); c != nil {
			return c.err
		}
		if err := r.untagAll(e); err != nil {
			return err
		}
	}
	return r.image(e, r.o.Force, false)
}

// A conflict is why an image must stay.
type conflict struct {
	used bool // by a container
	err  error
}

// conflict tells why an image must stay. With force only what cannot be
// forced counts; with names also that it has names.
func (r *removal) conflict(e *entry, force, names bool) *conflict {
	for _, c := range r.s.images {
		if c.Parent == e.ID {
			return &conflict{false, fault.Conflict.Errorf("conflict: unable to delete %s (cannot be forced) - image has dependent child images", short(e.ID))}
		}
	}
	use, used := r.o.InUse(e.ID)
	switch {
	case used && use.Running:
		return &conflict{true, fault.Conflict.Errorf("conflict: unable to delete %s (cannot be forced) - image is being used by running container %s", short(e.ID), shortC(use.Container))}
	case force:
		return nil
	case names && len(r.s.refsOf(e.ID)) > 0:
		return &conflict{false, fault.Conflict.Errorf("conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", short(e.ID))}
	case used:
		return &conflict{true, fault.Conflict.Errorf("conflict: unable to delete %s (must be forced) - image is being used by stopped container %s", short(e.ID), shortC(use.Container))}
	}
	return nil
}

// image removes an image with its names, its layers, and its untagged
// parents. With quiet one that is in use stays, without an error.
func (r *removal) image(e *entry, force, quiet bool) error {
	if c := r.conflict(e, force, true); c != nil {
		if quiet && (c.used || !r.dangling(e)) {
			return nil
		}
		return c.err
	}
	if err := r.untagAll(e); err != nil {
		return err
	}
	gone, err := r.s.drop(r.ctx, e)
	r.out = append(r.out, Removed{Deleted: e.ID.String()})
	for _, c := range gone {
		r.out = append(r.out, Removed{Deleted: c.String()})
	}
	if err != nil {
		return err
	}
	r.s.event("delete", e.ID.String(), e.ID.String(), nil)
	if p := r.s.images[e.Parent]; p != nil && !r.o.NoPrune {
		return r.image(p, false, true)
	}
	return nil
}

// dangling tells whether an image has neither names nor children.
func (r *removal) dangling(e *entry) bool {
	for _, c := range r.s.images {
		if c.Parent == e.ID {
			return false
		}
	}
	return len(r.s.refsOf(e.ID)) == 0
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

// Free frees a layer, and those below it, that no image needs any more: what
// a container kept of an image that was removed before it. Safe to repeat.
func (s *Store) Free(ctx context.Context, chain digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for chain != "" && !s.needs(chain) {
		l, err := s.o.Layers.Get(chain)
		if err != nil {
			return
		}
		if err := s.o.Layers.Release(ctx, chain); err != nil {
			if !fault.Is(err, fault.Conflict) { // another container's
				s.o.Log.Warn("free unused layer", "chain", chain, "err", err)
			}
			return
		}
		chain = l.Parent
	}
}

// needs tells of one chain what needed tells of all. s.mu is held.
func (s *Store) needs(chain digest.Digest) bool {
	if s.leases[chain] > 0 {
		return true
	}
	for _, e := range s.images {
		if slices.Contains(e.chains, chain) {
			return true
		}
	}
	for _, chains := range s.aside {
		if chains == nil || slices.Contains(chains, chain) {
			return true
		}
	}
	return false
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
	before := s.held()
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
		names := slices.Concat(i.RepoTags, i.Digests)
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
	return removed, before - s.held(), nil
}
