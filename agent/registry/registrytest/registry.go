// Package registrytest is a registry in memory for tests: it serves what is
// put in, records what is asked, and misbehaves on demand.
package registrytest

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"machine/agent/oci"
)

// A Registry is one registry. Its maps may be changed while no request runs.
type Registry struct {
	*httptest.Server
	Host string // to be used in references

	mu        sync.Mutex
	Blobs     map[digest.Digest][]byte
	Manifests map[string]Manifest // "repo:tag" and "repo@digest"
	Requests  []*http.Request     // without bodies
	uploads   map[string][]byte
	// Fault, when set, sees each request first; true means that it answered.
	Fault func(w http.ResponseWriter, r *http.Request) bool
	// Token, when set, is asked for; TokenRealm is where it is to be had.
	Token, TokenRealm string
	// User and Password, when set, are asked for as basic credentials.
	User, Password string
}

// Manifest is a stored manifest.
type Manifest struct {
	Type string
	Body []byte
}

// New starts a registry on loopback; the test's end stops it.
func New(t testing.TB, overTLS bool) *Registry {
	r := &Registry{Blobs: map[digest.Digest][]byte{}, Manifests: map[string]Manifest{}, uploads: map[string][]byte{}}
	r.Server = httptest.NewUnstartedServer(r)
	if overTLS {
		r.Server.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		r.Server.StartTLS()
	} else {
		r.Server.Start()
	}
	t.Cleanup(r.Server.Close)
	r.Host = r.Listener.Addr().String()
	return r
}

// Seen gives the requests so far.
func (r *Registry) Seen() []*http.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*http.Request(nil), r.Requests...)
}

