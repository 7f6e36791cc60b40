package api

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	apiregistry "github.com/moby/moby/api/types/registry"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/oci"
	"machine/agent/registry"
)

// Registry answers questions about registries.
type Registry interface {
	Login(ctx context.Context, auth model.RegistryAuth) (status, identityToken string, err error)
	Search(ctx context.Context, term string, limit int, auth model.RegistryAuth) ([]registry.Found, error)
	Manifest(ctx context.Context, ref string, auth model.RegistryAuth) ([]byte, string, error)
	Blob(ctx context.Context, ref string, d v1.Descriptor, offset int64, auth model.RegistryAuth) (io.ReadCloser, error)
}

func (s *Server) distribution(o Options) {
	d := &distributionAPI{o.Registry}
	s.handle("POST", "auth", d.auth)
	s.handle("GET", "images/search", d.search)
	s.handle("GET", "distribution/{name...}/json", d.inspect)
}

type distributionAPI struct{ b Registry }

// decodeAuth reads the base64url JSON of X-Registry-Auth.
func decodeAuth(s string) model.RegistryAuth {
	var a apiregistry.AuthConfig
	s = strings.TrimRight(s, "=")
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		b, err = base64.RawStdEncoding.DecodeString(s)
	}
	if err != nil || json.Unmarshal(b, &a) != nil {
		return model.RegistryAuth{}
	}
	return authOf(a)
}

func authOf(a apiregistry.AuthConfig) model.RegistryAuth {
	if a.Username == "" && a.Auth != "" {
		if b, err := base64.StdEncoding.DecodeString(a.Auth); err == nil {
			a.Username, a.Password, _ = strings.Cut(string(b), ":")
		}
	}
	return model.RegistryAuth{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken, ServerAddress: a.ServerAddress}
}

func (d *distributionAPI) auth(w http.ResponseWriter, r *request) error {
	var a apiregistry.AuthConfig
	if err := r.readJSON(&a); err != nil {
		return err
	}
	status, token, err := d.b.Login(r.Context(), authOf(a))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, map[string]string{"Status": status, "IdentityToken": token})
}

func (d *distributionAPI) search(w http.ResponseWriter, r *request) error {
	f, err := r.filters("is-automated", "is-official", "stars")
	if err != nil {
		return err
	}
	if r.query("term") == "" {
		return fault.Invalid.Errorf("missing parameter: term")
	}
	limit, err := r.number("limit")
	if err != nil {
		return err
	}
	if limit < 0 || limit > 100 {
		return fault.Invalid.Errorf("limit %d is outside the range of [1, 100]", limit)
	}
	list, err := d.b.Search(r.Context(), r.query("term"), limit, registryAuth(r))
	if err != nil {
		return err
	}
	stars := 0
	for _, s := range f["stars"] {
		if stars, err = strconv.Atoi(s); err != nil {
			return fault.Invalid.Errorf("invalid filter 'stars=%s'", s)
		}
	}
	official, err := f.Bool("is-official", false)
	if err != nil {
		return err
	}
	automated, err := f.Bool("is-automated", false)
	if err != nil {
		return err
	}
	out := []registry.Found{}
	for _, x := range list {
		if x.StarCount < stars || len(f["is-official"]) > 0 && x.IsOfficial != official || automated { // a flag that no registry sets any more
			continue
		}
		out = append(out, x)
	}
	return writeJSON(w, http.StatusOK, out)
}

// inspect answers what a reference is in its registry.
func (d *distributionAPI) inspect(w http.ResponseWriter, r *request) error {
	auth := registryAuth(r)
	b, mt, err := d.b.Manifest(r.Context(), r.vars["name"], auth)
	if err != nil {
		return err
	}
	m, err := oci.ParseManifest(b, mt)
	if err != nil {
		return err
	}
	out := apiregistry.DistributionInspect{Descriptor: v1.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: m.Size}, Platforms: []v1.Platform{}}
	if m.Index {
		for _, x := range m.Manifests {
			if x.Platform != nil {
				out.Platforms = append(out.Platforms, *x.Platform)
			}
		}
		return writeJSON(w, http.StatusOK, out)
	}
	var p v1.Platform
	if m.Config.Size <= oci.MaxManifest {
		blob, err := d.b.Blob(r.Context(), r.vars["name"], m.Config, 0, auth)
		if err != nil {
			return err
		}
		cfg, err := oci.ReadLimited(blob, oci.MaxManifest)
		blob.Close()
		if err != nil {
			return err
		}
		if m.Config.Digest.Algorithm().FromBytes(cfg) == m.Config.Digest && oci.ParseConfig(cfg, &p) == nil {
			out.Platforms = append(out.Platforms, p)
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

// download gets the source of an import.
func download(ctx context.Context, src string, m *messages) (io.ReadCloser, error) {
	if !strings.Contains(src, "://") {
		src = "http://" + src
	}
	if !strings.HasPrefix(src, "http://") && !strings.HasPrefix(src, "https://") {
		return nil, fault.Invalid.Errorf("import: %q is no http or https address", src)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, src, nil)
	if err != nil {
		return nil, fault.Invalid.Errorf("import: %w", err)
	}
	c := &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, ResponseHeaderTimeout: time.Minute, DisableKeepAlives: true}}
	resp, err := c.Do(req)
	if err != nil {
		return nil, fault.Unavailable.Errorf("import: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fault.Unavailable.Errorf("failed to GET %s with status %s", req.URL.Redacted(), resp.Status)
	}
	m.event(model.ProgressEvent{Status: "Downloading from " + src})
	return resp.Body, nil
}
