package certs

import (
	"crypto/x509"
	"testing"
	"time"
)

func TestS46Certificates(t *testing.T) {
	now := time.Now()
	ca, err := NewCA("user", now)
	if err != nil {
		t.Fatal(err)
	}
	other, _ := NewCA("other", now)
	srv, err := Issue(ca, Request{Org: "user.dev", Server: true, SANs: []string{"10.0.0.5", "localhost", "dev"}}, now)
	if err != nil {
		t.Fatal(err)
	}
	cli, err := Issue(ca, Request{Org: "user", Client: true}, now)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what   string
		ca     Pair
		cert   Pair
		usage  x509.ExtKeyUsage
		names  []string
		at     time.Time
		wantOK bool
	}{
		{"server", ca, srv, x509.ExtKeyUsageServerAuth, []string{"10.0.0.5", "localhost", "dev"}, now, true},
		{"server, late clock", ca, srv, x509.ExtKeyUsageServerAuth, nil, now.Add(-10 * time.Minute), true},
		{"client", ca, cli, x509.ExtKeyUsageClientAuth, nil, now, true},
		{"other CA", other, srv, x509.ExtKeyUsageServerAuth, nil, now, false},
		{"expired", ca, srv, x509.ExtKeyUsageServerAuth, nil, now.Add(Life + time.Minute), false},
		{"future", ca, srv, x509.ExtKeyUsageServerAuth, nil, now.Add(-2 * Skew), false},
		{"server as client", ca, srv, x509.ExtKeyUsageClientAuth, nil, now, false},
		{"client as server", ca, cli, x509.ExtKeyUsageServerAuth, nil, now, false},
		{"wrong SAN", ca, srv, x509.ExtKeyUsageServerAuth, []string{"10.0.0.6"}, now, false},
	} {
		err := Check(c.ca.Cert, c.cert.Cert, c.usage, c.names, c.at)
		if (err == nil) != c.wantOK {
			t.Errorf("%s: got %v, want ok %v", c.what, err, c.wantOK)
		}
	}
	if Stale(srv.Cert, now) || !Stale(srv.Cert, now.Add(Life*2/3+time.Hour)) || !Stale([]byte("x"), now) {
		t.Error("Stale is wrong")
	}
	if _, err := Issue(srv, Request{Org: "x"}, now); err == nil {
		t.Error("a server certificate signed another one")
	}
	if !srv.Matches() || (Pair{Cert: srv.Cert, Key: cli.Key}).Matches() {
		t.Error("Matches is wrong")
	}
}
