package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"

	apinetwork "github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"machine/agent/fault"
)

// hostPorts holds the host's ports that containers are published at: a bound
// socket each, so that conflicts with other programs are seen when they arise.
type hostPorts struct {
	mu   sync.Mutex
	held map[hostPort]io.Closer // nil for a protocol without sockets of ours
	next uint16                 // where the search for an ephemeral port goes on
}

type hostPort struct {
	proto apinetwork.IPProtocol
	addr  netip.AddrPort
}

func newHostPorts() *hostPorts { return &hostPorts{held: map[hostPort]io.Closer{}} }

func itoa(n uint16) string { return strconv.Itoa(int(n)) }

func (h *hostPorts) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k, c := range h.held {
		if c != nil {
			c.Close()
		}
		delete(h.held, k)
	}
}

// take binds one port of lo..hi (0, 0 for an ephemeral one) at all of addrs and
// returns it with the addresses that could be bound: those of an address
// family that the host does not have are left out.
func (h *hostPorts) take(proto apinetwork.IPProtocol, addrs []netip.Addr, lo, hi uint16) (uint16, []netip.Addr, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	ephemeral := lo == 0
	if ephemeral {
		lo, hi = ephemeralRange()
	}
	var last error
	for i := 0; i <= int(hi-lo); i++ {
		port := lo + uint16(i)
		if ephemeral {
			if h.next < lo || h.next > hi {
				h.next = lo
			}
			port = h.next
			h.next++
		}
		got, err := h.bind(proto, addrs, port)
		if err == nil {
			return port, got, nil
		}
		last = err
		if !errors.Is(err, unix.EADDRINUSE) && !fault.Is(err, fault.Conflict) {
			break
		}
	}
	if ephemeral && errors.Is(last, unix.EADDRINUSE) {
		last = fault.Internal.Errorf("all ports are allocated")
	}
	return 0, nil, last
}

func (h *hostPorts) bind(proto apinetwork.IPProtocol, addrs []netip.Addr, port uint16) (got []netip.Addr, err error) {
	defer func() {
		if err != nil {
			h.drop(proto, got, port)
		}
	}()
	for _, a := range addrs {
		ap := netip.AddrPortFrom(a, port)
		if h.conflicts(proto, ap) {
			return got, fault.Conflict.Errorf("Bind for %s failed: port is already allocated", ap)
		}
		c, err := listen(proto, ap)
		if err != nil {
			// A host without IPv6: publishing "everywhere" is IPv4 only.
			if a.Is6() && len(addrs) > 1 && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) {
				continue
			}
			return got, fmt.Errorf("failed to bind host port %s/%s: %w", ap, proto, cause(err))
		}
		h.held[hostPort{proto, ap}] = c
		got = append(got, a)
	}
	return got, nil
}

// conflicts reports whether a container is published there already: a port
// at all addresses excludes every single one.
func (h *hostPorts) conflicts(proto apinetwork.IPProtocol, ap netip.AddrPort) bool {
	for k := range h.held {
		if k.proto != proto || k.addr.Port() != ap.Port() || k.addr.Addr().Is6() != ap.Addr().Is6() {
			continue
		}
		if k.addr == ap || k.addr.Addr().IsUnspecified() || ap.Addr().IsUnspecified() {
			return true
		}
	}
	return false
}

func (h *hostPorts) drop(proto apinetwork.IPProtocol, addrs []netip.Addr, port uint16) {
	for _, a := range addrs {
		k := hostPort{proto, netip.AddrPortFrom(a, port)}
		if c := h.held[k]; c != nil {
			c.Close()
		}
		delete(h.held, k)
	}
}

// release lets one binding go. Safe to repeat.
func (h *hostPorts) release(b PortBinding) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drop(b.Port.Proto(), []netip.Addr{b.HostIP}, b.HostPort)
}

// socket returns what holds a binding: a net.Listener or a net.PacketConn.
func (h *hostPorts) socket(b PortBinding) io.Closer {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held[hostPort{b.Port.Proto(), netip.AddrPortFrom(b.HostIP, b.HostPort)}]
}

func listen(proto apinetwork.IPProtocol, ap netip.AddrPort) (io.Closer, error) {
	v := "4"
	if ap.Addr().Is6() {
		v = "6" // sets IPV6_V6ONLY
	}
	switch proto {
	case apinetwork.TCP:
		return net.ListenTCP("tcp"+v, net.TCPAddrFromAddrPort(ap))
	case apinetwork.UDP:
		return net.ListenUDP("udp"+v, net.UDPAddrFromAddrPort(ap))
	}
	return nil, nil // SCTP: the kernel's translation needs no socket
}

