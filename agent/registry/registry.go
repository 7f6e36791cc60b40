// Package registry is a client of image registries (OCI distribution-spec):
// manifests and blobs in and out, with mirrors, resumed downloads and
// Docker's ways to log in.
//
// Credentials go to the registry that they are for and to its token server,
// never to a mirror, never along a redirect to another host, and never over
// plain HTTP unless the user has called the registry insecure.
package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/oci"
)

// Options are Docker's settings of the same names.
type Options struct {
	Mirrors  []string // base URLs that are asked before Docker Hub
	Insecure []string // "host", "host:port" or CIDR: plain HTTP and unknown certificates are accepted. Loopback always is.
	// CertsDir holds a folder per HOST[:PORT] with *.crt (authorities) and
	// *.cert with *.key (client certificates); empty is /etc/docker/certs.d.
	CertsDir  string
	UserAgent string
	Proxy     func(*http.Request) (*url.URL, error) // nil is that of the environment
	Log       *slog.Logger
}

// A Client talks to all registries. It is safe for concurrent use.
type Client struct {
	o Options

	mu    sync.Mutex
	trust                         // as it was last set
	hosts map[string]*http.Client // by host and whether certificates are checked
	certs map[string]string       // what certificates the client of a host was made with
	away  map[string]time.Time    // mirrors, and when they did not answer
	plain map[string]bool         // insecure hosts that were found to speak HTTP
	token map[string]token
}

// How long things may take.
const (
	tries       = 5
	stall       = 60 * time.Second // without a byte
	maxBackoff  = 20 * time.Second
	hubDomain   = "docker.io"
	hubEndpoint = "registry-1.docker.io"
)

// New makes a client. Invalid when a setting is.
func New(o Options) (*Client, error) {
	if o.CertsDir == "" {
		o.CertsDir = "/etc/docker/certs.d"
	}
	if o.Proxy == nil {
		o.Proxy = http.ProxyFromEnvironment
	}
	c := &Client{o: o, hosts: map[string]*http.Client{}, certs: map[string]string{}, token: map[string]token{}}
	return c, c.Set(o.Mirrors, o.Insecure)
}

// Close drops idle connections.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.hosts {
		h.CloseIdleConnections()
	}
}

// An endpoint is one place where a repository can be reached.
type endpoint struct {
	base     *url.URL // scheme, host, and a mirror's path
	insecure bool
	mirror   bool
}

// endpoints gives where to look for a repository, best first.
func (c *Client) endpoints(ctx context.Context, domain string, push bool) []endpoint {
	var list []endpoint
	if domain == hubDomain {
		var away []endpoint // asked last: each of a pull's requests would wait for them
		for _, u := range c.mirrorsNow() {
			if push {
				continue
			}
			e := endpoint{base: u, insecure: u.Scheme == "http" || c.IsInsecure(ctx, u.Host), mirror: true}
			if c.isAway(e) {
				away = append(away, e)
			} else {
				list = append(list, e)
			}
		}
		return append(append(list, endpoint{base: &url.URL{Scheme: "https", Host: hubEndpoint}}), away...)
	}
	https := endpoint{base: &url.URL{Scheme: "https", Host: domain}}
	if !c.IsInsecure(ctx, domain) {
		return []endpoint{https}
	}
	https.insecure = true
	http := endpoint{base: &url.URL{Scheme: "http", Host: domain}, insecure: true}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.plain[domain] {
		return []endpoint{http}
	}
	return []endpoint{https, http}
}

// A call is one request to a registry.
type call struct {
	method string
	path   string   // below /v2/
	url    *url.URL // instead of path
	header http.Header
	body   func() (io.Reader, int64) // nil: none; must start anew each time
	scope  string
	auth   model.RegistryAuth
	once   bool // the body cannot be sent twice
	// refresh, when set, gets the identity token that a token server gives.
	refresh *string
}

