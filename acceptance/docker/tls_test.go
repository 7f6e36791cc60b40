package docker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"machine/acceptance/engine"
	"machine/certs"
)

// overTLS has the agent listen with certificates too, and returns how clients
// with one reach it.
func overTLS(e *engine.Engine) *tls.Config {
	e.T.Helper()
	now := time.Now()
	ca, err := certs.NewCA("test", now)
	if err != nil {
		e.T.Fatal(err)
	}
	server, err1 := certs.Issue(ca, certs.Request{SANs: []string{"127.0.0.1"}, Org: "test", Server: true}, now)
	client, err2 := certs.Issue(ca, certs.Request{Org: "test", Client: true}, now)
	if err1 != nil || err2 != nil {
		e.T.Fatal(err1, err2)
	}
	for name, b := range map[string][]byte{"ca.pem": ca.Cert, "server.pem": server.Cert, "server-key.pem": server.Key} {
		if err := os.WriteFile(filepath.Join(e.Dir, name), b, 0o600); err != nil {
			e.T.Fatal(err)
		}
	}
	e.Terminate()
	e.Flags = append(e.Flags, "--host", "tcp://127.0.0.1:2376", "--tlsverify", "--tlscacert", filepath.Join(e.Dir, "ca.pem"),
		"--tlscert", filepath.Join(e.Dir, "server.pem"), "--tlskey", filepath.Join(e.Dir, "server-key.pem"))
	e.Start()
	conf, err := certs.Client(ca.Cert, client, "127.0.0.1")
	if err != nil {
		e.T.Fatal(err)
	}
	return conf
}

// dialIn connects to a TCP address of the engine's host.
func dialIn(e *engine.Engine, addr string) (c net.Conn, err error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", e.AgentPid()))
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	done := make(chan bool)
	go func() {
		defer close(done)
		runtime.LockOSThread() // unlocked when it is back only
		home, e := os.Open("/proc/thread-self/ns/net")
		if err = e; err != nil {
			return
		}
		defer home.Close()
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return
		}
		c, err = net.Dial("tcp4", addr)
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		}
	}()
	<-done
	return c, err
}

// TestF45HalfOpenTLS: who connects and does not finish its handshake is cut
// off, while others are served.
func TestF45HalfOpenTLS(t *testing.T) {
	t.Parallel() // it mostly waits
	e := start(t)
	conf := overTLS(e)
	ping := func(conf *tls.Config) error {
		tr := &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
			return dialIn(e, "127.0.0.1:2376")
		}}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Get("https://127.0.0.1:2376/_ping")
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	if err := ping(conf); err != nil {
		t.Fatalf("with a certificate: %v", err)
	}
	stranger := conf.Clone()
	stranger.Certificates = nil
	if ping(stranger) == nil {
		t.Error("a client without a certificate is served")
	}
	fds, goroutines := counts(e)
	var conns []net.Conn
	for i := range 100 {
		c, err := dialIn(e, "127.0.0.1:2376")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, []string{"", "\x16", "\x16\x03\x01\x02\x00\x01\x00", "GET / HTTP"}[i%4])
		conns = append(conns, c)
	}
	if err := ping(conf); err != nil {
		t.Errorf("beside a hundred half-open ones: %v", err)
	}
	limit := time.Now().Add(60 * time.Second) // the agent's own is some ten
	for i, c := range conns {
		c.SetReadDeadline(limit)
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("connection %d (kind %d) is not cut off", i, i%4)
			break
		}
	}
	settles(e, fds, goroutines, 5)
	e.Audit()
}
