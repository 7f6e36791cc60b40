package cli_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"machine/certs"
)

// engineOfOthers answers as an engine does, to whom its own CA has signed.
func engineOfOthers(t *testing.T, dir string) (url string) {
	t.Helper()
	now := time.Now()
	ca, err := certs.NewCA("others", now)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := certs.Issue(ca, certs.Request{Org: "srv", Server: true, SANs: []string{"127.0.0.1"}}, now)
	if err != nil {
		t.Fatal(err)
	}
	client, err := certs.Issue(ca, certs.Request{Org: "client", Client: true}, now)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"ca.pem": ca.Cert, "cert.pem": client.Cert, "key.pem": client.Key} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pair, err := tls.X509KeyPair(srv.Cert, srv.Key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.Cert)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, `{"Version":"28.5.0","ApiVersion":"1.51"}`)
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}
	s.StartTLS()
	t.Cleanup(s.Close)
	return "tcp://" + s.Listener.Addr().String()
}

// TestForeignEngine adopts an engine with a CA of its own: it gets no
// certificate of ours, nothing of it is changed, and the commands that follow
// need no flags.
func TestForeignEngine(t *testing.T) {
	store, theirs := newStore(t), t.TempDir()
	url := engineOfOthers(t, theirs)
	file := func(name string) string { return filepath.Join(theirs, name) }
	flags := []string{"--tls-ca-cert", file("ca.pem"), "--tls-client-cert", file("cert.pem"), "--tls-client-key", file("key.pem")}
	must(t, append(flags, "create", "-d", "none", "--url", url, "old")...)
	must(t, "create", "-d", "none", "--url", "tcp://127.0.0.1:1", "other") // with our own CA
	if got := must(t, "version", "old"); got != "28.5.0\n" {
		t.Errorf("version: %q", got)
	}
	if got := must(t, "ls", "-t", "5"); !strings.Contains(got, "v28.5.0") {
		t.Errorf("ls: %s", got)
	}
	must(t, "config", "old")
	must(t, "rename", "old", "new")
	if got := must(t, "env", "new"); !strings.Contains(got, filepath.Join(store, "machines/new")) {
		t.Errorf("env: %s", got)
	}
	for _, name := range []string{"ca.pem", "cert.pem", "key.pem"} {
		want, _ := os.ReadFile(file(name))
		if got, err := os.ReadFile(filepath.Join(store, "machines/new", name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	t.Setenv("MACHINE_PASSPHRASE", "a long passphrase")
	out := filepath.Join(t.TempDir(), "export")
	must(t, "export", "-o", out, "new")
	must(t, "import", out, "again")
	must(t, "config", "again")
	if code, _, errs := machine(t, "ssh", "new", "true"); code != 1 || !strings.Contains(errs, "only a URL") {
		t.Errorf("ssh: %d %s", code, errs)
	}
	// A client's certificate that the user named is never overwritten.
	before, _ := os.ReadFile(file("cert.pem"))
	code, _, errs := machine(t, "--tls-client-cert", file("cert.pem"), "--tls-client-key", file("key.pem"), "create", "-d", "none", "--url", url, "x")
	if after, _ := os.ReadFile(file("cert.pem")); code == 0 || !strings.Contains(errs, "left as it is") || !bytes.Equal(before, after) {
		t.Errorf("a certificate of another CA: exit %d %s", code, errs)
	}
	if code, _, errs := machine(t, "--tls-ca-cert", file("ca.pem"), "--tls-client-cert", file("ca.pem"), "--tls-client-key", file("key.pem"), "create", "-d", "none", "--url", url, "x"); code == 0 || !strings.Contains(errs, "is not the key of") {
		t.Errorf("a key of another certificate: exit %d %s", code, errs)
	}
}