// cause strips Go's "listen tcp4 ...: bind:" from an error.
func cause(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// ephemeralRange is the kernel's range for local ports, or IANA's.
func ephemeralRange() (lo, hi uint16) {
	f, err := os.Open("/proc/sys/net/ipv4/ip_local_port_range")
	if err == nil {
		defer f.Close()
		sc := bufio.NewScanner(f)
		if sc.Scan() {
			p := strings.Fields(sc.Text())
			if len(p) == 2 {
				a, err1 := strconv.ParseUint(p[0], 10, 16)
				b, err2 := strconv.ParseUint(p[1], 10, 16)
				if err1 == nil && err2 == nil && a > 0 && a <= b {
					return uint16(a), uint16(b)
				}
			}
		}
	}
	return 49153, 65535
}

// parseHostPort reads "", "8080" or "8000-8010".
func parseHostPort(s string) (lo, hi uint16, err error) {
	if s == "" || s == "0" {
		return 0, 0, nil
	}
	a, b, ranged := strings.Cut(s, "-")
	if !ranged {
		b = a
	}
	l, err1 := strconv.ParseUint(a, 10, 16)
	h, err2 := strconv.ParseUint(b, 10, 16)
	if err1 != nil || err2 != nil || l == 0 || l > h {
		return 0, 0, fault.Invalid.Errorf("invalid host port %q", s)
	}
	return uint16(l), uint16(h), nil
}

// publish opens requests at ep, all or none, and notes them in ep.Ports.
func (m *Manager) publish(ctx context.Context, ep *Endpoint, requests []PortRequest) (err error) {
	n, ok := m.nets.Get(ep.NetworkID)
	p, can := m.drivers[ep.Driver].(Publisher)
	if !ok || !can {
		return nil
	}
	addrs, translated := p.HostAddr(n)
	defer func() {
		if err == nil {
			return
		}
		for _, b := range ep.Ports {
			m.ports.release(b)
		}
		ep.Ports = nil
		err = fault.KindOf(err).Errorf("driver failed programming external connectivity on endpoint %s (%s): %w",
			ep.ContainerName, ep.ID, err)
	}()
	for _, r := range requests {
		if !translated {
			ep.Ports = append(ep.Ports, PortBinding{Port: r.Port})
			continue
		}
		got, err := m.bindRequest(r, addrs)
		ep.Ports = append(ep.Ports, got...)
		if err != nil {
			return err
		}
	}
	if err := m.eps.Put(ep.ID, ep); err != nil { // what a crash has to close
		return err
	}
	if err := p.Publish(ctx, n, ep, ep.Ports); err != nil {
		return err
	}
	m.relay(ep)
	return nil
}

func (m *Manager) bindRequest(r PortRequest, addrs []netip.Addr) ([]PortBinding, error) {
	if !r.Port.IsValid() || r.Port.Num() == 0 {
		return nil, fault.Invalid.Errorf("invalid container port %s", r.Port)
	}
	lo, hi, err := parseHostPort(r.HostPort)
	if err != nil {
		return nil, err
	}
	if r.HostIP.IsValid() {
		addrs = []netip.Addr{r.HostIP.Unmap()}
	}
	port, got, err := m.ports.take(r.Port.Proto(), addrs, lo, hi)
	if err != nil {
		// A conflict of ports is no conflict of the container's state: Docker
		// answers 500.
		return nil, fault.Internal.Errorf("%w", err)
	}
	out := make([]PortBinding, 0, len(got))
	for _, a := range got {
		out = append(out, PortBinding{Port: r.Port, HostIP: a, HostPort: port})
	}
	return out, nil
}

// unpublish closes an endpoint's ports. Safe to repeat.
func (m *Manager) unpublish(ctx context.Context, ep *Endpoint) error {
	if len(ep.Ports) == 0 {
		return nil
	}
	var err error
	n, ok := m.nets.Get(ep.NetworkID)
	if p, can := m.drivers[ep.Driver].(Publisher); ok && can {
		err = p.Revoke(ctx, n, ep, ep.Ports)
	}
	for _, b := range ep.Ports {
		m.ports.release(b)
	}
	ep.Ports = nil
	return err
}
