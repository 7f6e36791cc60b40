package docker

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"machine/acceptance/engine"
	"machine/agent/registry/registrytest"
)

// guarded starts Debian's registry with a password, on port 5000.
func guarded(e *engine.Engine, user, password string) (addr string, stop func()) {
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		e.T.Fatal(err)
	}
	dir := filepath.Join(e.Dir, "guarded")
	os.MkdirAll(dir, 0o700)
	os.WriteFile(dir+".htpasswd", []byte(user+":"+string(hash)+"\n"), 0o600)
	conf := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nauth: {htpasswd: {realm: basic, path: %s.htpasswd}}\nhttp: {addr: \"127.0.0.1:5000\"}\n", dir, dir)
	os.WriteFile(dir+".yml", []byte(conf), 0o600)
	c := e.Host("sh", "-c", fmt.Sprintf("echo $$ >%s.pid; exec docker-registry serve %s.yml", dir, dir))
	if err := c.Start(); err != nil {
		e.T.Fatal(err)
	}
	stop = func() {
		e.HostRun("sh", "-c", fmt.Sprintf("kill -9 $(cat %s.pid)", dir))
		c.Wait()
	}
	e.Eventually("the registry answers", func() bool {
		_, err := e.HostRun("curl", "-s", "http://127.0.0.1:5000/v2/")
		return err == nil
	})
	return "127.0.0.1:5000", stop
}

// TestLoginPassword: docker login and logout with a name and a password.
func TestLoginPassword(t *testing.T) {
	e := start(t)
	reg, stop := guarded(e, "me", "secret")
	name := reg + "/my/box:1"
	e.Run("tag", "busybox", name)
	e.Fails(1, "no basic auth credentials", "push", name)
	e.Fails(1, "pull access denied for "+reg+"/my/box, repository does not exist or may require 'docker login'", "pull", name)
	e.Fails(1, "login attempt to http://"+reg+"/v2/ failed with status: 401 Unauthorized", "login", "-u", "me", "-p", "wrong", reg)
	engine.Contains(t, "login", e.Input("secret", "login", "-u", "me", "--password-stdin", reg), "Login Succeeded")
	engine.Contains(t, "again, by what is kept", e.Run("login", reg), "Login Succeeded")
	e.Run("push", name)
	e.Run("rmi", name)
	e.Run("pull", name)
	e.Run("rmi", name)
	engine.Contains(t, "run", e.Run("run", "--rm", "--network", "none", name, "echo", "hello"), "hello")
	engine.Contains(t, "logout", e.Run("logout", reg), "Removing login credentials")
	e.Run("rmi", name)
	e.Fails(1, "pull access denied", "pull", name)
	e.Fails(125, "pull access denied", "run", "--rm", name, "true")
	if code, body := e.Do("POST", "/v1.51/auth", `{"username":"me","password":"wrong","serveraddress":"http://`+reg+`"}`); code != 401 || !strings.Contains(body, "401 Unauthorized") {
		t.Errorf("auth: %d %s", code, body)
	}
	stop()
	e.Audit()
}

// tokens is a token server that gives identity tokens, and tokens that end
// after a few requests.
type tokens struct {
	r *registrytest.Registry

	mu    sync.Mutex
	left  map[string]int // requests that a token is good for
	asked []string
}

func (s *tokens) answer(w http.ResponseWriter, q *http.Request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q.URL.Path != "/token" {
		tok := q.Header.Get("Authorization")
		if s.left[tok]--; s.left[tok] < 0 {
			w.Header().Set("Www-Authenticate", `Bearer realm="http://`+q.Host+`/token",service="reg"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		if q.Method == http.MethodHead && strings.HasPrefix(q.URL.Path, "/v2/b/") { // it has blobs for all repositories
			w.WriteHeader(http.StatusNotFound)
			return true
		}
		return false
	}
	q.ParseForm()
	u, p, _ := q.BasicAuth()
	switch {
	case q.PostForm.Get("grant_type") == "refresh_token" && q.PostForm.Get("refresh_token") == "identity":
		s.asked = append(s.asked, "identity "+q.PostForm.Get("scope"))
	case u == "me" && p == "secret":
		s.asked = append(s.asked, "password "+strings.Join(q.Form["scope"], " "))
	default:
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"details":"incorrect username or password"}`)
		return true
	}
	tok := fmt.Sprint("tok", len(s.left))
	s.left["Bearer "+tok] = 4
	extra := ""
	if q.Form.Get("offline_token") == "true" {
		extra = `,"refresh_token":"identity"`
	}
	fmt.Fprintf(w, `{"token":%q,"expires_in":300%s}`, tok, extra)
	return true
}

func (s *tokens) heard() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.asked = nil }()
	return strings.Join(s.asked, "\n")
}

// TestLoginIdentityToken: docker login keeps a token server's identity token
// instead of the password; it is what pulls and pushes then get their tokens
// with, also when these end in the middle.
func TestLoginIdentityToken(t *testing.T) {
	e := start(t, "--max-concurrent-uploads", "1", "--max-concurrent-downloads", "1")
	s := &tokens{r: registrytest.New(t, false), left: map[string]int{}}
	s.r.Fault = s.answer
	l := listenOn(e)
	srv := &http.Server{Handler: s.r}
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(l) })
	stop := func() { srv.Close(); wg.Wait() }
	t.Cleanup(stop)
	reg := l.Addr().String()
	e.Fails(1, "incorrect username or password", "login", "-u", "me", "-p", "wrong", reg)
	engine.Contains(t, "login", e.Input("secret", "login", "-u", "me", "--password-stdin", reg), "Login Succeeded")
	b, _ := os.ReadFile(filepath.Join(e.Dir, "client/config.json"))
	engine.Contains(t, "what the client keeps", string(b), `"identitytoken": "identity"`)
	s.heard()
	layered(e)
	name := reg + "/a/box:1"
	e.Run("tag", "new:1", name)
	e.Run("push", name)
	engine.Contains(t, "by the identity token", s.heard(), "identity repository:a/box:pull,push")
	e.Run("tag", "new:1", reg+"/b/box:1")
	engine.Contains(t, "mounts", e.Run("push", reg+"/b/box:1"), "Mounted from a/box")
	engine.Contains(t, "both repositories are asked for", s.heard(), "identity repository:b/box:pull,push repository:a/box:pull")
	e.Run("rmi", name, reg+"/b/box:1", "new:1", "new:0", "busybox")
	engine.Equal(t, "images", e.Run("images", "-aq"), "")
	e.Run("pull", name)
	saysLayered(t, e, name)
	engine.Contains(t, "to pull", s.heard(), "identity repository:a/box:pull")
	if strings.Contains(e.Log(), "identity") && strings.Contains(e.Log(), "secret") {
		t.Error("the log tells secrets")
	}
	e.Run("logout", reg)
	e.Run("rmi", name)
	e.Fails(1, "pull access denied", "pull", name)
	stop()
	e.Audit()
}
