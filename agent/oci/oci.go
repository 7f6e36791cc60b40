// Package oci holds what the OCI and Docker image formats say and no more:
// references, digests, platforms, manifests, chains of layers. It does no
// I/O.
package oci

import (
	"bytes"
	"encoding/json"
	"io"
	"regexp"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"machine/agent/fault"
)

// The media types of Docker's own formats, beside those of image-spec.
const (
	DockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	DockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	DockerConfig       = "application/vnd.docker.container.image.v1+json"
	DockerLayerGzip    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	DockerLayer        = "application/vnd.docker.image.rootfs.diff.tar"
	DockerForeignLayer = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
)

// Limits on what comes from outside.
const (
	MaxManifest = 4 << 20 // bytes of a manifest, index or configuration
	MaxLayers   = 125     // of one image, as overlayfs and Docker have it
	maxIndex    = 1000    // manifests in one index
)

// hexID is what an image id looks like.
var hexID = regexp.MustCompile(`^[a-f0-9]{64}$`)

// IsID tells whether s is 64 hexadecimal digits, which no name may be.
func IsID(s string) bool { return hexID.MatchString(s) }

// ParseRef parses what a user calls an image ("busybox", "host:5000/a/b:tag",
// "name@sha256:...") into its full form; a name without tag and digest gets
// "latest". Invalid when it is no reference, or is 64 hexadecimal digits.
func ParseRef(s string) (reference.Named, error) {
	n, err := ParseName(s)
	if err != nil {
		return nil, err
	}
	return reference.TagNameOnly(n), nil
}

// ParseName is ParseRef without the default tag.
func ParseName(s string) (reference.Named, error) {
	if len(s) > 1024 {
		return nil, fault.Invalid.Errorf("invalid reference format: longer than 1024 bytes")
	}
	n, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return nil, fault.Invalid.Errorf("%w", err)
	}
	return n, nil
}

// Familiar is the short form that users see: "busybox:latest".
func Familiar(n reference.Reference) string { return reference.FamiliarString(n) }

// ParseDigest parses a digest and refuses algorithms that this package cannot
// compute.
func ParseDigest(s string) (digest.Digest, error) {
	d, err := digest.Parse(s)
	if err != nil {
		return "", fault.Invalid.Errorf("digest %.100q: %w", s, err)
	}
	if a := d.Algorithm(); a != digest.SHA256 && a != digest.SHA512 {
		return "", fault.Invalid.Errorf("digest %.100q: algorithm %s is not supported", s, a)
	}
	return d, nil
}

// ChainID is the chain of a layer on top of parent, which is empty for the
// lowest (image-spec, config.md, "Layer ChainID").
func ChainID(parent, diff digest.Digest) digest.Digest {
	if parent == "" {
		return diff
	}
	return digest.FromString(parent.String() + " " + diff.String())
}

// Chain is the chain of all of diffs, lowest first; empty for none.
func Chain(diffs []digest.Digest) digest.Digest {
	var c digest.Digest
	for _, d := range diffs {
		c = ChainID(c, d)
	}
	return c
}

// A Manifest is a parsed manifest, one of the two kinds: an image's, with
// Config and Layers, or an index, with Manifests.
type Manifest struct {
	MediaType string
	Digest    digest.Digest // of the bytes parsed
	Size      int64
	Config    v1.Descriptor
	Layers    []v1.Descriptor
	Manifests []v1.Descriptor // of an index
	Index     bool
}

func manifestType(s string) bool {
	return s == v1.MediaTypeImageManifest || s == v1.MediaTypeImageIndex || s == DockerManifest || s == DockerManifestList
}

// ParseManifest parses a manifest or index. mediaType is what the registry
// called it; it may be empty, and must not contradict what the bytes say
// (CVE-2021-41190). Invalid when they are no manifest that can be used.
func ParseManifest(b []byte, mediaType string) (*Manifest, error) {
	if len(b) > MaxManifest {
		return nil, fault.Invalid.Errorf("manifest of %d bytes is larger than %d", len(b), MaxManifest)
	}
	var raw struct {
		specs.Versioned
		MediaType string          `json:"mediaType"`
		Config    *v1.Descriptor  `json:"config"`
		Layers    []v1.Descriptor `json:"layers"`
		Manifests []v1.Descriptor `json:"manifests"`
		FSLayers  json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(b, &raw); err != nil {
		return nil, fault.Invalid.Errorf("parse manifest: %w", err)
	}
	mediaType, _, _ = strings.Cut(mediaType, ";")
	mediaType = strings.TrimSpace(mediaType)
	m := &Manifest{MediaType: raw.MediaType, Digest: digest.FromBytes(b), Size: int64(len(b)), Layers: raw.Layers, Manifests: raw.Manifests}
	switch {
	case raw.SchemaVersion == 1 || raw.FSLayers != nil:
		return nil, fault.Invalid.Errorf("manifest schema 1 is no longer supported: push the image again with a current tool")
	case raw.SchemaVersion != 2:
		return nil, fault.Invalid.Errorf("manifest has unknown schema version %d", raw.SchemaVersion)
	case raw.Config != nil && raw.Manifests != nil:
		return nil, fault.Invalid.Errorf("manifest is an image and an index at once")
	case raw.Config == nil && raw.Manifests == nil && raw.Layers != nil:
		return nil, fault.Invalid.Errorf("manifest has no config")
	case raw.Config == nil:
		m.Index = true
	default:
		m.Config = *raw.Config
	}
	if m.MediaType == "" && manifestType(mediaType) { // a server that knows no better says text/plain
		m.MediaType = mediaType
	}
	if m.MediaType == "" {
		m.MediaType = v1.MediaTypeImageManifest
		if m.Index {
			m.MediaType = v1.MediaTypeImageIndex
		}
	}
	if isIndex := m.MediaType == v1.MediaTypeImageIndex || m.MediaType == DockerManifestList; isIndex != m.Index {
		return nil, fault.Invalid.Errorf("manifest of type %s has the content of another type", m.MediaType)
	}
	if len(m.Manifests) > maxIndex || len(m.Layers) > 2*maxIndex {
		return nil, fault.Invalid.Errorf("manifest names %d parts: too many", len(m.Manifests)+len(m.Layers))
	}
	return m, m.check()
}

func (m *Manifest) check() error {
	all := append(append([]v1.Descriptor(nil), m.Layers...), m.Manifests...)
	if !m.Index {
		all = append(all, m.Config)
	}
	for _, d := range all {
		if _, err := ParseDigest(string(d.Digest)); err != nil {
			return err
		}
		if d.Size < 0 {
			return fault.Invalid.Errorf("manifest part %s has size %d", d.Digest, d.Size)
		}
	}
	return nil
}

// ParseConfig parses an image configuration into v, which is a pointer to a
// struct. Invalid when b is too large or no JSON object.
func ParseConfig(b []byte, v any) error {
	if len(b) > MaxManifest {
		return fault.Invalid.Errorf("image configuration of %d bytes is larger than %d", len(b), MaxManifest)
	}
	if t := bytes.TrimLeft(b, " \t\r\n"); len(t) == 0 || t[0] != '{' {
		return fault.Invalid.Errorf("image configuration is no JSON object")
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fault.Invalid.Errorf("parse image configuration: %w", err)
	}
	return nil
}

// ReadLimited reads all of r, at most limit bytes: more is Invalid.
func ReadLimited(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fault.Invalid.Errorf("more than %d bytes", limit)
	}
	return b, nil
}
