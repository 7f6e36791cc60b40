package api

import (
	"encoding/json"
	"strings"

	apiimage "github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/oci"
)

// platforms reads what image requests may ask for: "platform", or for
// removals "platforms", each a JSON object.
func platforms(r *request) (out []v1.Platform, err error) {
	q := r.URL.Query()
	for _, s := range append(q["platform"], q["platforms"]...) {
		if s == "" {
			continue
		}
		var p v1.Platform
		if err := json.Unmarshal([]byte(s), &p); err != nil {
			return nil, fault.Invalid.Errorf("invalid platform: %w", err)
		}
		out = append(out, p)
	}
	return out, nil
}

// platform is the one platform that is asked for, or nil.
func platform(r *request) (*v1.Platform, error) {
	list, err := platforms(r)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	if len(list) > 1 {
		return nil, fault.Invalid.Errorf("one platform at a time: images here are for one")
	}
	return &list[0], nil
}

// provides refuses a request for a platform that an image is not for. An
// image here is for one platform, that which was pulled or loaded.
func (i *imageAPI) provides(r *request, name string) error {
	list, err := platforms(r)
	if err != nil || len(list) == 0 {
		return err
	}
	img, err := i.b.Get(r.Context(), name)
	if err != nil {
		return err
	}
	for _, p := range list {
		if !oci.Matches(p, img.Config.Platform) {
			return fault.NotFound.Errorf("image with reference %s was found but does not provide the specified platform (%s)", name, oci.FormatPlatform(p))
		}
	}
	return nil
}

// manifests is the one image that an image here is. Its compressed content is
// not kept, so that has no size.
func (i *imageAPI) manifests(img *model.Image) []apiimage.ManifestSummary {
	d := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: img.ID, Platform: &img.Config.Platform}
	if len(img.Digests) > 0 {
		_, s, _ := strings.Cut(img.Digests[0], "@")
		d.Digest = digest.Digest(s)
	}
	m := apiimage.ManifestSummary{ID: d.Digest.String(), Descriptor: d, Available: true, Kind: apiimage.ManifestKindImage}
	m.Size.Total = img.Size
	m.ImageData = &apiimage.ImageProperties{Platform: img.Config.Platform, Containers: i.b.Extra(img.ID, img.TopLayer).Containers}
	m.ImageData.Size.Unpacked = img.Size
	if m.ImageData.Containers == nil {
		m.ImageData.Containers = []string{}
	}
	return []apiimage.ManifestSummary{m}
}
