package image

import (
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"machine/agent/fault"
	"machine/agent/oci"
)

// layout loads the images of an OCI layout (image-spec, image-layout.md).
func (l *loader) layout(b []byte) ([]Loaded, error) {
	idx, err := oci.ParseManifest(b, v1.MediaTypeImageIndex)
	if err != nil {
		return nil, err
	}
	var out []Loaded
	for _, d := range idx.Manifests {
		if d.Annotations["vnd.docker.reference.type"] == "attestation-manifest" {
			continue
		}
		m, err := l.manifest(d, 0)
		if err != nil {
			return out, err
		}
		cfg, err := l.blob(m.Config)
		if err != nil {
			return out, err
		}
		if !l.wanted(cfg) {
			continue
		}
		parts := make([]part, len(m.Layers))
		for i, d := range m.Layers {
			parts[i] = part{name: "blobs/" + string(d.Digest.Algorithm()) + "/" + d.Digest.Encoded(), blob: d.Digest}
		}
		if err := l.image(cfg, parts); err != nil {
			return out, err
		}
		one, err := l.tag(digest.FromBytes(cfg), layoutNames(d.Annotations))
		if err != nil {
			return out, err
		}
		out = append(out, one)
	}
	if err := l.none(len(idx.Manifests), len(out)); err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, fault.Invalid.Errorf("archive holds no image")
	}
	return out, nil
}

// manifest finds the image's manifest for a descriptor, through indexes.
func (l *loader) manifest(d v1.Descriptor, depth int) (*oci.Manifest, error) {
	if depth > 4 {
		return nil, fault.Invalid.Errorf("indexes nest too deep")
	}
	b, err := l.blob(d)
	if err != nil {
		return nil, err
	}
	m, err := oci.ParseManifest(b, d.MediaType)
	if err != nil || !m.Index {
		return m, err
	}
	want := oci.Host()
	if l.platform != nil {
		want = *l.platform
	}
	next, err := oci.Choose(m.Manifests, want)
	if err != nil {
		return nil, err
	}
	return l.manifest(next, depth+1)
}

func (l *loader) blob(d v1.Descriptor) ([]byte, error) {
	name := "blobs/" + string(d.Digest.Algorithm()) + "/" + d.Digest.Encoded()
	b, ok := l.small[l.follow(name)]
	if !ok {
		return nil, fault.Invalid.Errorf("archive lacks %q", name)
	}
	if d.Digest.Algorithm().FromBytes(b) != d.Digest {
		return nil, fault.Invalid.Errorf("%q has another digest than its name", name)
	}
	return b, nil
}

// layoutNames reads an image's name from a layout's annotations.
func layoutNames(a map[string]string) []string {
	for _, k := range []string{"io.containerd.image.name", v1.AnnotationRefName} {
		v := a[k]
		if v == "" || k == v1.AnnotationRefName && !strings.ContainsAny(v, ":/") {
			continue // a bare tag names nothing
		}
		if n, err := oci.ParseRef(v); err == nil {
			if _, ok := n.(reference.Tagged); ok {
				return []string{v}
			}
		}
	}
	return nil
}
