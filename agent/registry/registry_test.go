package registry

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/oci"
	"machine/agent/registry/registrytest"
)

var (
	bg   = context.Background()
	user = model.RegistryAuth{Username: "canary-user", Password: "canary-secret"}
)

func client(t *testing.T, o Options) *Client {
	t.Helper()
	if o.CertsDir == "" {
		o.CertsDir = t.TempDir()
	}
	o.Log = slog.New(slog.DiscardHandler)
	o.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestManifestAndBlob(t *testing.T) {
	for _, overTLS := range []bool{false, true} {
		r := registrytest.New(t, overTLS)
		d := r.Image(t, "a/b", "v1", []byte("layer"))
		c := client(t, Options{})
		b, mt, err := c.Manifest(bg, r.Host+"/a/b:v1", model.RegistryAuth{})
		if err != nil || digest.FromBytes(b) != d {
			t.Fatalf("tls=%v: %v", overTLS, err)
		}
		m, err := oci.ParseManifest(b, mt)
		if err != nil {
			t.Fatal(err)
		}
		for _, off := range []int64{0, 3, m.Layers[0].Size} {
			rd, err := c.Blob(bg, r.Host+"/a/b", m.Layers[0], off, model.RegistryAuth{})
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(rd)
			rd.Close()
			if want := r.Blobs[m.Layers[0].Digest][off:]; err != nil || !bytes.Equal(got, want) {
				t.Errorf("from %d: %d bytes of %d, %v", off, len(got), len(want), err)
			}
		}
		if _, _, err := c.Manifest(bg, r.Host+"/a/b:none", model.RegistryAuth{}); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "manifest unknown") {
			t.Errorf("none: %v", err)
		}
	}
}

func TestPushBlob(t *testing.T) {
	r := registrytest.New(t, false)
	r.Token = "tok"
	c := client(t, Options{})
	data := bytes.Repeat([]byte("x"), 3<<20)
	d, err := c.PutBlob(bg, r.Host+"/a/b:v1", func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }, model.RegistryAuth{})
	if err != nil || d.Digest != digest.FromBytes(data) || d.Size != int64(len(data)) || !bytes.Equal(r.Blobs[d.Digest], data) {
		t.Fatalf("got %+v, %v", d, err)
	}
	if has, _, err := c.HasBlob(bg, r.Host+"/a/b:v1", d, "", model.RegistryAuth{}); !has || err != nil {
		t.Errorf("has %v, %v", has, err)
	}
}

// elsewhere is another host, which must not see credentials.
func elsewhere(t *testing.T) (*registrytest.Registry, func()) {
	other := registrytest.New(t, false)
	other.Token = "from-elsewhere"
	return other, func() {
		t.Helper()
		for _, q := range other.Seen() {
			if a := q.Header.Get("Authorization"); a != "" || strings.Contains(q.URL.String(), "canary") {
				t.Errorf("another host got %s %s with %q", q.Method, q.URL, a)
			}
		}
	}
}

// The tests of S32: credentials are for the registry and its own token server
// only.

func TestS32RealmElsewhere(t *testing.T) {
	other, check := elsewhere(t)
	r := registrytest.New(t, false)
	r.Image(t, "x", "1", []byte("l"))
	r.Token, r.TokenRealm = "from-elsewhere", strings.Replace(other.URL, "127.0.0.1", "localhost", 1)+"/token"
	c := client(t, Options{})
	if _, _, err := c.Manifest(bg, r.Host+"/x:1", user); err != nil {
		t.Error(err)
	}
	if len(other.Seen()) == 0 {
		t.Error("the token server was not asked at all")
	}
	check()
	other.SetFault(func(w http.ResponseWriter, q *http.Request) bool { w.WriteHeader(http.StatusUnauthorized); return true })
	if _, _, err := client(t, Options{}).Manifest(bg, r.Host+"/x:1", user); err == nil || !strings.Contains(err.Error(), "the credentials were not shown to it") {
		t.Errorf("no hint: %v", err)
	}
	check()
}

func TestS32RealmOverHTTP(t *testing.T) {
	r := registrytest.New(t, true)
	r.Token, r.TokenRealm = "t", "http://198.51.100.1/token"
	if _, _, err := client(t, Options{}).Manifest(bg, r.Host+"/x:1", user); !fault.Is(err, fault.Forbidden) {
		t.Errorf("got %v", err)
	}
}

