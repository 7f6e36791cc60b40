package registry

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/oci"
)

func hubIndex() *url.URL { return &url.URL{Scheme: "https", Host: "index.docker.io"} }

func pushScope(r repo) string { return "repository:" + r.path + ":pull,push" }

// HasBlob asks whether the registry has a blob for a repository. With from,
// another repository's path of the same registry, it asks to mount it from
// there; then mounted tells that it did.
func (c *Client) HasBlob(ctx context.Context, ref string, d v1.Descriptor, from string, auth model.RegistryAuth) (has, mounted bool, err error) {
	r, err := parse(ref)
	if err != nil {
		return false, false, err
	}
	err = c.each(ctx, r, true, func(e endpoint) error {
		resp, err := c.do(ctx, e, call{method: http.MethodHead, path: r.path + "/blobs/" + d.Digest.String(), scope: pushScope(r), auth: auth})
		if err != nil {
			return unavailable(e, err)
		}
		drain(resp)
		switch {
		case resp.StatusCode == http.StatusOK:
			has = true
			return nil
		case resp.StatusCode >= http.StatusInternalServerError || resp.StatusCode == http.StatusTooManyRequests:
			return apiError(resp, "")
		// Other answers mean no: a registry may know no HEAD (405), and who
		// is refused learns why by the upload, whose answer has a body.
		case from == "" || from == r.path:
			return nil
		}
		mounted, err = c.mount(ctx, e, r, d, from, auth)
		has = mounted
		return err
	})
	return has, mounted, err
}

func (c *Client) mount(ctx context.Context, e endpoint, r repo, d v1.Descriptor, from string, auth model.RegistryAuth) (bool, error) {
	q := url.Values{"mount": {d.Digest.String()}, "from": {from}}
	resp, err := c.do(ctx, e, call{method: http.MethodPost, path: r.path + "/blobs/uploads/?" + q.Encode(), scope: pushScope(r) + " repository:" + from + ":pull", auth: auth, body: empty})
	if k := fault.KindOf(err); k == fault.Unauthorized || k == fault.Forbidden || k == fault.NotFound {
		return false, nil // the other repository is not ours to read
	}
	if err != nil {
		return false, unavailable(e, err)
	}
	defer drain(resp)
	if resp.StatusCode == http.StatusCreated {
		return true, nil
	}
	if resp.StatusCode/100 == 2 { // it began an upload instead: give it up
		if u, err := location(e, resp); err == nil {
			if resp, err := c.do(ctx, e, call{method: http.MethodDelete, url: u, scope: pushScope(r), auth: auth}); err == nil {
				drain(resp)
			}
		}
	}
	return false, nil // not having mounted is no failure
}

func empty() (io.Reader, int64) { return http.NoBody, 0 }

// location is where an upload goes on. It may not leave the registry's host:
// the token goes with it.
func location(e endpoint, resp *http.Response) (*url.URL, error) {
	u, err := resp.Location()
	if err != nil {
		return nil, fault.Unavailable.Errorf("registry %s does not say where to upload", e.base.Host)
	}
	if u.Scheme != "https" && u.Scheme != "http" || e.base.Scheme == "https" && u.Scheme == "http" && u.Host != e.base.Host {
		return nil, fault.Forbidden.Errorf("registry %s sends uploads to %s", e.base.Host, u.Redacted())
	}
	if u.Host == e.base.Host {
		u.Scheme = e.base.Scheme // behind a proxy that ends TLS
	}
	return u, nil
}

// PutManifest uploads a manifest under ref's tag or digest.
func (c *Client) PutManifest(ctx context.Context, ref string, b []byte, mediaType string, auth model.RegistryAuth) error {
	r, err := parse(ref)
	if err != nil {
		return err
	}
	return c.each(ctx, r, true, func(e endpoint) error {
		resp, err := c.do(ctx, e, call{method: http.MethodPut, path: r.path + "/manifests/" + r.want, scope: pushScope(r), auth: auth,
			header: http.Header{"Content-Type": {mediaType}}, body: func() (io.Reader, int64) { return bytes.NewReader(b), int64(len(b)) }})
		if err != nil {
			return unavailable(e, err)
		}
		defer resp.Body.Close()
		if resp.StatusCode/100 != 2 {
			return apiError(resp, "repository "+oci.Familiar(r.Named))
		}
		return nil
	})
}
