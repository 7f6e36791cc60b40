package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/network/dns"
	"machine/agent/network/firewall"
	"machine/agent/network/link"
)

// ResolverAddr is where the embedded resolver answers in a container.
var ResolverAddr = netip.AddrFrom4([4]byte{127, 0, 0, 11})

// A resolver is the embedded name server of one sandbox.
type resolver struct {
	views
	srv *dns.Server
	ups atomic.Pointer[[]dns.Upstream]
}

// Upstreams implements dns.Records.
func (r *resolver) Upstreams() []dns.Upstream {
	if p := r.ups.Load(); p != nil {
		return *p
	}
	return nil
}

func (r *resolver) close() {
	if r != nil {
		r.srv.Close()
	}
}

// startResolver opens the sandbox's resolver, or refreshes the one that is
// open. The caller holds sb.mu.
//
// It listens on free ports and has port 53 led there, as Docker does: a
// container that is a name server itself keeps port 53 at all its addresses.
func (m *Manager) startResolver(sb *sandbox, ns *link.NS) error {
	if sb.dns == nil {
		r := &resolver{views: views{t: m.names}}
		var pc *net.UDPConn
		var l *net.TCPListener
		err := ns.Do(func() (err error) {
			pc, l, err = listenResolver(0)
			return err
		})
		if err != nil {
			return fmt.Errorf("embedded resolver: %w", err)
		}
		err = firewall.ResolverNAT(ns.FD(), ResolverAddr, port(pc.LocalAddr()), port(l.Addr()))
		if err != nil {
			m.log.Debug("embedded resolver: no translation in the container's namespace, taking port 53 itself", "err", err)
			pc.Close()
			l.Close()
			if err := ns.Do(func() (err error) { pc, l, err = listenResolver(53); return err }); err != nil {
				return fmt.Errorf("embedded resolver: %w", err)
			}
		}
		r.set(sb.eps)
		r.srv = dns.Serve(r, m.log, pc, l)
		sb.dns = r
	}
	m.refreshResolver(sb)
	return nil
}

func listenResolver(port uint16) (*net.UDPConn, *net.TCPListener, error) {
	at := netip.AddrPortFrom(ResolverAddr, port)
	pc, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, nil, err
	}
	l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at))
	if err != nil {
		pc.Close()
		return nil, nil, err
	}
	return pc, l, nil
}

func port(a net.Addr) uint16 {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return 0
	}
	return ap.Port()
}

// refreshResolver tells the resolver what the sandbox sees now. The caller
// holds sb.mu.
func (m *Manager) refreshResolver(sb *sandbox) {
	if sb.dns == nil {
		return
	}
	sb.dns.set(sb.eps)
	leaves := false
	for _, ep := range sb.eps {
		leaves = leaves || !ep.Internal
	}
	var ups []dns.Upstream
	if leaves { // an internal network asks nobody outside
		ups = m.upstreams(sb)
	}
	sb.dns.ups.Store(&ups)
}

// upstreams are the user's servers, reached from the container's namespace,
// or else the host's, reached from the host's.
func (m *Manager) upstreams(sb *sandbox) []dns.Upstream {
	var out []dns.Upstream
	servers := sb.dnsConf.Servers
	if len(servers) == 0 {
		servers = parseAddrs(m.o.DNS)
	}
	for _, a := range servers {
		key := sb.key
		out = append(out, dns.Upstream{Addr: netip.AddrPortFrom(a, 53),
			Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
				return dialIn(ctx, key, network, address)
			}})
	}
	if len(out) > 0 {
		return out
	}
	for _, a := range readResolvConf(m.o.HostResolvConf).servers {
		out = append(out, dns.Upstream{Addr: netip.AddrPortFrom(a, 53)})
	}
	return out
}

