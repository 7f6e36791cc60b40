package docker

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"machine/acceptance/engine"
)

// A hub is the world as an engine behind a proxy sees it: a proxy that leads
// every https host to one registry, whose certificate is a private authority's.
type hub struct {
	addr   string // of the proxy
	ca     []byte // PEM
	inside string // the socket where the registry speaks TLS
	reg    http.Handler

	mu   sync.Mutex
	seen []string // METHOD host/path, as it came to the registry
}

// newHub serves what handler has as host through a proxy.
func newHub(e *engine.Engine, host string, handler http.Handler) *hub {
	e.T.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		e.T.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		e.T.Fatal(err)
	}
	l := listenOn(e)
	h := &hub{addr: l.Addr().String(), ca: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		inside: filepath.Join(e.T.TempDir(), "tls"), reg: handler}
	secret, err := net.Listen("unix", h.inside)
	if err != nil {
		e.T.Fatal(err)
	}
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	srv := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0)}
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(l) })
	wg.Go(func() { srv.Serve(tls.NewListener(secret, &tls.Config{Certificates: []tls.Certificate{cert}})) })
	e.T.Cleanup(func() { srv.Close(); wg.Wait() })
	return h
}

// ServeHTTP is the proxy, which leads CONNECT HOST:443 to the TLS inside, and
// the registry behind it.
func (h *hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		h.note(r)
		h.reg.ServeHTTP(w, r)
		return
	}
	in, err := net.Dial("unix", h.inside)
	if err != nil {
		return
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		in.Close()
		return
	}
	fmt.Fprint(conn, "HTTP/1.1 200 Connection established\r\n\r\n")
	var wg sync.WaitGroup
	wg.Go(func() { io.Copy(in, conn); in.Close() })
	io.Copy(conn, in)
	conn.Close()
	wg.Wait()
}

func (h *hub) note(q *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen = append(h.seen, q.Method+" "+q.Host+q.URL.RequestURI())
}

func (h *hub) requests() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer func() { h.seen = nil }()
	return strings.Join(h.seen, "\n")
}

// onSocket speaks to a registry at a unix socket.
func onSocket(path string) http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "registry" },
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}},
		FlushInterval: -1, ErrorLog: log.New(io.Discard, "", 0),
	}
}

// TestMirrorsAndProxies: daemon.json sends pulls of Docker Hub's images to a
// mirror first and to the Hub when the mirror has none, through a proxy that
// no_proxy keeps the mirror out of, with an authority from certs.d.
func TestMirrorsAndProxies(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "daemon.json")
	os.WriteFile(conf, []byte("{}"), 0o600)
	e := start(t, "--config-file", conf)
	mirror, stop := counted(e)
	if out, err := e.HostRun("sh", "-c", fmt.Sprintf("cd %s && mkdir -p etc.u etc.w && mount -t overlay overlay -o lowerdir=/etc,upperdir=etc.u,workdir=etc.w /etc && mkdir -p /etc/docker/certs.d/registry-1.docker.io", e.Dir)); err != nil {
		t.Fatal(out)
	}
	h := newHub(e, "registry-1.docker.io", onSocket(filepath.Join(e.Dir, "counted", "socket")))
	if out, err := e.HostRun("sh", "-c", "cat >/etc/docker/certs.d/registry-1.docker.io/ca.crt <<'EOF'\n"+string(h.ca)+"EOF"); err != nil {
		t.Fatal(out)
	}
	e.Run("tag", "busybox", mirror.addr+"/library/box:1")
	e.Run("push", mirror.addr+"/library/box:1")
	e.Run("tag", "busybox", mirror.addr+"/origin/box:2")
	e.Run("push", mirror.addr+"/origin/box:2")
	id := e.Run("inspect", "-f", "{{.Id}}", "busybox")
	configure := func(text string) {
		t.Helper()
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		e.Restart()
		e.Run("image", "prune", "-af")
	}

	configure(fmt.Sprintf(`{"registry-mirrors": ["http://%s"]}`, mirror.addr))
	engine.Contains(t, "info", e.Run("info"), "http://"+mirror.addr+"/")
	mirror.reset(0)
	e.Run("pull", "box:1")
	engine.Equal(t, "the mirror's image", e.Run("inspect", "-f", "{{.Id}} {{.RepoTags}}", "box:1"), id+" [box:1]")
	if n, _ := mirror.seen(); n == 0 {
		t.Error("nothing came from the mirror")
	}
	engine.Equal(t, "the hub was asked", h.requests(), "")

	// A mirror that is away, and one that has nothing.
	for _, m := range []string{"http://127.0.0.1:1", "http://" + mirror.addr + "/nothing/here"} {
		configure(fmt.Sprintf(`{"registry-mirrors": [%q], "proxies": {"https-proxy": "http://%s", "http-proxy": "http://127.0.0.1:2", "no-proxy": "127.0.0.0/8"}}`, m, h.addr))
		e.Run("pull", "origin/box:2")
		engine.Equal(t, "the hub's image", e.Run("inspect", "-f", "{{.Id}}", "origin/box:2"), id)
		engine.Contains(t, "the hub heard", h.requests(), "GET registry-1.docker.io/v2/origin/box/manifests/2")
	}
	// Without the authority nothing is believed.
	if out, err := e.HostRun("rm", "-r", "/etc/docker/certs.d"); err != nil {
		t.Fatal(out)
	}
	configure(fmt.Sprintf(`{"proxies": {"https-proxy": "http://%s"}}`, h.addr))
	e.Fails(1, "certificate", "pull", "origin/box:2")
	// An import goes by the proxy, too.
	configure(fmt.Sprintf(`{"proxies": {"http-proxy": "http://%s"}}`, h.addr))
	h.requests()
	e.Try("import", "http://files.test/image.tar")
	engine.Contains(t, "the proxy heard", h.requests(), "GET files.test")
	stop()
	e.Audit()
}

