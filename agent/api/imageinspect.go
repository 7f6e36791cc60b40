package api

import (
	"encoding/json"
	"maps"
	"net/http"
	"time"

	apiimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/storage"

	"machine/agent/fault"
)

// inspectedImage is an image as clients see it, in Docker's order, with the
// fields that the API's types have dropped since.
type inspectedImage struct {
	ID              string `json:"Id"`
	RepoTags        []string
	RepoDigests     []string
	Parent          string
	Comment         string
	Created         string         `json:",omitempty"`
	Container       string         `json:",omitempty"` // before 1.45
	ContainerConfig map[string]any `json:",omitempty"` // before 1.45
	DockerVersion   string
	Author          string
	Config          map[string]any
	Architecture    string
	Variant         string `json:",omitempty"`
	Os              string
	OsVersion       string `json:",omitempty"`
	Size            int64
	VirtualSize     int64 `json:",omitempty"` // before 1.44
	GraphDriver     storage.DriverData
	RootFS          apiimage.RootFS
	Metadata        apiimage.Metadata
	Manifests       []apiimage.ManifestSummary `json:",omitempty"`
}

// configFields are an image's configuration with nothing set, as Docker shows
// it: clients index these keys.
func configFields(legacy bool) map[string]any {
	out := map[string]any{"Cmd": nil, "Entrypoint": nil, "Env": nil, "Labels": nil, "OnBuild": nil, "User": "", "Volumes": nil, "WorkingDir": ""}
	if legacy { // a container's, before 1.50
		for _, k := range []string{"AttachStderr", "AttachStdin", "AttachStdout", "OpenStdin", "StdinOnce", "Tty"} {
			out[k] = false
		}
		for _, k := range []string{"Domainname", "Hostname", "Image"} {
			out[k] = ""
		}
	}
	return out
}

// withFields is a configuration over configFields.
func withFields(config any, legacy bool) (map[string]any, error) {
	b, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	var set map[string]any
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, err
	}
	out := configFields(legacy)
	maps.Copy(out, set)
	return out, nil
}

// oldConfig are the fields of an image's configuration that no specification
// has: Docker writes and shows them.
type oldConfig struct {
	Comment         string         `json:"comment"`
	Container       string         `json:"container"`
	ContainerConfig map[string]any `json:"container_config"`
	DockerVersion   string         `json:"docker_version"`
}

func (i *imageAPI) inspect(w http.ResponseWriter, r *request) error {
	img, err := i.b.Get(r.Context(), r.vars["name"])
	if err != nil {
		return err
	}
	if err := i.provides(r, r.vars["name"]); err != nil {
		return err
	}
	var manifests []apiimage.ManifestSummary
	if r.boolean("manifests") && !r.before("1.48") {
		if r.query("platform") != "" {
			return fault.Invalid.Errorf("conflicting options: manifests and platform options cannot both be set")
		}
		manifests = i.manifests(img)
	}
	d, err := i.b.Details(r.Context(), img.ID)
	if err != nil {
		return err
	}
	var old oldConfig
	json.Unmarshal(d.Raw, &old) // only to be shown
	c := img.Config
	config, err := withFields(&c.Config, r.before("1.50"))
	if err != nil {
		return err
	}
	out := inspectedImage{
		ID: img.ID.String(), RepoTags: img.RepoTags, RepoDigests: img.Digests, Parent: string(d.Parent), Comment: old.Comment,
		DockerVersion: old.DockerVersion, Author: c.Author, Config: config,
		Architecture: c.Architecture, Variant: c.Variant, Os: c.OS, OsVersion: c.OSVersion, Size: img.Size,
		GraphDriver: storage.DriverData{Name: "overlay2", Data: i.b.Extra(img.ID, img.TopLayer).Driver},
		RootFS:      apiimage.RootFS{Type: "layers"}, Metadata: apiimage.Metadata{LastTagTime: d.LastTagged}, Manifests: manifests,
	}
	if n := len(c.History); n > 0 && out.Comment == "" {
		out.Comment = c.History[n-1].Comment
	}
	if c.Created != nil {
		out.Created = c.Created.Format(time.RFC3339Nano)
	} else if r.before("1.44") {
		out.Created = time.Time{}.Format(time.RFC3339Nano)
	}
	for _, l := range c.RootFS.DiffIDs {
		out.RootFS.Layers = append(out.RootFS.Layers, l.String())
	}
	if r.before("1.44") {
		out.VirtualSize = img.Size
	}
	if r.before("1.45") {
		out.Container = old.Container
		if out.ContainerConfig, err = withFields(old.ContainerConfig, true); err != nil {
			return err
		}
	}
	return writeJSON(w, http.StatusOK, out)
}