// dialIn dials from the namespace bound to key. The address is a literal: the
// dial happens on the calling thread.
func dialIn(ctx context.Context, key, network, address string) (c net.Conn, err error) {
	ns, err := link.OpenNS(key)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	err = ns.Do(func() (err error) {
		c, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

func parseAddrs(list []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

func (m *Manager) stopResolver(sb *sandbox) error {
	sb.dns.close()
	sb.dns = nil
	return m.dnsConfs.Delete(sb.container)
}

// resolvConf is a parsed resolv.conf(5).
type resolvConf struct {
	servers         []netip.Addr
	search, options []string
}

// readResolvConf reads the host's file. Where it names only the stub of
// systemd-resolved, the servers behind that are read.
func readResolvConf(path string) resolvConf {
	c := parseResolvConf(path)
	if len(c.servers) == 1 && c.servers[0] == netip.AddrFrom4([4]byte{127, 0, 0, 53}) {
		if real := parseResolvConf("/run/systemd/resolve/resolv.conf"); len(real.servers) > 0 {
			return real
		}
	}
	return c
}

func parseResolvConf(path string) (c resolvConf) {
	b, err := os.ReadFile(path)
	if err != nil {
		return c // no file: no servers, as the C library sees it
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) < 2 || f[0][0] == '#' || f[0][0] == ';' {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil {
				c.servers = append(c.servers, a)
			}
		case "domain", "search": // the last one counts
			c.search = f[1:]
		case "options":
			c.options = append(c.options, f[1:]...)
		}
	}
	return c
}

// ResolvConf is the content of a container's /etc/resolv.conf. With embedded
// it points at the embedded resolver, which is opened where the sandbox has a
// network of the user's; c then configures what it asks. Safe to repeat.
func (m *Manager) ResolvConf(ctx context.Context, key string, c model.DNSConfig, embedded bool) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := m.configureDNS(key, c, embedded); err != nil {
		return nil, err
	}
	host := readResolvConf(m.o.HostResolvConf)
	search, options := host.search, host.options
	if len(m.o.DNSSearch) > 0 {
		search = m.o.DNSSearch
	}
	if len(c.Search) > 0 {
		search = c.Search
	}
	if len(m.o.DNSOpts) > 0 {
		options = m.o.DNSOpts
	}
	if len(c.Options) > 0 {
		options = c.Options
	}
	if slices.Contains(search, ".") { // Docker: no search list
		search = nil
	}
	servers := c.Servers
	if len(servers) == 0 {
		servers = parseAddrs(m.o.DNS)
	}
	if len(servers) == 0 {
		servers = usable(host.servers, key == "" || key == "host")
	}
	if embedded {
		servers = []netip.Addr{ResolverAddr}
		if !slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
			options = append(slices.Clone(options), "ndots:0")
		}
	}
	return formatResolvConf(servers, search, options), nil
}

// configureDNS remembers c for the sandbox's resolver, over a restart too.
func (m *Manager) configureDNS(key string, c model.DNSConfig, embedded bool) error {
	m.mu.Lock()
	sb := m.sandboxes[key]
	m.mu.Unlock()
	if sb == nil {
		if embedded {
			return fault.NotFound.Errorf("sandbox %s not found", key)
		}
		return nil
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	sb.dnsConf = c
	if len(c.Servers)+len(c.Options)+len(c.Search) > 0 {
		if err := m.dnsConfs.Put(sb.container, c); err != nil {
			return err
		}
	}
	if !embedded || sb.dns != nil {
		m.refreshResolver(sb)
		return nil
	}
	ns, err := link.OpenNS(key)
	if err != nil {
		return err
	}
	defer ns.Close()
	return m.startResolver(sb, ns)
}

// usable leaves out loopback servers, which a container cannot reach; Google's
// are used when none is left, as Docker does.
func usable(servers []netip.Addr, hostNet bool) []netip.Addr {
	if hostNet {
		return servers
	}
	var out []netip.Addr
	for _, a := range servers {
		if !a.IsLoopback() {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		out = []netip.Addr{netip.AddrFrom4([4]byte{8, 8, 8, 8}), netip.AddrFrom4([4]byte{8, 8, 4, 4})}
	}
	return out
}

func formatResolvConf(servers []netip.Addr, search, options []string) []byte {
	var b strings.Builder
	b.WriteString("# Generated by the container engine; a container may change it.\n")
	for _, a := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	if len(search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return []byte(b.String())
}

// Rename changes the DNS name of a container's endpoints.
func (m *Manager) Rename(containerID, name string) {
	sb := m.sandboxOf(containerID)
	if sb == nil {
		return
	}
	name = strings.TrimPrefix(name, "/")
	sb.mu.Lock()
	defer sb.mu.Unlock()
	for _, ep := range sb.eps {
		n, ok := m.nets.Get(ep.NetworkID)
		if !ok {
			continue
		}
		m.names.remove(ep)
		ep.ContainerName = name
		ep.DNSNames = dnsNames(n, ep)
		m.names.add(ep)
		if err := m.eps.Put(ep.ID, ep); err != nil {
			m.log.Error("rename of an endpoint is not recorded", "endpoint", ep.ID, "err", err)
		}
	}
}

// Stats are the counters of a sandbox's interfaces, by their names inside.
func (m *Manager) Stats(ctx context.Context, key string) (map[string]model.LinkStats, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if key == "" || key == "host" {
		return map[string]model.LinkStats{}, nil // Docker shows none for the host's
	}
	ns, err := link.OpenNS(key)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	list, err := ns.Stats()
	if err != nil {
		return nil, err
	}
	out := make(map[string]model.LinkStats, len(list))
	for name, c := range list {
		out[name] = model.LinkStats(c)
	}
	return out, nil
}
