// Package api serves the Docker Engine API. Each resource is a file that
// declares what it needs of the engine.
//
// A handler returns an error before it has written anything: the server turns
// its kind into a status. After the first byte errors go into the stream, in
// the form that the stream's clients know.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"machine/agent/fault"
	"machine/agent/model"
)

// The versions of the API that are served.
const (
	MaxVersion = "1.51"
	MinVersion = "1.24"
)

// maxBody bounds JSON bodies, and bodyTimeout the time that one may take: a
// client that never finishes its own must not hold a connection for ever.
const (
	maxBody     = 4 << 20
	maxSurplus  = 64 << 20 // of a body that is refused
	bodyTimeout = 10 * time.Second
)

// A Server is the API of one engine.
type Server struct {
	routes  map[string][]route // by method
	headers map[string]string
	log     *slog.Logger
}

// A request is an HTTP request with what its path said.
type request struct {
	*http.Request
	vars    map[string]string
	version string
	rc      *http.ResponseController
}

// handler answers a request, or fails before it wrote anything.
type handler func(w http.ResponseWriter, r *request) error

type route struct {
	segs []string
	h    handler
}

// Options are what a Server needs.
type Options struct {
	Backend
	EngineVersion string
	Log           *slog.Logger
}

// New makes the server of an engine.
func New(o Options) *Server {
	s := &Server{routes: map[string][]route{}, log: o.Log, headers: map[string]string{
		"Server": "Docker/" + o.EngineVersion + " (linux)", "Api-Version": MaxVersion, "Ostype": "linux", "Docker-Experimental": "false",
	}}
	s.system(o)
	s.containers(o)
	s.execs(o)
	s.distribution(o)
	s.images(o)
	s.networks(o)
	s.volumes(o)
	s.cluster()
	return s
}

// handle registers a route; "{name...}" takes one or more segments.
func (s *Server) handle(method, pattern string, h handler) {
	s.routes[method] = append(s.routes[method], route{strings.Split(strings.Trim(pattern, "/"), "/"), h})
}

// match tries a pattern on a path's segments.
func match(segs, path []string) (map[string]string, bool) {
	vars := map[string]string{}
	i := 0
	for k, s := range segs {
		name, ok := strings.CutPrefix(s, "{")
		if !ok {
			if i >= len(path) || path[i] != s {
				return nil, false
			}
			i++
			continue
		}
		name = strings.TrimSuffix(name, "}")
		n := 1
		if long, ok := strings.CutSuffix(name, "..."); ok {
			name = long
			n = len(path) - i - (len(segs) - k - 1)
		}
		if n < 1 || i+n > len(path) {
			return nil, false
		}
		vars[name] = strings.Join(path[i:i+n], "/")
		if vars[name] == "" {
			return nil, false
		}
		i += n
	}
	return vars, i == len(path)
}

// ServeHTTP routes a request; an unknown path or method is 404 (clients rely
// on it never being 405).
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for k, v := range s.headers {
		w.Header()[k] = []string{v}
	}
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			s.log.Error("handler panicked", "method", r.Method, "path", r.URL.Path, "panic", fmt.Sprint(p))
			writeError(w, fault.Internal.Errorf("internal error: %v", p))
		}
	}()
	req := &request{Request: r, version: MaxVersion, rc: http.NewResponseController(w)}
	path := strings.TrimPrefix(r.URL.Path, "/")
	if v, rest, ok := cutVersion(path); ok {
		if err := checkVersion(v, rest); err != nil {
			writeError(w, err)
			return
		}
		req.version, path = v, rest
	}
	segs := strings.Split(strings.TrimSuffix(path, "/"), "/")
	for _, rt := range s.routes[r.Method] {
		if vars, ok := match(rt.segs, segs); ok {
			req.vars = vars
			if err := rt.h(w, req); err != nil {
				s.fail(w, req, err)
			}
			return
		}
	}
	writeError(w, fault.NotFound.Errorf("page not found"))
}

