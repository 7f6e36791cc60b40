package dns

import (
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// fake knows two names and one upstream.
type fake struct{ up []Upstream }

func (f *fake) Lookup(name string) ([]netip.Addr, bool) {
	switch name {
	case "web", "web.back":
		return []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")}, true
	case "six":
		return []netip.Addr{netip.MustParseAddr("fd00::2")}, true
	}
	return nil, false
}

func (f *fake) Reverse(a netip.Addr) (string, bool) {
	return "web.back", a == netip.MustParseAddr("10.0.0.2") || a == netip.MustParseAddr("fd00::2")
}

func (f *fake) Upstreams() []Upstream { return f.up }

func serve(t *testing.T, rec Records) string {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	s := Serve(rec, slog.New(slog.DiscardHandler), pc, l)
	t.Cleanup(func() { s.Close(); s.Close() })
	return pc.LocalAddr().String()
}

// upstream runs a server that answers everything with rcode, and A with ip.
func upstream(t *testing.T, rcode int, ip string) Upstream {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	srv := &dns.Server{PacketConn: pc, NotifyStartedFunc: func() { close(ready) },
		Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			r := new(dns.Msg).SetRcode(q, rcode)
			if ip != "" {
				r.Answer = []dns.RR{&dns.A{Hdr: header(q.Question[0].Name, dns.TypeA), A: net.ParseIP(ip)}}
			}
			_ = w.WriteMsg(r)
		})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.ActivateAndServe() }()
	<-ready
	t.Cleanup(func() { _ = srv.Shutdown(); <-done })
	return Upstream{Addr: netip.MustParseAddrPort(pc.LocalAddr().String())}
}

func ask(t *testing.T, network, server, name string, typ uint16) *dns.Msg {
	t.Helper()
	c := &dns.Client{Net: network, Timeout: 10 * time.Second}
	r, _, err := c.Exchange(new(dns.Msg).SetQuestion(dns.Fqdn(name), typ), server)
	if err != nil {
		t.Fatalf("%s %s: %v", dns.TypeToString[typ], name, err)
	}
	return r
}

func TestKnownNames(t *testing.T) {
	server := serve(t, &fake{})
	for _, network := range []string{"udp", "tcp"} {
		for _, name := range []string{"web", "WEB.back", "web.back"} {
			r := ask(t, network, server, name, dns.TypeA)
			if r.Rcode != dns.RcodeSuccess || len(r.Answer) != 2 || r.Answer[0].Header().Ttl != 600 {
				t.Errorf("%s %s: got %v", network, name, r)
			}
		}
	}
	for _, q := range []struct {
		name string
		typ  uint16
	}{{"web", dns.TypeAAAA}, {"six", dns.TypeA}, {"web", dns.TypeMX}} {
		if r := ask(t, "udp", server, q.name, q.typ); r.Rcode != dns.RcodeSuccess || len(r.Answer) != 0 {
			t.Errorf("%s %s: got %v, want an empty answer", dns.TypeToString[q.typ], q.name, r)
		}
	}
}

func TestReverse(t *testing.T) {
	server := serve(t, &fake{})
	for _, ip := range []string{"10.0.0.2", "fd00::2"} {
		name, err := dns.ReverseAddr(ip)
		if err != nil {
			t.Fatal(err)
		}
		r := ask(t, "udp", server, name, dns.TypePTR)
		if len(r.Answer) != 1 || !strings.Contains(r.Answer[0].String(), "web.back.") {
			t.Errorf("%s: got %v", ip, r)
		}
	}
}

func TestForward(t *testing.T) {
	bad, good := upstream(t, dns.RcodeRefused, ""), upstream(t, dns.RcodeSuccess, "192.0.2.7")
	r := ask(t, "udp", serve(t, &fake{up: []Upstream{bad, good}}), "example.com", dns.TypeA)
	if len(r.Answer) != 1 || !strings.Contains(r.Answer[0].String(), "192.0.2.7") {
		t.Errorf("got %v", r)
	}
	r = ask(t, "udp", serve(t, &fake{up: []Upstream{bad}}), "example.com", dns.TypeA)
	if r.Rcode != dns.RcodeRefused {
		t.Errorf("all refuse: got %v", r)
	}
}

func TestS36NoUpstreamNoForward(t *testing.T) {
	if r := ask(t, "udp", serve(t, &fake{}), "example.com", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("got %v, want SERVFAIL", r)
	}
}

func TestReverseNames(t *testing.T) {
	for _, s := range []string{"", "in-addr.arpa", "1.2.3.in-addr.arpa", "1.2.3.4.5.in-addr.arpa", "x.2.3.4.in-addr.arpa",
		"999.2.3.4.in-addr.arpa", "ip6.arpa", strings.Repeat("g.", 32) + "ip6.arpa", strings.Repeat("00.", 32) + "ip6.arpa"} {
		if a, ok := reverseAddr(s); ok {
			t.Errorf("%q: got %v", s, a)
		}
	}
}

func FuzzReverseAddr(f *testing.F) {
	f.Add("4.3.2.1.in-addr.arpa")
	f.Add(strings.Repeat("a.", 32) + "ip6.arpa")
	f.Fuzz(func(t *testing.T, s string) { reverseAddr(s) })
}
