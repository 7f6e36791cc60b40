package container

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/opencontainers/go-digest"

	"machine/agent/model"
)

// Images is what containers need of the image store.
type Images interface {
	// Get resolves a name, an id or a unique id prefix.
	Get(ctx context.Context, ref string) (*model.Image, error)
}

// Layers is what containers need of layer storage: a writable layer each.
type Layers interface {
	Create(ctx context.Context, id string, parent digest.Digest) error
	Rootfs(id string) (model.Rootfs, error)
	OpenRoot(ctx context.Context, id string) (*os.File, func() error, error)
	OpenImage(ctx context.Context, chain digest.Digest) (*os.File, func() error, error)
	// ImageRootfs tells how to mount an image's layers.
	ImageRootfs(chain digest.Digest) (model.Rootfs, error)
	Remove(ctx context.Context, id string) error
	Diff
}

// Diff is what a container has changed.
type Diff interface {
	Changes(ctx context.Context, id string) ([]model.Change, error)
	Size(ctx context.Context, id string) (int64, error)
	GraphDriver(id string) (map[string]string, error)
}

// Networks is what containers need of networking.
type Networks interface {
	// NewSandbox makes a network namespace; with mapped, one in a user
	// namespace of its own that has the engine's map of ids.
	NewSandbox(ctx context.Context, containerID string, mapped bool) (key string, err error)
	RemoveSandbox(ctx context.Context, key string) error
	Attach(ctx context.Context, c model.AttachConfig) (*model.Endpoint, error)
	Detach(ctx context.Context, containerID, networkID string) error
	NetworkInfo
}

// NetworkInfo answers questions about networks and names.
type NetworkInfo interface {
	// Resolve finds a network; driver is "bridge", "host", "null" ...
	Resolve(ref string) (id, name, driver string, err error)
	// ResolvConf is the content for a container, with the embedded resolver
	// where the sandbox has a network of the user's.
	ResolvConf(ctx context.Context, sandboxKey string, c model.DNSConfig, embedded bool) ([]byte, error)
	// Gateway is the address that "host-gateway" stands for.
	HostGateway() string
	// Rename changes the DNS name of a container's endpoints.
	Rename(containerID, name string)
	// Stats are the counters of a sandbox's interfaces.
	Stats(ctx context.Context, sandboxKey string) (map[string]model.LinkStats, error)
}

// Volumes is what containers need of volumes.
type Volumes interface {
	// Use makes the volume when it is absent, mounts it and counts the user.
	Use(ctx context.Context, v model.VolumeRequest, containerID string) (model.Volume, error)
	// Claim counts the user without mounting: users are not recorded.
	Claim(name, containerID string) error
	// Release drops the user's claim. Safe to repeat.
	Release(ctx context.Context, name, containerID string) error
	// Remove deletes it; a volume in use is a Conflict.
	Remove(ctx context.Context, name string) error
}

// Tasks runs containers' processes.
type Tasks interface {
	Create(ctx context.Context, b *model.Bundle) (model.Task, error)
	Load(ctx context.Context, id, dir string) (model.Task, error)
}

// Archive moves files in and out of a root directory by descriptor. With ids
// root shows the host's ids for a container's; tars hold the container's.
type Archive interface {
	// Pack packs path; as, when set, is the name that path's own gets, else it
	// is the last part of path.
	Pack(ctx context.Context, w io.Writer, root *os.File, path, as string, ids *model.IDMap) error
	// Unpack unpacks a tar into dir. What it unpacks belongs to owner; nil
	// keeps the tar's numbers.
	Unpack(ctx context.Context, root *os.File, dir string, r io.Reader, o UnpackOptions) error
	Stat(root *os.File, path string) (model.PathStat, error)
	// CopyTree copies the content and the ownership of src (a directory
	// opened under an image) into the empty directory dst, which is seen
	// with ids.
	CopyTree(ctx context.Context, root *os.File, path string, dst *os.File, ids *model.IDMap) error
}

// UnpackOptions choose how to unpack.
type UnpackOptions struct {
	NoOverwriteDirNonDir bool
	Owner                *Owner
	IDs                  *model.IDMap
}

// ReadLog reads a container's log; done is closed when its writer has ended.
type ReadLog func(ctx context.Context, c model.LogConfig, o model.LogOptions, done <-chan struct{}, f func(*model.LogRecord) error) error

// A Clock is the time; tests bring their own.
type Clock interface {
	Now() time.Time
	After(d time.Duration) <-chan time.Time
}

type wallClock struct{}

func (wallClock) Now() time.Time                         { return time.Now() }
func (wallClock) After(d time.Duration) <-chan time.Time { return time.After(d) }