func (s *Server) fail(w http.ResponseWriter, r *request, err error) {
	if errors.Is(err, context.Canceled) && r.Context().Err() != nil {
		return // nobody listens
	}
	if k := fault.KindOf(err); k == fault.Internal {
		s.log.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	writeError(w, err)
}

// cutVersion splits "v1.50/containers/json".
func cutVersion(p string) (version, rest string, ok bool) {
	first, rest, _ := strings.Cut(p, "/")
	v, ok := strings.CutPrefix(first, "v")
	if !ok || v == "" || v[0] < '0' || v[0] > '9' {
		return "", "", false
	}
	return v, rest, true
}

// imagesVersion is what skopeo, buildah and podman speak when they load and
// save images, up to version 5.29 of the library that they share, as stable
// distributions have it: it never asks which versions there are.
const imagesVersion = "1.22"

func checkVersion(v, path string) error {
	if less(v, MinVersion) && (less(v, imagesVersion) || !strings.HasPrefix(path, "images/")) {
		return fault.Invalid.Errorf("client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", v, MinVersion)
	}
	if less(MaxVersion, v) {
		return fault.Invalid.Errorf("client version %s is too new. Maximum supported API version is %s", v, MaxVersion)
	}
	return nil
}

// less compares versions like 1.9 and 1.51.
func less(a, b string) bool {
	num := func(s string) [2]int {
		x, y, _ := strings.Cut(s, ".")
		i, _ := strconv.Atoi(x)
		j, _ := strconv.Atoi(y)
		return [2]int{i, j}
	}
	x, y := num(a), num(b)
	return x[0] < y[0] || x[0] == y[0] && x[1] < y[1]
}

// before tells whether the request speaks an older version than v.
func (r *request) before(v string) bool { return less(r.version, v) }

// status is the HTTP status of an error's kind.
func status(err error) int {
	switch fault.KindOf(err) {
	case fault.Invalid:
		return http.StatusBadRequest
	case fault.NotFound:
		return http.StatusNotFound
	case fault.Conflict:
		return http.StatusConflict
	case fault.Unchanged:
		return http.StatusNotModified
	case fault.Unauthorized:
		return http.StatusUnauthorized
	case fault.Forbidden:
		return http.StatusForbidden
	case fault.NotImplemented:
		return http.StatusNotImplemented
	case fault.Unavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

func writeError(w http.ResponseWriter, err error) {
	code := status(err)
	if code == http.StatusNotModified {
		w.WriteHeader(code)
		return
	}
	writeJSON(w, code, map[string]string{"message": err.Error()})
}

// writeJSON answers with a value. The content type is exact: clients compare
// the string.
func writeJSON(w http.ResponseWriter, code int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.Encode(v) // the client is gone if this fails
	return nil
}

// readJSON reads a request's body into v; an empty body leaves v as it is.
func (r *request) readJSON(v any) error {
	if r.Body == nil || r.ContentLength == 0 {
		return nil
	}
	if ct := r.Header.Get("Content-Type"); ct != "" && !strings.HasPrefix(ct, "application/json") {
		return fault.Invalid.Errorf("unsupported Content-Type header (%s): must be 'application/json'", ct)
	}
	r.rc.SetReadDeadline(time.Now().Add(bodyTimeout))
	b, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil { // the deadline stays: what is still to come is not waited for
		return fault.Invalid.Errorf("read the request's body: %w", err)
	}
	r.rc.SetReadDeadline(time.Time{})
	if len(b) > maxBody {
		// Let a client that sends it all before it reads get the answer.
		io.CopyN(io.Discard, r.Body, maxSurplus)
		return fault.Invalid.Errorf("the request's body is larger than %d MiB", maxBody>>20)
	}
	if len(b) == 0 {
		return nil
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fault.Invalid.Errorf("invalid JSON: %w", err)
	}
	return nil
}

// boolean reads a query parameter as Docker does: "", 0, no, false and none
// are false, all else is true.
func (r *request) boolean(key string) bool { return model.Truth(r.URL.Query().Get(key)) }

// number reads an integer parameter; absent is 0.
func (r *request) number(key string) (int, error) {
	s := r.URL.Query().Get(key)
	if s == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, fault.Invalid.Errorf("invalid value for %s: %q is not a number", key, s)
	}
	return n, nil
}

// filters reads the parameter of that name. Keys that are not known are refused;
// without known ones that is left to who applies them.
func (r *request) filters(known ...string) (model.Filters, error) {
	f, err := model.ParseFilters(r.query("filters"))
	if err == nil && len(known) > 0 {
		err = f.Check(known...)
	}
	return f, err
}

// query returns a parameter.
func (r *request) query(key string) string { return r.URL.Query().Get(key) }

// flushWriter sends each write on at once.
type flushWriter struct {
	w  io.Writer
	rc *http.ResponseController
}

func newFlushWriter(w http.ResponseWriter) flushWriter {
	return flushWriter{w, http.NewResponseController(w)}
}

func (f flushWriter) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err == nil {
		err = f.rc.Flush()
	}
	return n, err
}
