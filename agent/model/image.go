package model

import (
	"os"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
)

// An Image is what a container is made from.
type Image struct {
	ID       digest.Digest // of the config
	Config   dockerspec.DockerOCIImage
	TopLayer digest.Digest // chain id of the topmost layer; empty for an image without layers
	RepoTags []string      // familiar names: "busybox:latest"
	Digests  []string      // "busybox@sha256:..."
	Size     int64         // of all layers, unpacked
	Created  time.Time
}

// ChangeKind says what a container did to a path: Docker's numbers.
type ChangeKind int

// The kinds of change.
const (
	Modified ChangeKind = iota
	Added
	Deleted
)

// A Change is a path that differs from the image.
type Change struct {
	Kind ChangeKind
	Path string // absolute
}

// PathStat describes a path in a container for the archive endpoints.
type PathStat struct {
	Name       string
	Size       int64
	Mode       os.FileMode
	Mtime      time.Time
	LinkTarget string
}

// Progress receives what long work on images says, in the form that clients
// draw. It is called from several goroutines.
type Progress func(ProgressEvent)

// A ProgressEvent is one line of progress.
type ProgressEvent struct {
	ID             string // short layer id, tag, or empty
	Status         string // "Pulling fs layer", "Downloading", ...
	Current, Total int64  // bytes; Total 0 is unknown
	Aux            any    // machine-readable result
	Stream         string // raw text instead of a status
	Plain          bool   // ID is no layer that comes along
}

// Nothing is a Progress that drops all.
func Nothing(ProgressEvent) {}

// RegistryAuth is one request's credentials for a registry. It prints as
// [redacted].
type RegistryAuth struct {
	Username, Password, IdentityToken, RegistryToken, ServerAddress string
}

// String hides the secret.
func (RegistryAuth) String() string { return "[redacted]" }

// GoString hides the secret.
func (RegistryAuth) GoString() string { return "[redacted]" }