func TestS32RedirectElsewhere(t *testing.T) {
	other, check := elsewhere(t)
	r := registrytest.New(t, false)
	r.User, r.Password = user.Username, user.Password
	d := other.Blob([]byte("hello"), "")
	other.Token = ""
	r.Fault = func(w http.ResponseWriter, q *http.Request) bool {
		if strings.Contains(q.URL.Path, "/blobs/") && q.Header.Get("Authorization") != "" {
			http.Redirect(w, q, other.URL+"/v2/y/blobs/"+d.Digest.String(), http.StatusTemporaryRedirect)
			return true
		}
		return false
	}
	rd, err := client(t, Options{}).Blob(bg, r.Host+"/x:1", d, 0, user)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	if b, err := io.ReadAll(rd); err != nil || string(b) != "hello" {
		t.Errorf("got %q, %v", b, err)
	}
	check()
}

func TestS32Mirror(t *testing.T) {
	mirror := registrytest.New(t, false)
	mirror.User = "somebody"
	c := client(t, Options{Mirrors: []string{mirror.URL}})
	ctx, cancel := context.WithTimeout(bg, 3*time.Second)
	defer cancel()
	c.hosts[fmt.Sprint(hubEndpoint, false)] = &http.Client{Transport: refuse{}} // the hub is not there
	c.Manifest(ctx, "busybox", user)
	for _, q := range mirror.Seen() {
		if q.Header.Get("Authorization") != "" {
			t.Error("a mirror got the hub's credentials")
		}
	}
	if len(mirror.Seen()) == 0 {
		t.Error("the mirror was not asked")
	}
}

func TestS32NoHTTP(t *testing.T) {
	c := client(t, Options{})
	list := c.endpoints(bg, "registry.example.com", false)
	if len(list) != 1 || list[0].base.Scheme != "https" || list[0].insecure {
		t.Errorf("got %+v", list)
	}
	r := httptest.NewRequest("GET", "http://registry.example.com/x", nil)
	via := httptest.NewRequest("GET", "https://registry.example.com/x", nil)
	if err := checkRedirect(r, []*http.Request{via}); err == nil {
		t.Error("a redirect to plain http was followed")
	}
}

type refuse struct{}

func (refuse) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, fault.Unavailable.Errorf("nobody is there")
}

func TestTrusts(t *testing.T) {
	for _, c := range []struct {
		host, realm string
		want        bool
	}{
		{"registry-1.docker.io", "auth.docker.io", true}, {"registry.gitlab.com", "gitlab.com", true}, {"ghcr.io", "ghcr.io", true},
		{"registry.example.co.uk", "evil.co.uk", false}, {"registry.example.co.uk", "auth.example.co.uk", true}, {"ghcr.io", "evil.io", false},
		{"10.0.0.1:5000", "10.0.0.1:6000", true}, {"10.0.0.1", "10.0.0.2", false}, {"quay.io", "evilquay.io", false}, {"quay.io", "auth.quay.io", true},
		{"registry.example.com", "example.com.evil.org", false}, {"localhost:5000", "localhost:5001", true}, {"localhost:5000", "127.0.0.1:5001", false}, {"registry.lan:5000", "auth.lan", true}, {"registry.lan", "lan.evil.io", false}, {"mine.github.io", "evil.github.io", false}, {"r.eu.example.com", "auth.us.example.com", true}, {"registry:5000", "registry:5001", true},
	} {
		if got := trusts(c.host, c.realm); got != c.want {
			t.Errorf("%s and %s: got %v", c.host, c.realm, got)
		}
	}
}