// do makes a call at one endpoint: with a token when one is asked for, and
// again after answers that say "later". The caller closes the body.
func (c *Client) do(ctx context.Context, e endpoint, k call) (*http.Response, error) {
	h, err := c.client(e)
	if err != nil {
		return nil, err
	}
	var challenged bool
	for try := 1; ; try++ {
		resp, err := c.once(ctx, h, e, k)
		if ctx.Err() != nil {
			if err == nil {
				resp.Body.Close()
			}
			return nil, ctx.Err()
		}
		if err == nil && resp.StatusCode == http.StatusUnauthorized && !challenged && !k.once && resp.Request.URL.Host == e.base.Host {
			challenged = true
			err := c.authorize(ctx, h, e, k, resp)
			drain(resp)
			if err != nil {
				return nil, err
			}
			try--
			continue
		}
		wait, again := later(resp, err, try)
		if !again || try >= tries || k.once {
			return resp, err
		}
		if err == nil {
			drain(resp)
		}
		c.o.Log.Debug("registry asked to wait", "host", e.base.Host, "path", k.path, "try", try, "wait", wait, "err", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// later tells whether to try again, and when.
func later(resp *http.Response, err error, try int) (time.Duration, bool) {
	wait := min(time.Duration(200<<try)*time.Millisecond, maxBackoff)
	if err != nil {
		var op *net.OpError
		var dns *net.DNSError
		var cert *tls.CertificateVerificationError
		var rec tls.RecordHeaderError
		var alert tls.AlertError
		switch {
		case errors.As(err, &cert), errors.As(err, &rec), errors.As(err, &alert), fault.KindOf(err) != fault.Internal:
			return 0, false
		case errors.As(err, &dns):
			return wait, dns.IsTemporary && !dns.IsNotFound && try < 3 && !strings.Contains(dns.Err, "unreachable") // a computer without a network
		case errors.As(err, &op) && (op.Op == "dial" || op.Op == "proxyconnect" || op.Op == "remote error"):
			return 0, false // nobody there, or it refused us: say so at once
		case notTLS(err):
			return 0, false
		}
		return wait, true
	}
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusRequestTimeout:
		if asked, ok := retryAfter(resp); ok {
			// Who is to wait for long is told so; to come earlier is no use.
			return asked, asked <= maxBackoff
		}
		return wait, true
	}
	return 0, false
}

// retryAfter reads how long a server wants to be left alone (RFC 9110, 10.2.3).
func retryAfter(resp *http.Response) (time.Duration, bool) {
	after := resp.Header.Get("Retry-After")
	if s, err := strconv.ParseUint(after, 10, 24); err == nil {
		return time.Duration(s) * time.Second, true
	}
	at, err := http.ParseTime(after)
	return max(time.Until(at), 0), err == nil
}

// notTLS tells of an error whether it is a server's that speaks plain HTTP.
func notTLS(err error) bool {
	var rec tls.RecordHeaderError
	return errors.As(err, &rec) || strings.Contains(err.Error(), "server gave HTTP response to HTTPS client")
}

func drain(resp *http.Response) {
	io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	resp.Body.Close()
}

func (c *Client) once(ctx context.Context, h *http.Client, e endpoint, k call) (*http.Response, error) {
	u := k.url
	if u == nil {
		path, query, _ := strings.Cut(k.path, "?")
		u = e.base.JoinPath("v2", path)
		if strings.HasSuffix(path, "/") && !strings.HasSuffix(u.Path, "/") {
			u.Path += "/"
		}
		u.RawQuery = query
	}
	var body io.Reader
	size := int64(0)
	if k.body != nil {
		body, size = k.body()
	}
	req, err := http.NewRequestWithContext(ctx, k.method, u.String(), body)
	if err != nil {
		return nil, fault.Invalid.Errorf("registry %s: %w", e.base.Host, err)
	}
	if body != nil {
		req.ContentLength = size
	}
	for n, v := range k.header {
		req.Header[n] = v
	}
	req.Header.Set("User-Agent", c.o.UserAgent)
	if u.Host == e.base.Host && u.Scheme == e.base.Scheme {
		c.setAuth(req, e, k)
	}
	return h.Do(req)
}

// repo is a parsed reference.
type repo struct {
	reference.Named
	domain, path string
	want         string // tag or digest
}

func parse(ref string) (repo, error) {
	n, err := oci.ParseRef(ref)
	if err != nil {
		return repo{}, err
	}
	r := repo{Named: n, domain: reference.Domain(n), path: reference.Path(n)}
	if t, ok := n.(reference.Tagged); ok {
		r.want = t.Tag()
	}
	if d, ok := n.(reference.Digested); ok {
		r.want = d.Digest().String()
	}
	return r, nil
}

// each tries the endpoints of a repository until one answers to f's liking.
// Mirrors may fail in any way; the registry's own error counts.
func (c *Client) each(ctx context.Context, r repo, push bool, f func(endpoint) error) error {
	list := c.endpoints(ctx, r.domain, push)
	var first error
	for _, e := range list {
		err := f(e)
		if err == nil {
			if e.insecure && e.base.Scheme == "http" && !e.mirror {
				c.mu.Lock()
				c.plain[r.domain] = true
				c.mu.Unlock()
			}
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if e.mirror {
			c.missed(e, err)
			c.o.Log.Warn("registry mirror passed over", "mirror", e.base.Redacted(), "image", r.String(), "err", err)
			continue
		}
		if first == nil || notTLS(first) { // what is said in plain HTTP tells more
			first = err
		}
		if k := fault.KindOf(err); e.base.Scheme == "http" && (k == fault.Unavailable || k == fault.Invalid) { // it may speak TLS now
			c.mu.Lock()
			delete(c.plain, r.domain)
			c.mu.Unlock()
		}
		// Plain HTTP may work where TLS does not, and a mirror that was away.
		if fault.KindOf(err) != fault.Unavailable || errors.Is(err, answered{}) && r.domain != hubDomain {
			return err
		}
	}
	return first
}

// awayFor is how long a mirror that did not answer is asked last.
const awayFor = time.Minute

func (c *Client) isAway(e endpoint) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Since(c.away[e.base.String()]) < awayFor
}

// missed remembers a mirror that did not answer; one that has not what was
// asked for is none.
func (c *Client) missed(e endpoint, err error) {
	if fault.Is(err, fault.Unavailable) {
		c.mu.Lock()
		c.away[e.base.String()] = time.Now()
		c.mu.Unlock()
	}
}

// answered is in errors that are a server's own answer.
type answered struct{}

func (answered) Error() string { return "" }