// SetFault changes Fault while requests run.
func (r *Registry) SetFault(f func(w http.ResponseWriter, q *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Fault = f
}

func (r *Registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	r.Requests = append(r.Requests, q.Clone(q.Context()))
	fault := r.Fault
	r.mu.Unlock()
	if fault != nil && fault(w, q) {
		return
	}
	if q.URL.Path == "/token" {
		json.NewEncoder(w).Encode(map[string]any{"token": r.Token, "expires_in": 300})
		return
	}
	if r.refused(w, q) {
		return
	}
	path := strings.TrimPrefix(q.URL.Path, "/v2/")
	switch {
	case path == "" || q.URL.Path == "/v2":
		w.WriteHeader(http.StatusOK)
	case strings.Contains(path, "/manifests/"):
		repo, ref, _ := strings.Cut(path, "/manifests/")
		r.manifest(w, q, repo, ref)
	case strings.Contains(path, "/blobs/uploads/"):
		repo, id, _ := strings.Cut(path, "/blobs/uploads/")
		r.upload(w, q, repo, id)
	case strings.Contains(path, "/blobs/"):
		_, d, _ := strings.Cut(path, "/blobs/")
		r.blob(w, q, digest.Digest(d))
	default:
		http.NotFound(w, q)
	}
}

func (r *Registry) refused(w http.ResponseWriter, q *http.Request) bool {
	if r.Token != "" && q.Header.Get("Authorization") != "Bearer "+r.Token {
		realm := r.TokenRealm
		if realm == "" {
			realm = r.URL + "/token"
		}
		w.Header().Set("Www-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="test",scope="repository:x:pull"`, realm))
		apiError(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		return true
	}
	if u, p, _ := q.BasicAuth(); r.User != "" && (u != r.User || p != r.Password) {
		w.Header().Set("Www-Authenticate", `Basic realm="test"`)
		apiError(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		return true
	}
	return false
}

func apiError(w http.ResponseWriter, code int, name, text string) {
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": name, "message": text}}})
}

func (r *Registry) manifest(w http.ResponseWriter, q *http.Request, repo, ref string) {
	sep := ":"
	if strings.Contains(ref, ":") {
		sep = "@"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if q.Method == http.MethodPut {
		b, _ := io.ReadAll(q.Body)
		m := Manifest{q.Header.Get("Content-Type"), b}
		r.Manifests[repo+sep+ref] = m
		r.Manifests[repo+"@"+digest.FromBytes(b).String()] = m
		w.WriteHeader(http.StatusCreated)
		return
	}
	m, ok := r.Manifests[repo+sep+ref]
	if !ok {
		apiError(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
		return
	}
	w.Header().Set("Content-Type", m.Type)
	w.Header().Set("Docker-Content-Digest", digest.FromBytes(m.Body).String())
	w.Write(m.Body)
}

func (r *Registry) blob(w http.ResponseWriter, q *http.Request, d digest.Digest) {
	r.mu.Lock()
	b, ok := r.Blobs[d]
	r.mu.Unlock()
	if !ok {
		apiError(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry")
		return
	}
	var from, to int
	if n, _ := fmt.Sscanf(q.Header.Get("Range"), "bytes=%d-%d", &from, &to); n == 2 && from < len(b) && to < len(b) && from <= to {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(b)))
		w.Header().Set("Content-Length", fmt.Sprint(to+1-from))
		w.WriteHeader(http.StatusPartialContent)
		w.Write(b[from : to+1])
		return
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	if q.Method != http.MethodHead {
		w.Write(b)
	}
}

func (r *Registry) upload(w http.ResponseWriter, q *http.Request, repo, id string) {
	body, _ := io.ReadAll(q.Body)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch q.Method {
	case http.MethodPost:
		if m := digest.Digest(q.URL.Query().Get("mount")); m != "" && r.Blobs[m] != nil {
			w.WriteHeader(http.StatusCreated)
			return
		}
		id = fmt.Sprint("u", len(r.uploads))
		r.uploads[id] = nil
		w.Header().Set("Location", "/v2/"+repo+"/blobs/uploads/"+id+"?state=x")
		w.WriteHeader(http.StatusAccepted)
	case http.MethodPatch:
		r.uploads[id] = append(r.uploads[id], body...)
		w.Header().Set("Location", "/v2/"+repo+"/blobs/uploads/"+id+"?state=y")
		w.WriteHeader(http.StatusAccepted)
	case http.MethodPut:
		b := append(r.uploads[id], body...)
		d := digest.FromBytes(b)
		if d.String() != q.URL.Query().Get("digest") {
			apiError(w, http.StatusBadRequest, "DIGEST_INVALID", "digest invalid")
			return
		}
		r.Blobs[d] = b
		w.WriteHeader(http.StatusCreated)
	case http.MethodDelete:
		delete(r.uploads, id)
		w.WriteHeader(http.StatusNoContent)
	}
}

// Blob stores a blob.
func (r *Registry) Blob(b []byte, mediaType string) v1.Descriptor {
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Blobs[d.Digest] = b
	return d
}

// Image stores an image of plain layer tars, gzipped, and returns its
// manifest's digest.
func (r *Registry) Image(t testing.TB, repo, tag string, layers ...[]byte) digest.Digest {
	t.Helper()
	conf := v1.Image{Platform: oci.Host(), RootFS: v1.RootFS{Type: "layers"}}
	conf.Config.Cmd = []string{tag}
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest}
	m.SchemaVersion = 2
	for _, l := range layers {
		conf.RootFS.DiffIDs = append(conf.RootFS.DiffIDs, digest.FromBytes(l))
		var b strings.Builder
		z := gzip.NewWriter(&b)
		z.Write(l)
		z.Close()
		m.Layers = append(m.Layers, r.Blob([]byte(b.String()), v1.MediaTypeImageLayerGzip))
	}
	cfg, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	m.Config = r.Blob(cfg, v1.MediaTypeImageConfig)
	return r.Put(t, repo, tag, m, v1.MediaTypeImageManifest)
}

// Put stores a manifest or index.
func (r *Registry) Put(t testing.TB, repo, tag string, m any, mediaType string) digest.Digest {
	t.Helper()
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(b)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Manifests[repo+":"+tag] = Manifest{mediaType, b}
	r.Manifests[repo+"@"+d.String()] = Manifest{mediaType, b}
	return d
}
