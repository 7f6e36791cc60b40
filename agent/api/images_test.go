package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"machine/agent/blob"
	"machine/agent/fault"
	"machine/agent/image"
	"machine/agent/layer/layertest"
	"machine/agent/layer/overlay"
	"machine/agent/model"
	"machine/agent/registry"
	"machine/agent/registry/registrytest"
)

// images is the real store; there are no containers.
type images struct{ *image.Store }

func (images) Extra(digest.Digest, digest.Digest) ImageExtra { return ImageExtra{} }
func (s images) RemoveImage(ctx context.Context, ref string, force, noprune bool) ([]image.Removed, error) {
	return s.Remove(ctx, ref, image.RemoveOptions{Force: force, NoPrune: noprune})
}
func (s images) PruneImages(ctx context.Context, all bool, keep func(*image.Summary) bool) ([]image.Removed, int64, error) {
	return s.Prune(ctx, image.PruneOptions{All: all, Keep: keep})
}
func (images) CommitContainer(context.Context, CommitOptions) (digest.Digest, error) {
	return "", fault.NotFound.Errorf("No such container")
}

func imageServer(t *testing.T) *httptest.Server {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	log := slog.New(slog.DiscardHandler)
	dir := t.TempDir()
	l, err := overlay.Open(filepath.Join(dir, "layers"), log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	b, err := blob.Open(filepath.Join(dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	hub, err := registry.New(registry.Options{CertsDir: dir, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	s, err := image.Open(image.Options{Root: filepath.Join(dir, "images"), Layers: l, Blobs: b, Source: hub, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(New(Options{Backend: Backend{Images: images{s}, Registry: hub}, EngineVersion: "test", Log: log}))
	t.Cleanup(srv.Close)
	return srv
}

func ask(t *testing.T, srv *httptest.Server, method, path string, body io.Reader, auth string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, srv.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	if auth != "" {
		req.Header.Set("X-Registry-Auth", auth)
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// TestPullStream: an error before the first line is an HTTP error, afterwards
// a line; each line is JSON ended by CRLF; credentials arrive.
func TestPullStream(t *testing.T) {
	srv, r := imageServer(t), registrytest.New(t, false)
	r.User, r.Password = "me", "secret"
	r.Image(t, "x/y", "v1", layertest.Tar(t, layertest.File("a", "1")))
	pull := "/v1.50/images/create?fromImage=" + r.Host + "/x/y&tag="
	me := base64.URLEncoding.EncodeToString([]byte(`{"username":"me","password":"secret"}`))
	if resp, body := ask(t, srv, "POST", pull+"v1", nil, "e30="); resp.StatusCode != 404 || !strings.Contains(body, "pull access denied") || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("anonymous: %s %s", resp.Status, body)
	}
	if resp, body := ask(t, srv, "POST", pull+"none", nil, me); resp.StatusCode != 404 || !strings.Contains(body, "manifest unknown") {
		t.Errorf("none: %s %s", resp.Status, body)
	}
	resp, body := ask(t, srv, "POST", pull+"v1", nil, me)
	if resp.StatusCode != 200 || !strings.Contains(body, "Status: Downloaded newer image for "+r.Host+"/x/y:v1") {
		t.Fatalf("pull: %s %s", resp.Status, body)
	}
	for sc := bufio.NewScanner(strings.NewReader(strings.ReplaceAll(body, "\r\n", "\x00\n"))); sc.Scan(); {
		line, ok := strings.CutSuffix(sc.Text(), "\x00")
		if !ok || !json.Valid([]byte(line)) {
			t.Errorf("line %q", sc.Text())
		}
	}
	r.Image(t, "x/y", "v2", layertest.Tar(t, layertest.File("b", "2")))
	for d := range r.Blobs { // all but what is small enough to be a configuration
		if len(r.Blobs[d]) > 0 && r.Blobs[d][0] == 0x1f {
			r.Blobs[d] = bytes.Repeat([]byte("x"), len(r.Blobs[d]))
		}
	}
	if resp, body := ask(t, srv, "POST", pull+"v2", nil, me); resp.StatusCode != 200 || !strings.Contains(body, `"errorDetail":{`) || !strings.Contains(body, `"error":"`) {
		t.Errorf("broken layer: %s %s", resp.Status, body)
	}
}

func TestImageRoutes(t *testing.T) {
	srv := imageServer(t)
	tar := layertest.Tar(t, layertest.File("a", "1"))
	resp, body := ask(t, srv, "POST", "/v1.50/images/create?fromSrc=-&repo=a/b&tag=c&changes=LABEL+k=v", bytes.NewReader(tar), "")
	if resp.StatusCode != 200 || !strings.Contains(body, `{"status":"sha256:`) {
		t.Fatalf("import: %s %s", resp.Status, body)
	}
	for _, c := range []struct {
		method, path string
		code         int
		text         string
	}{
		{"GET", "/v1.50/images/json", 200, `"RepoTags":["a/b:c"]`},
		{"GET", "/v1.50/images/json?filters={\"label\":{\"k=v\":true}}", 200, `a/b:c`},
		{"GET", "/v1.50/images/json?filters={\"label\":[\"k=other\"]}", 200, `[]`},
		{"GET", "/v1.50/images/json?filters={\"nope\":[\"x\"]}", 400, "invalid filter"},
		{"GET", "/v1.50/images/json?filters={\"reference\":[\"a/*\"]}", 200, "a/b:c"},
		{"GET", "/v1.50/images/json?filters={\"reference\":[\"z*\"]}", 200, "[]"},
		{"GET", "/v1.24/images/docker.io/a/b:c/json", 200, `"VirtualSize":1`},
		{"GET", "/v1.22/images/get?names=nope", 404, "No such image"},
		{"GET", "/v1.21/images/get?names=nope", 400, "is too old"},
		{"GET", "/v1.23/containers/json", 400, "is too old"},
		{"GET", "/v1.44/images/a/b:c/json", 200, `"ContainerConfig":{"AttachStderr":false`},
		{"GET", "/v1.49/images/a/b:c/json", 200, `"Config":{"AttachStderr":false`},
		{"GET", "/v1.50/images/a/b:c/json", 200, `"Config":{"Cmd":null,"Entrypoint":null,"Env":null,"Labels":`},
		{"GET", "/v1.50/images/json?filters={\"dangling\":[\"maybe\"]}", 400, "invalid filter 'dangling=[maybe]'"},
		{"GET", "/v1.50/images/a/b:c/history", 200, "Imported from -"},
		{"POST", "/v1.50/images/a/b:c/tag?repo=other&tag=x", 201, ""},
		{"POST", "/v1.50/images/a/b:c/tag?repo=UPPER", 400, "lowercase"},
		{"GET", "/v1.50/images/nope/json", 404, "No such image: nope:latest"},
		{"GET", "/v1.50/images/get?names=nope", 404, "No such image"},
		{"POST", "/v1.50/images/load", 200, `"errorDetail":{"message":"archive has no manifest.json`},
		{"POST", "/v1.50/commit?container=nope", 404, "No such container"},
		{"DELETE", "/v1.50/images/other:x", 200, `[{"Untagged":"other:x"}]`},
		{"POST", "/v1.50/images/prune?filters={\"dangling\":[\"false\"]}", 200, `"SpaceReclaimed":1`},
		{"GET", "/v1.50/images/json", 200, "[]"},
	} {
		resp, body := ask(t, srv, c.method, strings.NewReplacer("{", "%7B", "}", "%7D", `"`, "%22").Replace(c.path), nil, "")
		if resp.StatusCode != c.code || !strings.Contains(body, c.text) {
			t.Errorf("%s %s: %s %s", c.method, c.path, resp.Status, body)
		}
	}
}

func TestDecodeAuth(t *testing.T) {
	want := model.RegistryAuth{Username: "u", Password: "p?>"}
	j := []byte(`{"username":"u","password":"p?>"}`)
	for _, enc := range []*base64.Encoding{base64.URLEncoding, base64.RawURLEncoding, base64.StdEncoding} {
		if got := decodeAuth(enc.EncodeToString(j)); got != want {
			t.Errorf("got %q %q", got.Username, got.Password)
		}
	}
	for _, bad := range []string{"", "e30=", "!!!", "bnVsbA=="} {
		if got := decodeAuth(bad); got != (model.RegistryAuth{}) {
			t.Errorf("%q gave something", bad)
		}
	}
}

func TestBar(t *testing.T) {
	if got := bar(50, 100); got != "["+strings.Repeat("=", 25)+">"+strings.Repeat(" ", 24)+"]  50B/100B" {
		t.Errorf("got %q", got)
	}
	if got := bar(1_234_567, 0); got != "1.235MB" {
		t.Errorf("got %q", got)
	}
}