// TestS33Secrets: no error and no printed value holds the password.
func TestS33Secrets(t *testing.T) {
	r := registrytest.New(t, false)
	r.Fault = func(w http.ResponseWriter, q *http.Request) bool {
		w.Header().Set("Www-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	var log bytes.Buffer
	c, err := New(Options{CertsDir: t.TempDir(), Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = c.Manifest(bg, r.Host+"/x:1", user)
	if !fault.Is(err, fault.Unauthorized) {
		t.Errorf("got %v", err)
	}
	all := fmt.Sprintf("%v %s %+v %#v %v", err, log.String(), user, user, c.token)
	if strings.Contains(all, "canary-secret") {
		t.Errorf("the password shows: %s", all)
	}
}

// TestS34BadCertificate: a registry that cannot prove who it is gets refused,
// unless its authority is in certs.d.
func TestS34BadCertificate(t *testing.T) {
	r := registrytest.New(t, true)
	r.Image(t, "x", "1", []byte("l"))
	dir := t.TempDir()
	c := client(t, Options{CertsDir: dir})
	c.insecure = nil // loopback would be believed
	_, _, err := c.Manifest(bg, r.Host+"/x:1", user)
	if err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("got %v", err)
	}
	if n := len(r.Seen()); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
	os.Mkdir(filepath.Join(dir, r.Host), 0o755)
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate().Raw})
	os.WriteFile(filepath.Join(dir, r.Host, "ca.crt"), cert, 0o644)
	c = client(t, Options{CertsDir: dir})
	c.insecure = nil
	if _, _, err := c.Manifest(bg, r.Host+"/x:1", model.RegistryAuth{}); err != nil {
		t.Errorf("with its authority: %v", err)
	}
}

// TestS26Manifests: null, huge and lying manifests are errors of the kind
// that the caller can understand.
func TestS26Manifests(t *testing.T) {
	r := registrytest.New(t, false)
	c := client(t, Options{})
	fine := []byte(`{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageManifest + `","config":{"mediaType":"` + v1.MediaTypeImageConfig + `","digest":"sha256:` + strings.Repeat("a", 64) + `","size":5},"layers":[]}`)
	if _, err := oci.ParseManifest(fine, v1.MediaTypeImageManifest); err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string][]byte{
		"null": []byte("null"), "empty": nil, "array": []byte("[]"), "huge": append(fine, bytes.Repeat([]byte(" "), oci.MaxManifest+1-len(fine))...),
		"both": []byte(`{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}`), "schema 1": []byte(`{"schemaVersion":1,"fsLayers":[]}`),
		"bad digest": []byte(`{"schemaVersion":2,"config":{"digest":"sha256:../../x"},"layers":[]}`),
		"negative":   []byte(`{"schemaVersion":2,"config":{"digest":"sha256:` + strings.Repeat("a", 64) + `","size":-5},"layers":[]}`),
		"deep":       append(bytes.Repeat([]byte(`[`), 1<<20), bytes.Repeat([]byte(`]`), 1<<20)...),
	} {
		r.Manifests["x:1"] = registrytest.Manifest{Type: v1.MediaTypeImageManifest, Body: body}
		b, mt, err := c.Manifest(bg, r.Host+"/x:1", model.RegistryAuth{})
		if err == nil {
			_, err = oci.ParseManifest(b, mt)
		}
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.Manifests["x:1"] = registrytest.Manifest{Type: v1.MediaTypeImageIndex, Body: []byte(`{"schemaVersion":2,"config":{"digest":"sha256:` + strings.Repeat("a", 64) + `"},"layers":[]}`)}
	b, mt, _ := c.Manifest(bg, r.Host+"/x:1", model.RegistryAuth{})
	if _, err := oci.ParseManifest(b, mt); !fault.Is(err, fault.Invalid) {
		t.Errorf("an image called an index: %v", err)
	}
}

var data = bytes.Repeat([]byte("0123456789"), 50_000)

// misbehave answers the nth request, or not.
type misbehave func(n int, w http.ResponseWriter, q *http.Request) bool

// get fetches data from a registry that misbehaves.
func get(t *testing.T, f misbehave) (b []byte, n int, err error) {
	t.Helper()
	r := registrytest.New(t, false)
	d := r.Blob(data, "")
	r.Fault = func(w http.ResponseWriter, q *http.Request) bool { n++; return f(n, w, q) }
	rd, err := client(t, Options{}).Blob(bg, r.Host+"/x:1", d, 0, model.RegistryAuth{})
	if err != nil {
		return nil, n, err
	}
	defer rd.Close()
	b, err = io.ReadAll(rd)
	return b, n, err
}

// cut sends n bytes from from on, promises all, and hangs up.
func cut(w http.ResponseWriter, from, n int) {
	w.Header().Set("Content-Length", fmt.Sprint(len(data)-from))
	if from > 0 {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
		w.WriteHeader(http.StatusPartialContent)
	}
	w.Write(data[from : from+n])
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

// TestF35RegistryFails: a blob comes whole from a registry that fails now and
// then.
func TestF35RegistryFails(t *testing.T) {
	for name, f := range map[string]misbehave{
		"cut": func(n int, w http.ResponseWriter, q *http.Request) bool {
			var from int
			fmt.Sscanf(q.Header.Get("Range"), "bytes=%d-", &from)
			if n <= 4 {
				cut(w, from, 1000)
			}
			return false
		},
		"429 and 503": func(n int, w http.ResponseWriter, q *http.Request) bool {
			if n < 3 {
				w.Header().Set("Retry-After", "0")
				w.WriteHeader([]int{429, 503}[n-1])
			}
			return n < 3
		},
		"no ranges": func(n int, w http.ResponseWriter, q *http.Request) bool {
			q.Header.Del("Range")
			if n == 1 {
				cut(w, 0, 4000)
			}
			return false
		},
	} {
		if b, n, err := get(t, f); err != nil || !bytes.Equal(b, data) || n < 2 {
			t.Errorf("%s: %d bytes after %d requests, %v", name, len(b), n, err)
		}
	}
}

// TestF35RegistryLies: from a registry that never gives the blob comes an
// error, after a bounded number of requests.
func TestF35RegistryLies(t *testing.T) {
	for name, f := range map[string]misbehave{
		"redirect loop": func(n int, w http.ResponseWriter, q *http.Request) bool {
			http.Redirect(w, q, q.URL.String(), http.StatusFound)
			return true
		},
		"always 500": func(n int, w http.ResponseWriter, q *http.Request) bool {
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(500)
			return true
		},
		"wrong length": func(n int, w http.ResponseWriter, q *http.Request) bool { w.Write(data[:100]); return true },
		"wrong range": func(n int, w http.ResponseWriter, q *http.Request) bool {
			if n == 1 {
				cut(w, 0, 1000)
			}
			w.Header().Set("Content-Range", "bytes 5-10/20")
			w.WriteHeader(http.StatusPartialContent)
			return true
		},
	} {
		if b, n, err := get(t, f); err == nil || n > 40 {
			t.Errorf("%s: %d bytes after %d requests, %v", name, len(b), n, err)
		}
	}
}

func TestInsecure(t *testing.T) {
	c := client(t, Options{Insecure: []string{"10.1.0.0/16", "reg.example:5000"}})
	for host, want := range map[string]bool{"localhost:5000": true, "127.3.2.1": true, "[::1]:5000": true, "10.1.2.3:80": true, "10.2.0.1": false, "reg.example:5000": true, "reg.example:5001": false} {
		if got := c.IsInsecure(bg, host); got != want {
			t.Errorf("%s: got %v", host, got)
		}
	}
	for _, bad := range []Options{{Mirrors: []string{"mirror.example"}}, {Mirrors: []string{"https://u:p@mirror.example"}}, {Insecure: []string{"http://x"}}} {
		if _, err := New(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestLogin(t *testing.T) {
	r := registrytest.New(t, false)
	r.User, r.Password = user.Username, user.Password
	c := client(t, Options{})
	a := user
	a.ServerAddress = r.Host
	if s, _, err := c.Login(bg, a); err != nil || s != "Login Succeeded" {
		t.Errorf("got %q, %v", s, err)
	}
	a.Password = "wrong"
	if _, _, err := c.Login(bg, a); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("wrong password: %v", err)
	}
}

// TestLoginIdentityToken: a token server that gives identity tokens is asked
// for one at login, each time; pulls then use it instead of the password.
func TestLoginIdentityToken(t *testing.T) {
	r := registrytest.New(t, false)
	r.Token = "tok"
	r.SetFault(func(w http.ResponseWriter, q *http.Request) bool {
		if q.URL.Path != "/token" || q.URL.Query().Get("offline_token") != "true" {
			return false
		}
		if u, p, _ := q.BasicAuth(); u != user.Username || p != user.Password {
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		fmt.Fprint(w, `{"token":"tok","expires_in":300,"refresh_token":"identity"}`)
		return true
	})
	c := client(t, Options{})
	a := user
	a.ServerAddress = r.Host
	for range 2 {
		if _, id, err := c.Login(bg, a); err != nil || id != "identity" {
			t.Errorf("got %q, %v", id, err)
		}
	}
}

// TestSearch: a registry is asked itself, and one without a search says so.
func TestSearch(t *testing.T) {
	r := registrytest.New(t, false)
	c := client(t, Options{})
	if _, err := c.Search(bg, r.Host+"/x", 0, model.RegistryAuth{}); !fault.Is(err, fault.NotImplemented) || !strings.Contains(err.Error(), "offers no search") {
		t.Errorf("got %v", err)
	}
	r.SetFault(func(w http.ResponseWriter, q *http.Request) bool {
		if q.URL.Path != "/v1/search" || q.URL.Query().Get("q") != "x/y" {
			return false
		}
		fmt.Fprint(w, `{"results":[{"name":"x/y","star_count":3}]}`)
		return true
	})
	if list, err := c.Search(bg, r.Host+"/x/y", 0, model.RegistryAuth{}); err != nil || len(list) != 1 || list[0].StarCount != 3 {
		t.Errorf("got %v, %v", list, err)
	}
}

func FuzzChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://a/t",service="x",scope="repository:a:pull,push"`)
	f.Add(`Basic realm="a\"b"`)
	f.Add(`Bearer realm=`)
	f.Fuzz(func(t *testing.T, s string) { parseChallenges([]string{s}) })
}
