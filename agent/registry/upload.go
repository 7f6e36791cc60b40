package registry

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"machine/agent/fault"
	"machine/agent/model"
)

// PutBlob uploads what open gives, in one stream, and returns its descriptor:
// the digest is computed meanwhile. An upload that breaks off, that the
// registry has lost or whose token has ended meanwhile begins anew with what
// open gives then, a bounded number of times. Readers are closed by PutBlob;
// their errors end it.
func (c *Client) PutBlob(ctx context.Context, ref string, open func() (io.ReadCloser, error), auth model.RegistryAuth) (v1.Descriptor, error) {
	var out v1.Descriptor
	r, err := parse(ref)
	if err != nil {
		return out, err
	}
	u := &upload{c: c, r: r, open: open, auth: auth}
	err = c.each(ctx, r, true, func(e endpoint) (err error) {
		out, err = u.run(ctx, e)
		return err
	})
	return out, err
}

// An upload is one blob on its way to a registry.
type upload struct {
	c    *Client
	r    repo
	open func() (io.ReadCloser, error)
	auth model.RegistryAuth
}

// again is an error after which the upload may begin anew.
type again struct {
	error
	wait time.Duration
}

func (a *again) Unwrap() error { return a.error }

func (u *upload) run(ctx context.Context, e endpoint) (v1.Descriptor, error) {
	for try := 1; ; try++ {
		d, err := u.once(ctx, e, try)
		var a *again
		if !errors.As(err, &a) {
			return d, err
		}
		if try >= tries {
			return d, final(a.error)
		}
		u.c.o.Log.Debug("upload begins anew", "host", e.base.Host, "repository", u.r.path, "try", try, "wait", a.wait, "err", a.error)
		select {
		case <-time.After(a.wait):
		case <-ctx.Done():
			return d, ctx.Err()
		}
	}
}

// begin asks for a place to upload to.
func (u *upload) begin(ctx context.Context, e endpoint) (*url.URL, error) {
	resp, err := u.c.do(ctx, e, call{method: http.MethodPost, path: u.r.path + "/blobs/uploads/", scope: pushScope(u.r), auth: u.auth, body: empty})
	if err != nil {
		return nil, unavailable(e, err)
	}
	defer drain(resp)
	if resp.StatusCode/100 != 2 {
		return nil, apiError(resp, "repository "+u.r.path)
	}
	return location(e, resp)
}

func (u *upload) once(ctx context.Context, e endpoint, try int) (v1.Descriptor, error) {
	at, err := u.begin(ctx, e)
	if err != nil {
		if try > 1 && fault.Is(err, fault.Unavailable) { // it was there before
			err = &again{err, backoff(try)}
		}
		return v1.Descriptor{}, err
	}
	in, err := u.open()
	if err != nil {
		return v1.Descriptor{}, final(err)
	}
	body := &counter{in: in, h: sha256.New()}
	k := call{method: http.MethodPatch, url: at, scope: pushScope(u.r), auth: u.auth, once: true, header: http.Header{"Content-Type": {"application/octet-stream"}},
		body: func() (io.Reader, int64) { return body, -1 }}
	resp, err := u.c.do(ctx, e, k)
	read, size, sum := body.stop()
	if read != nil && read != io.EOF {
		if err == nil {
			drain(resp)
		}
		return v1.Descriptor{}, final(read)
	}
	if err != nil {
		err = fmt.Errorf("upload to %s: %w", e.base.Host, unavailable(e, err))
		if fault.Is(err, fault.Unavailable) && ctx.Err() == nil {
			err = &again{err, backoff(try)}
		}
		return v1.Descriptor{}, err
	}
	defer drain(resp)
	if resp.StatusCode/100 != 2 {
		return v1.Descriptor{}, u.refused(ctx, e, k, resp, try)
	}
	if read != io.EOF {
		return v1.Descriptor{}, fault.Internal.Errorf("registry %s answered before it had all of the upload", e.base.Host)
	}
	d := v1.Descriptor{Digest: sum, Size: size}
	return d, u.finish(ctx, e, resp, d, try)
}

// finish names the digest of what was sent.
func (u *upload) finish(ctx context.Context, e endpoint, sent *http.Response, d v1.Descriptor, try int) error {
	at, err := location(e, sent)
	if err != nil {
		return final(err)
	}
	q := at.Query()
	q.Set("digest", d.Digest.String())
	at.RawQuery = q.Encode()
	k := call{method: http.MethodPut, url: at, scope: pushScope(u.r), auth: u.auth, body: empty}
	resp, err := u.c.do(ctx, e, k)
	if err != nil {
		err = unavailable(e, err)
		if fault.Is(err, fault.Unavailable) {
			return &again{err, backoff(try)}
		}
		return err
	}
	defer drain(resp)
	if resp.StatusCode/100 != 2 {
		return u.refused(ctx, e, k, resp, try)
	}
	return nil
}

// refused judges an answer to an upload: a token that has ended is renewed, an
// upload that the registry has lost or counts otherwise is made anew.
func (u *upload) refused(ctx context.Context, e endpoint, k call, resp *http.Response, try int) error {
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		if try > 2 || resp.Request.URL.Host != e.base.Host {
			break
		}
		h, err := u.c.client(e)
		if err != nil {
			return final(err)
		}
		if err := u.c.authorize(ctx, h, e, k, resp); err != nil {
			return final(err)
		}
		return &again{fault.Unauthorized.Errorf("unauthorized: the upload to %s was refused", e.base.Host), 0}
	case http.StatusNotFound, http.StatusRequestedRangeNotSatisfiable:
		return &again{apiError(resp, "upload"), backoff(try)}
	}
	err := final(apiError(resp, "upload"))
	if wait, ok := later(resp, nil, try); ok {
		return &again{err, wait}
	}
	return err
}

func backoff(try int) time.Duration {
	return min(time.Duration(100<<try)*time.Millisecond, maxBackoff)
}

// final keeps each from trying the next endpoint.
func final(err error) error {
	if fault.Is(err, fault.Unavailable) {
		return fault.Internal.Errorf("%w", err)
	}
	return err
}

// counter takes the digest of what is read. The transport may still read when
// it has given an answer: stop ends that.
type counter struct {
	in    io.ReadCloser
	ended atomic.Bool

	mu  sync.Mutex
	h   hash.Hash
	n   int64
	err error // the reader's
}

func (c *counter) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.ended.Load() {
		return 0, cmp.Or(c.err, io.ErrClosedPipe)
	}
	n, err := c.in.Read(p)
	c.h.Write(p[:n])
	c.n += int64(n)
	if !c.ended.Load() {
		c.err = err
	}
	return n, err
}

// stop closes the reader and tells how the reading has ended, nil when it had
// not: nothing is read any more.
func (c *counter) stop() (ended error, n int64, sum digest.Digest) {
	c.ended.Store(true)
	c.in.Close() // a Read that waits for it ends
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err, c.n, digest.NewDigest(digest.SHA256, c.h)
}
