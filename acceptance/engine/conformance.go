package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi2"
	"github.com/getkin/kin-openapi/openapi2conv"
	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"go.yaml.in/yaml/v4"
)

// apiSpec is the API's own description: the version that the agent offers.
const apiSpec = "docs/v1.51.yaml"

// A checker holds every JSON answer of the engine to the API's swagger file.
type checker struct {
	t      testing.TB
	router routers.Router

	mu    sync.Mutex
	found map[string]string
}

var spec = sync.OnceValues(loadSpec)

// loadSpec reads the swagger file out of the module that ships it.
func loadSpec() (routers.Router, error) {
	c := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/moby/api")
	c.Dir = Root()
	dir, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("find the API module: %w", err)
	}
	b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), apiSpec))
	if err != nil {
		return nil, err
	}
	var any2 any
	if err := yaml.Unmarshal(b, &any2); err != nil {
		return nil, err
	}
	j, err := json.Marshal(plain(any2))
	if err != nil {
		return nil, err
	}
	j = bytes.ReplaceAll(j, []byte(`"/images/{name}`), []byte(`"/images/{name:.+}`))
	var v2 openapi2.T
	if err := json.Unmarshal(j, &v2); err != nil {
		return nil, err
	}
	v3, err := openapi2conv.ToV3(&v2)
	if err != nil {
		return nil, err
	}
	v3.Servers = openapi3.Servers{{URL: "/v1.51"}, {URL: "/v1.50"}, {URL: "/"}}
	loosen(v3)
	return gorillamux.NewRouter(v3)
}

// plain turns YAML's maps into JSON's.
func plain(v any) any {
	switch v := v.(type) {
	case map[any]any:
		out := map[string]any{}
		for k, x := range v {
			out[fmt.Sprint(k)] = plain(x)
		}
		return out
	case map[string]any:
		for k, x := range v {
			v[k] = plain(x)
		}
		return v
	case []any:
		for i := range v {
			v[i] = plain(v[i])
		}
		return v
	}
	return v
}

// loosen allows null where the reference engine itself answers null, and
// drops examples and formats that no client relies on.
func loosen(doc *openapi3.T) {
	seen := map[*openapi3.Schema]bool{}
	var walk func(r *openapi3.SchemaRef)
	walk = func(r *openapi3.SchemaRef) {
		if r == nil || r.Value == nil || seen[r.Value] {
			return
		}
		s := r.Value
		seen[s] = true
		s.Nullable, s.Example, s.Format, s.Pattern = true, nil, "", ""
		for _, p := range s.Properties {
			walk(p)
		}
		walk(s.Items)
		walk(s.AdditionalProperties.Schema)
		for _, l := range []openapi3.SchemaRefs{s.AllOf, s.AnyOf, s.OneOf} {
			for _, x := range l {
				walk(x)
			}
		}
	}
	for _, s := range doc.Components.Schemas {
		walk(s)
	}
	for _, r := range doc.Components.Responses {
		for _, m := range r.Value.Content {
			walk(m.Schema)
		}
	}
	for _, p := range doc.Paths.Map() {
		for _, op := range p.Operations() {
			for _, r := range op.Responses.Map() {
				if r.Value == nil {
					continue
				}
				for _, m := range r.Value.Content {
					walk(m.Schema)
				}
			}
		}
	}
}

func newChecker(t testing.TB) *checker {
	r, err := spec()
	if err != nil {
		t.Fatalf("the API's swagger file: %v", err)
	}
	return &checker{t: t, router: r, found: map[string]string{}}
}

// report fails the test for each kind of answer that was not as described.
func (c *checker) report() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, v := range c.found {
		c.t.Errorf("answer of %s is not as the API describes it: %s", k, v)
	}
}

var idLike = regexp.MustCompile(`[0-9a-f]{12,64}`)

// response checks one answer; the body is put back.
func (c *checker) response(resp *http.Response) error {
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") || resp.Request.Method == http.MethodHead {
		return nil
	}
	path := resp.Request.URL.Path
	if resp.StatusCode == 200 && streams(resp.Request) {
		return nil
	}
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return err
	}
	resp.Body = io.NopCloser(bytes.NewReader(b))
	req := resp.Request.Clone(context.Background())
	req.URL = &url.URL{Path: path, RawQuery: resp.Request.URL.RawQuery}
	route, vars, err := c.router.FindRoute(req)
	if err != nil {
		return nil // not in the description, as unversioned extras
	}
	in := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: req, PathParams: vars, Route: route},
		Status:                 resp.StatusCode, Header: resp.Header,
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc},
	}
	in.SetBodyBytes(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := openapi3filter.ValidateResponse(context.Background(), in); err != nil && !strings.Contains(err.Error(), "status is not supported") {
		key := resp.Request.Method + " " + idLike.ReplaceAllString(path, "ID") + " " + itoa(resp.StatusCode)
		text := err.Error()
		if len(text) > 600 {
			text = text[:600]
		}
		c.found[key] = text
	}
	return nil
}

// streams tells whether an answer is a stream of values.
func streams(r *http.Request) bool {
	p := r.URL.Path
	for _, s := range []string{"/events", "/logs", "/stats", "/wait", "/attach", "/images/create", "/push", "/load", "/build", "/start"} {
		if strings.HasSuffix(p, s) {
			return true
		}
	}
	return false
}

// proxy serves e.Socket and passes requests to the agent, checking answers.
func (e *Engine) proxy() {
	l, err := net.Listen("unix", e.Socket)
	if err != nil {
		e.T.Fatal(err)
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", e.agentSocket)
	}
	rp := &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "engine" },
		Transport:      &http.Transport{DialContext: dial, DisableKeepAlives: true, DisableCompression: true},
		FlushInterval:  -1,
		ModifyResponse: e.check.response,
		ErrorHandler:   func(w http.ResponseWriter, _ *http.Request, err error) { panic(http.ErrAbortHandler) },
	}
	srv := &http.Server{ErrorLog: nil, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			e.tunnel(w, r)
			return
		}
		rp.ServeHTTP(w, r)
	})}
	go srv.Serve(l)
	e.T.Cleanup(func() { srv.Close() })
}

// tunnel joins a client that takes its connection over to the agent, with
// half-closes both ways.
func (e *Engine) tunnel(w http.ResponseWriter, r *http.Request) {
	back, err := net.Dial("unix", e.agentSocket)
	if err != nil {
		return
	}
	defer back.Close()
	body, err := io.ReadAll(r.Body) // it may not be read once the connection is taken over
	if err != nil {
		return
	}
	r.Body, r.ContentLength = http.NoBody, int64(len(body))
	if len(body) > 0 {
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	front, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer front.Close()
	if err := r.Write(back); err != nil {
		return
	}
	go func() {
		if n := buf.Reader.Buffered(); n > 0 {
			io.CopyN(back, buf.Reader, int64(n))
		}
		io.Copy(back, front)
		back.(*net.UnixConn).CloseWrite()
	}()
	io.Copy(front, back)
	front.(*net.UnixConn).CloseWrite()
}
