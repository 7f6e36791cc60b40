package image

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"machine/agent/oci"
)

// HistoryItem is one step in the making of an image.
type HistoryItem struct {
	ID        string     // "<missing>" unless the step is an image here
	Created   *time.Time // nil: not known
	CreatedBy string
	Comment   string
	Tags      []string
	Size      int64
}

// History gives the steps, newest first.
func (s *Store) History(ctx context.Context, ref string) ([]HistoryItem, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, _, err := s.resolve(ref)
	if err != nil {
		return nil, err
	}
	var out []HistoryItem
	n := 0
	for _, h := range e.config.History {
		it := HistoryItem{ID: "<missing>", CreatedBy: h.CreatedBy, Comment: h.Comment, Created: h.Created}
		if !h.EmptyLayer {
			if n >= len(e.chains) {
				return nil, fmt.Errorf("image %s: its history has more layers than it has", e.ID)
			}
			if l, err := s.o.Layers.Get(e.chains[n]); err == nil {
				it.Size = l.Size
			}
			n++
		}
		out = append(out, it)
	}
	slices.Reverse(out)
	at := e
	for i := range out {
		out[i].ID = at.ID.String()
		for _, n := range s.refsOf(at.ID) {
			if _, ok := n.(reference.Canonical); !ok {
				out[i].Tags = append(out[i].Tags, oci.Familiar(n))
			}
		}
		if at = s.images[at.Parent]; at == nil {
			break
		}
	}
	return out, nil
}

// Usage is the disk that images hold.
type Usage struct {
	Layers int64                   // bytes of all layers that images show, each counted once
	Shared map[digest.Digest]int64 // image to bytes that it shares with others
	Free   map[digest.Digest]int64 // image to bytes that its removal would free
}

// shown gives the chains of the images that docker images shows: not those of
// untagged ones that others were made from, nor what a container has kept of a
// removed one. s.mu is held.
func (s *Store) shown() map[digest.Digest]bool {
	names, parents := map[digest.Digest]bool{}, map[digest.Digest]bool{}
	for _, id := range s.byRef {
		names[id] = true
	}
	for _, e := range s.images {
		parents[e.Parent] = true
	}
	out := map[digest.Digest]bool{}
	for id, e := range s.images {
		if names[id] || !parents[id] {
			for _, c := range e.chains {
				out[c] = true
			}
		}
	}
	return out
}

// held is the bytes of all layers on the disk.
func (s *Store) held() (n int64) {
	for _, l := range s.o.Layers.List() {
		n += l.Size
	}
	return n
}

// DiskUsage adds up the layers.
func (s *Store) DiskUsage(ctx context.Context) (Usage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := Usage{Shared: map[digest.Digest]int64{}, Free: map[digest.Digest]int64{}}
	users := map[digest.Digest]int{}
	for _, e := range s.images {
		for _, c := range e.chains {
			users[c]++
		}
	}
	shown := s.shown()
	sizes := map[digest.Digest]int64{}
	for _, l := range s.o.Layers.List() {
		sizes[l.Chain] = l.Size
		if shown[l.Chain] {
			u.Layers += l.Size
		}
	}
	for id, e := range s.images {
		for _, c := range e.chains {
			if users[c] > 1 {
				u.Shared[id] += sizes[c]
			} else {
				u.Free[id] += sizes[c]
			}
		}
	}
	return u, nil
}
