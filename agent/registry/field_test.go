package registry

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/oci"
	"machine/agent/registry/registrytest"
)

var anonymous model.RegistryAuth

func giving(b []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

// TestTagPages: pages follow each other by links, relative and absolute, of a
// registry that does not know its own name and gives fewer than was asked for.
func TestTagPages(t *testing.T) {
	all := []string{"a", "b", "c", "d", "e"}
	for name, link := range map[string]string{
		"path": `</v2/x/tags/list?last=%s&n=2>; rel="next"`, "relative": `<list?n=2&last=%s>;rel=next`, "absolute": `<http://internal.example/v2/x/tags/list?last=%s&n=2>; rel="next"`,
		"no rel": `</v2/x/tags/list?last=%s>`, "two": `</v2/x/tags/list>; rel="first", </v2/x/tags/list?last=%s>; rel="next"`,
	} {
		r := registrytest.New(t, false)
		r.Fault = func(w http.ResponseWriter, q *http.Request) bool {
			i := slices.Index(all, q.URL.Query().Get("last")) + 1
			page := all[i:min(i+2, len(all))]
			if i+2 < len(all) {
				w.Header().Set("Link", fmt.Sprintf(link, page[len(page)-1]))
			}
			json.NewEncoder(w).Encode(map[string]any{"tags": page})
			return true
		}
		got, err := client(t, Options{}).Tags(bg, r.Host+"/x", anonymous)
		if err != nil || !slices.Equal(got, all) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	// Links to themselves, and a registry that knows no pages at all.
	for _, link := range []string{"</v2/x/tags/list>; rel=next", "</v2/x/tags/list?z=1>; rel=next", ""} {
		r := registrytest.New(t, false)
		n := 0
		r.Fault = func(w http.ResponseWriter, q *http.Request) bool {
			n++
			w.Header().Set("Link", link)
			list := make([]string, 1000)
			for i := range list {
				list[i] = fmt.Sprint("t", i)
			}
			json.NewEncoder(w).Encode(map[string]any{"tags": list})
			return true
		}
		if got, err := client(t, Options{}).Tags(bg, r.Host+"/x", anonymous); err != nil || len(got) != 1000 || n > 3 {
			t.Errorf("%q: %d tags after %d requests, %v", link, len(got), n, err)
		}
	}
}

// TestUploadBeginsAnew: a layer reaches a registry that breaks off, has lost
// the upload, wants a pause or a new token in the middle of it.
func TestUploadBeginsAnew(t *testing.T) {
	for name, f := range map[string]func(n int, w http.ResponseWriter, q *http.Request) bool{
		"breaks off": func(n int, w http.ResponseWriter, q *http.Request) bool {
			io.CopyN(io.Discard, q.Body, 1000)
			panic(http.ErrAbortHandler)
		},
		"lost": func(n int, w http.ResponseWriter, q *http.Request) bool { w.WriteHeader(404); return true },
		"range": func(n int, w http.ResponseWriter, q *http.Request) bool {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return true
		},
		"pause": func(n int, w http.ResponseWriter, q *http.Request) bool {
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		},
		"token": func(n int, w http.ResponseWriter, q *http.Request) bool {
			w.Header().Set("Www-Authenticate", `Bearer realm="http://`+q.Host+`/token"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		},
		"min length": func(n int, w http.ResponseWriter, q *http.Request) bool {
			w.Header().Set("OCI-Chunk-Min-Length", "5000000")
			return false
		},
	} {
		for _, method := range []string{http.MethodPatch, http.MethodPut} {
			r := registrytest.New(t, false)
			r.Token = "tok"
			var n atomic.Int32
			r.Fault = func(w http.ResponseWriter, q *http.Request) bool {
				return q.Method == method && strings.Contains(q.URL.Path, "/uploads/") && n.Add(1) == 1 && f(1, w, q)
			}
			d, err := client(t, Options{}).PutBlob(bg, r.Host+"/a/b:v1", giving(data), anonymous)
			if err != nil || d.Digest != digest.FromBytes(data) || !bytes.Equal(r.Blobs[d.Digest], data) {
				t.Errorf("%s of %s: %+v, %v", name, method, d, err)
			}
		}
	}
}

// TestUploadEnds: what cannot succeed is not tried for ever, and an error of
// the layer is that, not the registry's.
func TestUploadEnds(t *testing.T) {
	r := registrytest.New(t, false)
	var n atomic.Int32
	r.Fault = func(w http.ResponseWriter, q *http.Request) bool {
		if q.Method != http.MethodPatch {
			return false
		}
		n.Add(1)
		w.Header().Set("Www-Authenticate", `Bearer realm="`+r.URL+`/token"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	r.Token = ""
	c := client(t, Options{})
	if _, err := c.PutBlob(bg, r.Host+"/a:1", giving(data), anonymous); !fault.Is(err, fault.Unauthorized) || n.Load() > tries {
		t.Errorf("%d times, %v", n.Load(), err)
	}
	r.SetFault(nil)
	n.Store(0)
	_, err := c.PutBlob(bg, r.Host+"/a:1", func() (io.ReadCloser, error) {
		n.Add(1)
		return io.NopCloser(io.MultiReader(bytes.NewReader(data), broken{})), nil
	}, anonymous)
	if err == nil || !strings.Contains(err.Error(), "the disk is broken") || n.Load() != 1 {
		t.Errorf("%d times, %v", n.Load(), err)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, fault.Internal.Errorf("the disk is broken") }

// TestOldRegistry: one without HEAD, without digests in headers and with types
// of its own fancy.
func TestOldRegistry(t *testing.T) {
	r := registrytest.New(t, false)
	d := r.Image(t, "a/b", "v1", []byte("layer"))
	c := client(t, Options{})
	for _, contentType := range []string{"", "text/plain; charset=utf-8", "application/json"} {
		r.SetFault(func(w http.ResponseWriter, q *http.Request) bool {
			if q.Method == http.MethodHead {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return true
			}
			if q.Method == http.MethodGet && strings.Contains(q.URL.Path, "/manifests/") {
				w.Header()["Content-Type"] = []string{contentType}
				w.Write(r.Manifests["a/b:v1"].Body)
				return true
			}
			return false
		})
		b, mt, err := c.Manifest(bg, r.Host+"/a/b:v1", anonymous)
		if err != nil || digest.FromBytes(b) != d {
			t.Fatal(err)
		}
		if m, err := oci.ParseManifest(b, mt); err != nil || m.MediaType != v1.MediaTypeImageManifest {
			t.Errorf("%q: %+v, %v", contentType, m, err)
		}
	}
	idx := []byte(`{"schemaVersion":2,"manifests":[]}`)
	if m, err := oci.ParseManifest(idx, "text/plain"); err != nil || !m.Index {
		t.Errorf("an index without a type: %+v, %v", m, err)
	}
	if has, _, err := c.HasBlob(bg, r.Host+"/a/b:v1", v1.Descriptor{Digest: d}, "", anonymous); has || err != nil {
		t.Errorf("no HEAD: %v, %v", has, err)
	}
	if _, err := c.PutBlob(bg, r.Host+"/a/b:v1", giving(data), anonymous); err != nil {
		t.Error(err)
	}
}

// TestF35RegistryReturns: a registry that goes away in the middle of a blob and
// comes back, also one that refuses ranges, gives it whole.
func TestF35RegistryReturns(t *testing.T) {
	r := registrytest.New(t, false)
	d := r.Blob(data, "")
	var n atomic.Int32
	r.Fault = func(w http.ResponseWriter, q *http.Request) bool {
		switch {
		case n.Add(1) == 1:
			cut(w, 0, 1000)
		case q.Header.Get("Range") != "":
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return true
		}
		return false
	}
	c := client(t, Options{})
	rd, err := c.Blob(bg, r.Host+"/x:1", d, 0, anonymous)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	if b, err := io.ReadAll(rd); err != nil || !bytes.Equal(b, data) {
		t.Errorf("without ranges: %d bytes, %v", len(b), err)
	}

	var up atomic.Bool
	up.Store(true)
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if !up.Load() {
			panic(http.ErrAbortHandler)
		}
		if q.Header.Get("Range") == "" {
			up.Store(false)
			time.AfterFunc(500*time.Millisecond, func() { up.Store(true) })
			cut(w, 0, 1000)
		}
		r.SetFault(nil)
		r.ServeHTTP(w, q)
	}))
	front.Start()
	defer front.Close()
	rd, err = c.Blob(bg, front.Listener.Addr().String()+"/x:1", d, 0, anonymous)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	if b, err := io.ReadAll(rd); err != nil || !bytes.Equal(b, data) {
		t.Errorf("away for a while: %d bytes, %v", len(b), err)
	}
}

// TestChallenges: several in one header, unknown schemes beside known ones and
// alone.
func TestChallenges(t *testing.T) {
	got := parseChallenges([]string{`Negotiate, Basic realm="a, b", Bearer realm="http://x/t",service=s`})
	if len(got) < 2 || got[len(got)-1].scheme != "bearer" || got[len(got)-1].params["service"] != "s" || got[len(got)-2].params["realm"] != "a, b" {
		t.Errorf("got %+v", got)
	}
	r := registrytest.New(t, false)
	r.Image(t, "x", "1", []byte("l"))
	var scheme atomic.Value
	scheme.Store(`Negotiate`)
	r.Fault = func(w http.ResponseWriter, q *http.Request) bool {
		if u, _, _ := q.BasicAuth(); u == user.Username {
			return false
		}
		w.Header().Set("Www-Authenticate", scheme.Load().(string))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	c := client(t, Options{})
	if _, _, err := c.Manifest(bg, r.Host+"/x:1", user); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("unknown scheme: %v", err)
	}
	scheme.Store(`Negotiate, Basic realm="x"`)
	if _, _, err := c.Manifest(bg, r.Host+"/x:1", user); err != nil {
		t.Errorf("beside a known one: %v", err)
	}
}

// TestErrorTexts: a registry's words come once.
func TestErrorTexts(t *testing.T) {
	r := registrytest.New(t, false)
	r.Fault = func(w http.ResponseWriter, q *http.Request) bool {
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`)
		return true
	}
	_, _, err := client(t, Options{}).Manifest(bg, r.Host+"/x:1", anonymous)
	if err == nil || err.Error() != "denied: requested access to the resource is denied" {
		t.Errorf("got %v", err)
	}
	r.SetFault(func(w http.ResponseWriter, q *http.Request) bool {
		w.Header().Set("Retry-After", time.Now().UTC().Format(http.TimeFormat))
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	if _, _, err := client(t, Options{}).Manifest(bg, r.Host+"/x:1", anonymous); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("not the registry's own answer: %v", err) // but that it speaks no TLS
	}
}

// TestCertificatesAdded: an authority that is added to certs.d counts at once.
func TestCertificatesAdded(t *testing.T) {
	r := registrytest.New(t, true)
	r.Image(t, "x", "1", []byte("l"))
	dir := t.TempDir()
	c := client(t, Options{CertsDir: dir})
	c.insecure = nil
	if _, _, err := c.Manifest(bg, r.Host+"/x:1", anonymous); err == nil {
		t.Fatal("an unknown authority was believed")
	}
	os.Mkdir(filepath.Join(dir, r.Host), 0o755)
	os.WriteFile(filepath.Join(dir, r.Host, "ca.crt"), pemOf(r), 0o644)
	if _, _, err := c.Manifest(bg, r.Host+"/x:1", anonymous); err != nil {
		t.Errorf("added: %v", err)
	}
	os.RemoveAll(filepath.Join(dir, r.Host))
	if _, _, err := c.Manifest(bg, r.Host+"/x:1", anonymous); err == nil {
		t.Error("removed, and still believed")
	}
}

// TestIdentityToken: it is what a pull logs in with, for all scopes at once.
func TestIdentityToken(t *testing.T) {
	r := registrytest.New(t, false)
	r.Image(t, "x", "1", []byte("l"))
	r.Token = "tok"
	var form atomic.Value
	r.Fault = func(w http.ResponseWriter, q *http.Request) bool {
		if q.URL.Path != "/token" {
			return false
		}
		q.ParseForm()
		form.Store(q.PostForm)
		fmt.Fprint(w, `{"access_token":"tok","expires_in":300,"refresh_token":"next"}`)
		return true
	}
	c := client(t, Options{})
	id := model.RegistryAuth{Username: "<token>", IdentityToken: "canary-identity"}
	if _, _, err := c.Manifest(bg, r.Host+"/x:1", id); err != nil {
		t.Fatal(err)
	}
	f := form.Load().(url.Values)
	if f.Get("grant_type") != "refresh_token" || f.Get("refresh_token") != "canary-identity" || f.Get("service") != "test" || f.Get("scope") != "repository:x:pull" {
		t.Errorf("got %v", f)
	}
	d := r.Blob([]byte("shared"), "")
	r.SetFault(func(w http.ResponseWriter, q *http.Request) bool {
		if q.URL.Path == "/token" {
			q.ParseForm()
			form.Store(q.PostForm)
			fmt.Fprint(w, `{"access_token":"tok"}`)
			return true
		}
		if q.Method == http.MethodHead {
			w.WriteHeader(http.StatusNotFound)
			return true
		}
		return false
	})
	if _, mounted, err := client(t, Options{}).HasBlob(bg, r.Host+"/y:1", d, "x", id); !mounted || err != nil {
		t.Errorf("mounted %v, %v", mounted, err)
	}
	if got := form.Load().(url.Values).Get("scope"); got != "repository:y:pull,push repository:x:pull" {
		t.Errorf("scopes of a mount: %q", got)
	}
}

func pemOf(r *registrytest.Registry) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate().Raw})
}

// TestMirrorAway: a mirror that does not answer is waited for once in a while,
// not by each request; when nothing else answers either, it is asked again.
func TestMirrorAway(t *testing.T) {
	c := client(t, Options{Mirrors: []string{"http://127.0.0.1:1", "http://127.0.0.1:2/path"}})
	var asked []string
	r, err := parse("busybox")
	if err != nil {
		t.Fatal(err)
	}
	ask := func(up string) error {
		asked = nil
		return c.each(bg, r, false, func(e endpoint) error {
			asked = append(asked, e.base.Host)
			if e.base.Host != up {
				return fault.Unavailable.Errorf("%s is away", e.base.Host)
			}
			return nil
		})
	}
	for _, step := range []struct{ up, want string }{
		{hubEndpoint, "127.0.0.1:1 127.0.0.1:2 " + hubEndpoint}, {hubEndpoint, hubEndpoint}, {"127.0.0.1:2", hubEndpoint + " 127.0.0.1:1 127.0.0.1:2"},
	} {
		if err := ask(step.up); err != nil || strings.Join(asked, " ") != step.want {
			t.Errorf("%s is there: asked %v, %v; want %s", step.up, asked, err, step.want)
		}
	}
	if err := ask("nobody"); err == nil || !strings.Contains(err.Error(), hubEndpoint) {
		t.Errorf("nobody: %v", err)
	}
}

// TestPlainBecomesTLS: an insecure registry that was plain and has TLS now is
// found again, and one with TLS that is out of order is not asked in plain.
func TestPlainBecomesTLS(t *testing.T) {
	r := registrytest.New(t, true)
	r.Image(t, "x", "1", []byte("l"))
	c := client(t, Options{})
	c.plain[r.Host] = true
	c.Manifest(bg, r.Host+"/x:1", anonymous)
	if _, _, err := c.Manifest(bg, r.Host+"/x:1", anonymous); err != nil {
		t.Error(err)
	}
	r.SetFault(func(w http.ResponseWriter, q *http.Request) bool {
		w.Header().Set("Retry-After", "0")
		w.WriteHeader(http.StatusBadGateway)
		return true
	})
	if _, _, err := c.Manifest(bg, r.Host+"/x:1", anonymous); err == nil || !strings.Contains(err.Error(), "502 Bad Gateway") {
		t.Errorf("got %v", err)
	}
}

// TestMountRefused: a token server that gives no token for the other
// repository does not end the push.
func TestMountRefused(t *testing.T) {
	r := registrytest.New(t, false)
	r.Token = "tok"
	r.Fault = func(w http.ResponseWriter, q *http.Request) bool {
		switch {
		case q.URL.Path == "/token" && len(q.URL.Query()["scope"]) > 1:
			w.WriteHeader(http.StatusForbidden)
		case q.Method == http.MethodHead && q.Header.Get("Authorization") != "":
			w.WriteHeader(http.StatusNotFound)
		default:
			return false
		}
		return true
	}
	has, mounted, err := client(t, Options{}).HasBlob(bg, r.Host+"/y:1", r.Blob([]byte("shared"), ""), "x", user)
	if has || mounted || err != nil {
		t.Errorf("got %v, %v, %v", has, mounted, err)
	}
}

// TestLongWait: a registry that wants to be left alone for long is not asked
// again, and the user is told.
func TestLongWait(t *testing.T) {
	for _, after := range []string{"3600", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)} {
		r := registrytest.New(t, false)
		r.Fault = func(w http.ResponseWriter, q *http.Request) bool {
			w.Header().Set("Retry-After", after)
			w.WriteHeader(http.StatusTooManyRequests)
			fmt.Fprint(w, `{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit"}]}`)
			return true
		}
		_, _, err := client(t, Options{}).Manifest(bg, r.Host+"/x:1", anonymous)
		if err == nil || !strings.Contains(err.Error(), "toomanyrequests: You have reached your pull rate limit (it wants to be asked again in ") || strings.Count(err.Error(), "toomanyrequests") != 1 || len(r.Seen()) != 1 {
			t.Errorf("%d requests, %v", len(r.Seen()), err)
		}
	}
}

// TestTokenServerBeside: a token server at another port of an insecure
// registry's host has a certificate of its own making, too, and sees the
// credentials.
func TestTokenServerBeside(t *testing.T) {
	other := registrytest.New(t, true)
	other.Token = "tok"
	r := registrytest.New(t, true)
	r.Image(t, "x", "1", []byte("l"))
	r.Token, r.TokenRealm = "tok", other.URL+"/token"
	c := client(t, Options{Insecure: []string{r.Host}})
	c.insecure = nil // loopback would be believed
	if _, _, err := c.Manifest(bg, r.Host+"/x:1", user); err != nil {
		t.Fatal(err)
	}
	if u, p, _ := other.Seen()[0].BasicAuth(); u != user.Username || p != user.Password {
		t.Errorf("the token server saw %q", u)
	}
}
