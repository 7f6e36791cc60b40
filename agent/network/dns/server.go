// Package dns is the embedded resolver of containers in networks of the
// user's: it answers for the names of the container's networks and forwards
// the rest. It behaves as Docker's does: known names have A and AAAA in random
// order with a TTL of 600 s, a name that is known by the other address family
// only is an empty answer (never forwarded), PTR is answered for known
// addresses. Sources: RFC 1035, RFC 2308.
package dns

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Limits of forwarding.
const (
	ttl          = 600
	maxUpstreams = 3
	perUpstream  = 4 * time.Second
	maxInFlight  = 1024
)

// Records answers for one container.
type Records interface {
	// Lookup returns the addresses of a name: lower case, no dot at the end.
	// known is true when the name is ours, even if it has no address.
	Lookup(name string) (addrs []netip.Addr, known bool)
	// Reverse returns the name of an address, without a dot at the end.
	Reverse(a netip.Addr) (name string, known bool)
	// Upstreams returns the servers to ask for all other names; none where
	// nothing may leave.
	Upstreams() []Upstream
}

// An Upstream is a server to forward to.
type Upstream struct {
	Addr netip.AddrPort
	// Dial connects from the namespace that the server is reached from; nil
	// is the agent's own.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// A Server is one running resolver.
type Server struct {
	rec      Records
	log      *slog.Logger
	udp, tcp *dns.Server
	slots    chan struct{}
	ctx      context.Context
	cancel   context.CancelFunc
	done     chan struct{}
}

// Serve answers on pc and l, which it takes over, until Close.
func Serve(rec Records, log *slog.Logger, pc net.PacketConn, l net.Listener) *Server {
	s := &Server{rec: rec, log: log, slots: make(chan struct{}, maxInFlight), done: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	h := dns.HandlerFunc(s.handle)
	started := make(chan struct{}, 2)
	note := func() { started <- struct{}{} }
	s.udp = &dns.Server{PacketConn: pc, Handler: h, NotifyStartedFunc: note}
	s.tcp = &dns.Server{Listener: l, Handler: h, NotifyStartedFunc: note}
	ended := make(chan struct{}, 2)
	for _, srv := range []*dns.Server{s.udp, s.tcp} {
		go func() {
			if err := srv.ActivateAndServe(); err != nil && !errors.Is(err, net.ErrClosed) {
				s.log.Debug("embedded resolver ended", "err", err)
			}
			select {
			case started <- struct{}{}: // it never started: nobody must wait for it
			default:
			}
			ended <- struct{}{}
		}()
	}
	<-started // Shutdown of a server that has not started yet would be lost
	<-started
	go func() {
		<-ended
		<-ended
		close(s.done)
	}()
	return s
}

// Close ends the resolver and closes its sockets. Safe to repeat.
func (s *Server) Close() {
	s.cancel()
	// Expired: queries under way are not waited for, their context is over.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = s.udp.ShutdownContext(ctx)
	_ = s.tcp.ShutdownContext(ctx)
	<-s.done
}

func (s *Server) handle(w dns.ResponseWriter, q *dns.Msg) {
	defer func() {
		if p := recover(); p != nil { // a hostile packet must not end the agent
			s.log.Error("embedded resolver: query dropped", "panic", p)
		}
	}()
	if q.Opcode != dns.OpcodeQuery || len(q.Question) != 1 {
		s.reply(w, q, new(dns.Msg).SetRcode(q, dns.RcodeNotImplemented))
		return
	}
	if r := s.answer(q); r != nil {
		s.reply(w, q, r)
		return
	}
	s.reply(w, q, s.forward(w, q))
}

func (s *Server) reply(w dns.ResponseWriter, q *dns.Msg, r *dns.Msg) {
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size := dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil && int(opt.UDPSize()) > size {
			size = int(opt.UDPSize())
		}
		r.Truncate(size)
	}
	if err := w.WriteMsg(r); err != nil {
		s.log.Debug("embedded resolver: reply", "err", err)
	}
}

// answer replies from the records; nil when the query is for others.
func (s *Server) answer(q *dns.Msg) *dns.Msg {
	qu := q.Question[0]
	if qu.Qclass != dns.ClassINET {
		return nil
	}
	name := strings.ToLower(strings.TrimSuffix(qu.Name, "."))
	switch qu.Qtype {
	case dns.TypeA, dns.TypeAAAA:
		addrs, known := s.rec.Lookup(name)
		if !known {
			return nil
		}
		return addresses(q, addrs, qu.Qtype == dns.TypeAAAA)
	case dns.TypeMX:
		if _, known := s.rec.Lookup(name); known {
			return authoritative(q)
		}
	case dns.TypePTR:
		a, ok := reverseAddr(name)
		if !ok {
			return nil
		}
		if host, known := s.rec.Reverse(a); known {
			r := authoritative(q)
			r.Answer = []dns.RR{&dns.PTR{Hdr: header(qu.Name, dns.TypePTR), Ptr: dns.Fqdn(host)}}
			return r
		}
	}
	return nil
}

func authoritative(q *dns.Msg) *dns.Msg {
	r := new(dns.Msg).SetReply(q)
	r.RecursionAvailable = true
	return r
}

func header(name string, typ uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: typ, Class: dns.ClassINET, Ttl: ttl}
}

