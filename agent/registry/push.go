package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/oci"
)

func hubIndex() *url.URL { return &url.URL{Scheme: "https", Host: "index.docker.io"} }

func queryEscape(s string) string { return url.QueryEscape(s) }

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
		case resp.StatusCode != http.StatusNotFound:
			return apiError(resp, "")
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
	if err != nil {
		return false, unavailable(e, err)
	}
	defer drain(resp)
	if resp.StatusCode == http.StatusCreated {
		return true, nil
	}
	if resp.StatusCode == http.StatusAccepted { // it began an upload instead: give it up
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

// PutBlob uploads what r has, in one stream, and returns its descriptor: the
// digest is computed meanwhile. A failed upload is given up; it cannot be
// taken up again as r cannot be read twice.
func (c *Client) PutBlob(ctx context.Context, ref string, r io.Reader, auth model.RegistryAuth) (v1.Descriptor, error) {
	var out v1.Descriptor
	rp, err := parse(ref)
	if err != nil {
		return out, err
	}
	err = c.each(ctx, rp, true, func(e endpoint) error {
		resp, err := c.do(ctx, e, call{method: http.MethodPost, path: rp.path + "/blobs/uploads/", scope: pushScope(rp), auth: auth, body: empty})
		if err != nil {
			return unavailable(e, err)
		}
		if resp.StatusCode != http.StatusAccepted {
			defer resp.Body.Close()
			return apiError(resp, "repository "+rp.path)
		}
		drain(resp)
		u, err := location(e, resp)
		if err != nil {
			return err
		}
		out, err = c.upload(ctx, e, rp, u, r, auth)
		return err
	})
	return out, err
}

func (c *Client) upload(ctx context.Context, e endpoint, rp repo, u *url.URL, r io.Reader, auth model.RegistryAuth) (v1.Descriptor, error) {
	h := sha256.New()
	count := &counter{r: io.TeeReader(r, h)}
	k := call{method: http.MethodPatch, url: u, scope: pushScope(rp), auth: auth, once: true, header: http.Header{"Content-Type": {"application/octet-stream"}},
		body: func() (io.Reader, int64) { return count, -1 }}
	resp, err := c.do(ctx, e, k)
	// What was read cannot be read again: another endpoint is no help.
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("upload to %s: %w", e.base.Host, final(unavailable(e, err)))
	}
	if resp.StatusCode != http.StatusAccepted && resp.StatusCode != http.StatusNoContent {
		defer resp.Body.Close()
		return v1.Descriptor{}, final(apiError(resp, "upload"))
	}
	drain(resp)
	if u, err = location(e, resp); err != nil {
		return v1.Descriptor{}, final(err)
	}
	d := v1.Descriptor{Digest: digest.NewDigest(digest.SHA256, h), Size: count.n}
	q := u.Query()
	q.Set("digest", d.Digest.String())
	u.RawQuery = q.Encode()
	resp, err = c.do(ctx, e, call{method: http.MethodPut, url: u, scope: pushScope(rp), auth: auth, body: empty})
	if err != nil {
		return d, final(unavailable(e, err))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		return d, final(apiError(resp, "upload"))
	}
	return d, nil
}

// final keeps each from trying the next endpoint.
func final(err error) error {
	if fault.Is(err, fault.Unavailable) {
		return fault.Internal.Errorf("%w", err)
	}
	return err
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
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
		if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusOK {
			return apiError(resp, "repository "+oci.Familiar(r.Named))
		}
		return nil
	})
}