// TestCrossRepositoryMount: a layer that the registry has in another
// repository does not travel again, and an image may have 125 layers.
func TestCrossRepositoryMount(t *testing.T) {
	e := start(t)
	_, stop := counted(e)
	h := newHub(e, "registry.test", onSocket(filepath.Join(e.Dir, "counted", "socket")))
	name := h.addr + "/one/box:1"
	e.Run("run", "--name", "cc", "busybox", "sh", "-c", "dd if=/dev/urandom of=/big bs=1M count=3 2>/dev/null")
	e.Run("commit", "cc", name)
	e.Run("push", name)
	first := h.requests()
	engine.Contains(t, "the first push", first, "PUT "+h.addr+"/v2/one/box/blobs/uploads/")
	e.Run("tag", name, h.addr+"/two/box:1")
	engine.Contains(t, "the client is told", e.Run("push", h.addr+"/two/box:1"), "Mounted from one/box")
	second := h.requests()
	engine.Contains(t, "the second push", second, "POST "+h.addr+"/v2/two/box/blobs/uploads/?from=one%2Fbox&mount=sha256")
	if strings.Count(second, "PATCH ") > 1 { // of the configuration, which is no layer
		t.Errorf("a layer travelled again:\n%s", second)
	}
	e.Run("rm", "cc")
	deep := "busybox"
	for i := range 123 { // and the image's own, and the last
		id := e.Run("create", deep, "true")
		e.Run("cp", filepath.Join(e.Dir, "agent.pid"), id+":/layer"+fmt.Sprint(i))
		deep = e.Run("commit", id)
		e.Run("rm", id)
	}
	engine.Equal(t, "layers", e.Run("inspect", "-f", "{{len .RootFS.Layers}}", deep), "124")
	engine.Equal(t, "files of all of them", e.Run("run", "--rm", deep, "sh", "-c", "ls / | grep -c layer"), "123")
	id := e.Run("create", deep, "true")
	e.Run("cp", filepath.Join(e.Dir, "agent.pid"), id+":/last")
	last := e.Run("commit", id)
	engine.Equal(t, "files of all of them", e.Run("run", "--rm", last, "sh", "-c", "ls / | grep -c layer; ls /last"), "123\n/last")
	over := e.Run("create", last, "true")
	e.Run("cp", filepath.Join(e.Dir, "agent.pid"), over+":/over")
	e.Fails(1, "max depth exceeded", "commit", over)
	stop()
	e.Audit()
}
