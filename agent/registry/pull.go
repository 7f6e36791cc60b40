package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/oci"
)

var accept = []string{strings.Join([]string{v1.MediaTypeImageIndex, oci.DockerManifestList, v1.MediaTypeImageManifest, oci.DockerManifest}, ", ")}

// unavailable is an error of the way to a registry.
func unavailable(e endpoint, err error) error {
	if fault.KindOf(err) != fault.Internal || errors.Is(err, context.Canceled) {
		return err
	}
	return fault.Unavailable.Errorf("registry %s: %w", e.base.Host, noSecrets(err))
}

// apiError reads a registry's own words. what names the object of a 404.
func apiError(resp *http.Response, what string) error {
	var body struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
		Details string `json:"details"` // token servers
	}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	json.Unmarshal(b, &body)
	text := body.Details
	if len(body.Errors) > 0 {
		text = strings.ToLower(strings.ReplaceAll(body.Errors[0].Code, "_", " "))
		if m := body.Errors[0].Message; m != "" {
			text += ": " + m
		}
	}
	if text == "" {
		text = "received unexpected HTTP status: " + resp.Status
	}
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
	if len(text) > 500 {
		text = text[:500]
	}
	if wait, ok := retryAfter(resp); ok && wait > maxBackoff && resp.StatusCode >= 400 {
		text += fmt.Sprintf(" (it wants to be asked again in %s)", wait.Round(time.Second))
	}
	begin := func(word string) string { return word + strings.TrimPrefix(text, word) } // once
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		return fault.Unauthorized.Errorf("%s", begin("unauthorized: "))
	case http.StatusForbidden:
		return fault.Forbidden.Errorf("%s", begin("denied: "))
	case http.StatusNotFound:
		if what != "" {
			text = what + " not found: " + text
		}
		return fault.NotFound.Errorf("%s", text)
	case http.StatusTooManyRequests:
		return fault.Unavailable.Errorf("%s%w", begin("toomanyrequests: "), answered{})
	}
	if resp.StatusCode >= 500 {
		return fault.Unavailable.Errorf("registry %s: %s%w", resp.Request.URL.Host, text, answered{})
	}
	return fault.Invalid.Errorf("registry %s: %s%w", resp.Request.URL.Host, text, answered{})
}

func pullScope(r repo) string { return "repository:" + r.path + ":pull" }

// Manifest gets a manifest or index. Its bytes are checked against ref's
// digest when it has one. NotFound when the registry does not have it;
// Unauthorized and Forbidden when it does not say.
func (c *Client) Manifest(ctx context.Context, ref string, auth model.RegistryAuth) ([]byte, string, error) {
	r, err := parse(ref)
	if err != nil {
		return nil, "", err
	}
	var out []byte
	var mediaType string
	err = c.each(ctx, r, false, func(e endpoint) error {
		resp, err := c.do(ctx, e, call{method: http.MethodGet, path: r.path + "/manifests/" + r.want, header: http.Header{"Accept": accept}, scope: pullScope(r), auth: auth})
		if err != nil {
			return unavailable(e, err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return apiError(resp, "manifest for "+oci.Familiar(r.Named))
		}
		b, err := oci.ReadLimited(resp.Body, oci.MaxManifest)
		if err != nil {
			return fmt.Errorf("manifest for %s: %w", oci.Familiar(r.Named), unavailable(e, err))
		}
		if err := checkManifest(r, resp, b); err != nil {
			return err
		}
		out, mediaType = b, resp.Header.Get("Content-Type")
		return nil
	})
	return out, mediaType, err
}

func checkManifest(r repo, resp *http.Response, b []byte) error {
	want := resp.Header.Get("Docker-Content-Digest")
	if strings.Contains(r.want, ":") {
		want = r.want
	}
	if want == "" {
		return nil
	}
	d, err := oci.ParseDigest(want)
	if err != nil {
		return err
	}
	if got := d.Algorithm().FromBytes(b); got != d {
		return fault.Invalid.Errorf("manifest for %s arrived as %s instead of %s: it was damaged or changed on the way", oci.Familiar(r.Named), got, d)
	}
	return nil
}

// Resolve gives the digest, size and type of what a reference names.
func (c *Client) Resolve(ctx context.Context, ref string, auth model.RegistryAuth) (v1.Descriptor, []byte, error) {
	b, mt, err := c.Manifest(ctx, ref, auth)
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	m, err := oci.ParseManifest(b, mt)
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	return v1.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: m.Size}, b, nil
}

// Blob reads a blob from offset to its end. A connection that breaks or
// stalls is taken up again where it was, a bounded number of times without
// progress. The bytes are not checked: the caller does, by d.Digest. The
// caller closes the reader.
func (c *Client) Blob(ctx context.Context, ref string, d v1.Descriptor, offset int64, auth model.RegistryAuth) (io.ReadCloser, error) {
	r, err := parse(ref)
	if err != nil {
		return nil, err
	}
	if _, err := oci.ParseDigest(string(d.Digest)); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	b := &blobReader{c: c, ctx: ctx, cancel: cancel, r: r, d: d, auth: auth, off: offset}
	if offset >= d.Size {
		return b, nil
	}
	if err := b.open(); err != nil {
		cancel()
		return nil, err
	}
	return b, nil
}

type blobReader struct {
	c      *Client
	ctx    context.Context
	cancel context.CancelFunc
	r      repo
	d      v1.Descriptor
	auth   model.RegistryAuth
	off    int64
	body   io.ReadCloser
	failed int // times in a row without a byte
	skip   int64
	watch  *time.Timer
}

