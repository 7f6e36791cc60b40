// Package layer is the contract of layer storage: read-only layers of images,
// named by their chain, and writable layers of containers on top of them.
//
// An implementation proves itself with layertest.Run.
package layer

import (
	"context"
	"io"
	"os"

	"github.com/opencontainers/go-digest"

	"machine/agent/model"
)

// A Reader reads image layers. Chains are those of image-spec; the empty
// chain is the image without layers.
type Reader interface {
	Has(chain digest.Digest) bool
	// Get returns NotFound when the layer is not there.
	Get(chain digest.Digest) (model.Layer, error)
	// List gives all layers, in no order.
	List() []model.Layer
	// Diff gives back the plain tar that was applied, to the byte: its digest
	// is the layer's DiffID, which is checked while it is read; a mismatch is
	// the last Read's error. The caller closes it.
	Diff(ctx context.Context, chain digest.Digest) (io.ReadCloser, error)
	// OpenImage mounts the layers read-only where only the returned
	// descriptor can see them. The caller calls the function when done; it
	// closes the descriptor, too.
	OpenImage(ctx context.Context, chain digest.Digest) (root *os.File, release func() error, err error)
}

// A Writer makes and removes image layers.
type Writer interface {
	// Apply unpacks a layer tar, plain or compressed, on top of parent. When
	// it returns the layer is durable; when it fails nothing is left. A layer
	// that is there already is kept as it is.
	Apply(ctx context.Context, parent digest.Digest, r io.Reader) (model.Layer, error)
	// Stage is the part of Apply that needs no parent: layers of one image
	// can be staged at the same time.
	Stage(ctx context.Context, r io.Reader) (model.StagedLayer, error)
	// Commit puts staged layers on top of parent and of each other, in their
	// order, durably, with one wait for the disk. All are used up, also on
	// error.
	Commit(ctx context.Context, parent digest.Digest, staged []model.StagedLayer) ([]model.Layer, error)
	// Release removes a layer. Conflict while another layer or a container
	// stands on it; safe to repeat.
	Release(ctx context.Context, chain digest.Digest) error
}

// Writables keeps the writable layers. An id is a plain name.
type Writables interface {
	// Create makes a writable layer on parent; Conflict when id exists.
	Create(ctx context.Context, id string, parent digest.Digest) error
	Rootfs(id string) (model.Rootfs, error)
	// OpenRoot mounts the root of a stopped container, writable, where only
	// the returned descriptor can see it. The caller calls the function when
	// done; it closes the descriptor, too.
	OpenRoot(ctx context.Context, id string) (root *os.File, release func() error, err error)
	// Remove forgets the layer at once and frees the disk in the background.
	// Safe to repeat.
	Remove(ctx context.Context, id string) error
	// Containers gives the ids of all writable layers.
	Containers() []string
}

// Inspector tells what containers changed. They may run meanwhile.
type Inspector interface {
	// GraphDriver gives inspect's GraphDriver.Data.
	GraphDriver(id string) (map[string]string, error)
	Changes(ctx context.Context, id string) ([]model.Change, error)
	// DiffContainer gives the changes as a plain image layer tar. The caller
	// closes it.
	DiffContainer(ctx context.Context, id string) (io.ReadCloser, error)
	// Size is the bytes that the container's own files hold on disk.
	Size(ctx context.Context, id string) (int64, error)
}

// A Store is all of it.
type Store interface {
	Reader
	Writer
	Writables
	Inspector
	// Close waits for work in the background.
	Close() error
}