func addresses(q *dns.Msg, addrs []netip.Addr, v6 bool) *dns.Msg {
	r := authoritative(q)
	name := q.Question[0].Name
	for _, a := range addrs {
		switch {
		case a.Is6() != v6:
		case v6:
			r.Answer = append(r.Answer, &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: a.AsSlice()})
		default:
			r.Answer = append(r.Answer, &dns.A{Hdr: header(name, dns.TypeA), A: a.AsSlice()})
		}
	}
	rand.Shuffle(len(r.Answer), func(i, j int) { r.Answer[i], r.Answer[j] = r.Answer[j], r.Answer[i] })
	return r
}

// reverseAddr reads the name of a PTR query.
func reverseAddr(name string) (netip.Addr, bool) {
	if v4, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		p := strings.Split(v4, ".")
		if len(p) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(p[3] + "." + p[2] + "." + p[1] + "." + p[0])
		return a, err == nil && a.Is4()
	}
	v6, ok := strings.CutSuffix(name, ".ip6.arpa")
	p := strings.Split(v6, ".")
	if !ok || len(p) != 32 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i := range p {
		n, err := strconv.ParseUint(p[31-i], 16, 4)
		if err != nil || len(p[31-i]) != 1 {
			return netip.Addr{}, false
		}
		b[i/2] = b[i/2]<<4 | byte(n)
	}
	return netip.AddrFrom16(b), true
}

// forward asks the upstreams one after the other. Without a useful answer the
// reply is SERVFAIL, or the last upstream's refusal.
func (s *Server) forward(w dns.ResponseWriter, q *dns.Msg) *dns.Msg {
	fail := new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
	fail.RecursionAvailable = true
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		s.log.Warn("embedded resolver: too many queries under way")
		return fail
	}
	network := "udp"
	if _, tcp := w.RemoteAddr().(*net.TCPAddr); tcp {
		network = "tcp"
	}
	ups := s.rec.Upstreams()
	for _, up := range ups[:min(len(ups), maxUpstreams)] {
		r, err := s.exchange(up, network, q)
		if err != nil {
			s.log.Debug("embedded resolver: upstream", "server", up.Addr, "err", err)
			continue
		}
		if r.Rcode == dns.RcodeServerFailure || r.Rcode == dns.RcodeRefused {
			fail = r
			continue
		}
		return r
	}
	return fail
}

func (s *Server) exchange(up Upstream, network string, q *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(s.ctx, perUpstream)
	defer cancel()
	dial := up.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	c, err := dial(ctx, network, up.Addr.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	client := &dns.Client{Net: network, Timeout: perUpstream}
	r, _, err := client.ExchangeWithConnContext(ctx, q, &dns.Conn{Conn: c})
	if err != nil {
		return nil, err
	}
	r.Id = q.Id
	return r, nil
}