// open asks for the bytes from off on. A foreign layer, which the registry may
// not have, comes from where its descriptor says.
func (b *blobReader) open() error {
	err := b.c.each(b.ctx, b.r, false, func(e endpoint) error {
		resp, err := b.c.do(b.ctx, e, call{method: http.MethodGet, path: b.r.path + "/blobs/" + b.d.Digest.String(), header: b.wanted(), scope: pullScope(b.r), auth: b.auth})
		if err != nil {
			return unavailable(e, err)
		}
		if resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && b.off > 0 { // it has no ranges: all once more
			drain(resp)
			if resp, err = b.c.do(b.ctx, e, call{method: http.MethodGet, path: b.r.path + "/blobs/" + b.d.Digest.String(), scope: pullScope(b.r), auth: b.auth}); err != nil {
				return unavailable(e, err)
			}
		}
		return b.take(e, resp)
	})
	if err != nil && len(b.d.URLs) > 0 && fault.Is(err, fault.NotFound) {
		return b.foreign(err)
	}
	return err
}

func (b *blobReader) wanted() http.Header {
	h := http.Header{}
	if b.off > 0 { // closed: some registries refuse an open range
		h.Set("Range", fmt.Sprintf("bytes=%d-%d", b.off, b.d.Size-1))
	}
	return h
}

// take has the body read from now on.
func (b *blobReader) take(e endpoint, resp *http.Response) error {
	b.skip = 0
	switch resp.StatusCode {
	case http.StatusOK:
		b.skip = b.off
		if n := resp.ContentLength; n >= 0 && n != b.d.Size {
			resp.Body.Close()
			return fault.Invalid.Errorf("blob %s has %d bytes instead of %d", b.d.Digest, n, b.d.Size)
		}
	case http.StatusPartialContent:
		if got := resp.Header.Get("Content-Range"); !strings.HasPrefix(got, fmt.Sprintf("bytes %d-", b.off)) {
			resp.Body.Close()
			return fault.Unavailable.Errorf("registry %s answered with the range %.60q", e.base.Host, got)
		}
	default:
		defer resp.Body.Close()
		return apiError(resp, "blob "+b.d.Digest.String())
	}
	b.body = resp.Body
	return nil
}

// maxURLs bounds the places that a manifest can send us to.
const maxURLs = 4

// foreign opens the first of the descriptor's URLs that has the blob: without
// credentials, which are the registry's alone, and over TLS, or the host must
// be listed as insecure. Source: descriptor.md of the OCI image spec, "urls".
func (b *blobReader) foreign(missing error) error {
	err := missing
	for _, raw := range b.d.URLs[:min(len(b.d.URLs), maxURLs)] {
		u, perr := url.Parse(raw)
		if perr != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http" {
			err = fault.Invalid.Errorf("foreign layer %s: %.200q is no place to fetch it from", b.d.Digest, raw)
			continue
		}
		e := endpoint{base: &url.URL{Scheme: u.Scheme, Host: u.Host}, insecure: b.c.IsInsecure(b.ctx, u.Host)}
		if u.Scheme == "http" && !e.insecure {
			err = fault.Forbidden.Errorf("foreign layer %s: %s is not encrypted and not among the insecure registries", b.d.Digest, u.Host)
			continue
		}
		if err = b.fetch(e, u); err == nil {
			return nil
		}
	}
	return err
}

func (b *blobReader) fetch(e endpoint, u *url.URL) error {
	h, err := b.c.client(e)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(b.ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return fault.Invalid.Errorf("foreign layer %s: %w", b.d.Digest, err)
	}
	r.Header = b.wanted()
	r.Header.Set("User-Agent", b.c.o.UserAgent)
	resp, err := h.Do(r)
	if err != nil {
		return unavailable(e, err)
	}
	return b.take(e, resp)
}

func (b *blobReader) Read(p []byte) (int, error) {
	for {
		if b.off >= b.d.Size {
			return 0, io.EOF
		}
		if b.body == nil {
			if err := b.again(); err != nil {
				// It was there before: it may be on its way back.
				if b.failed++; b.failed < tries && fault.Is(err, fault.Unavailable) && b.ctx.Err() == nil {
					continue
				}
				return 0, err
			}
		}
		n, err := b.read(p[:min(int64(len(p)), b.d.Size-b.off)])
		if n > 0 {
			b.failed = 0
			b.off += int64(n)
			return n, nil
		}
		if b.ctx.Err() != nil {
			return 0, b.ctx.Err()
		}
		if err == nil {
			continue
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		b.body.Close()
		b.body = nil
		if b.failed++; b.failed >= tries {
			return 0, fault.Unavailable.Errorf("blob %s broke off at byte %d of %d, %d times: %w", b.d.Digest, b.off, b.d.Size, b.failed, noSecrets(err))
		}
	}
}

// again waits a little and takes the download up where it was.
func (b *blobReader) again() error {
	select {
	case <-time.After(min(time.Duration(100<<b.failed)*time.Millisecond, maxBackoff)):
	case <-b.ctx.Done():
		return b.ctx.Err()
	}
	return b.open()
}

// read reads once; a body that stalls is closed under it.
func (b *blobReader) read(p []byte) (int, error) {
	body := b.body
	if b.watch == nil {
		b.watch = time.AfterFunc(stall, func() { body.Close() })
	}
	defer func() { b.watch.Stop(); b.watch = nil }()
	if b.skip > 0 {
		n, err := io.CopyN(io.Discard, body, b.skip)
		b.skip -= n
		if err != nil {
			return 0, err
		}
	}
	return body.Read(p)
}

func (b *blobReader) Close() error {
	b.cancel()
	if b.body != nil {
		b.body.Close()
		b.body = nil
	}
	return nil
}
