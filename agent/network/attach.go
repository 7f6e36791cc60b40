package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	apinetwork "github.com/moby/moby/api/types/network"

	"machine/agent/failpoint"
	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/network/link"
	"machine/agent/undo"
)

// NewSandbox makes a network namespace for a container, loopback up, bound at
// ExecRoot/netns/<12 hex>, where "ip netns" can be pointed at. The path is the
// key. With mapped it belongs to a user namespace of its own, whose ids are those of
// Options.Remap.
func (m *Manager) NewSandbox(ctx context.Context, containerID string, mapped bool) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	key := filepath.Join(m.netnsDir(), model.NewID()[:12])
	from := &m.spare
	if mapped {
		from = &m.spareMapped
	}
	ns, err := from.Take()
	from.Refill()
	if err != nil {
		return "", err
	}
	defer ns.Close()
	if err := link.BindNS(ns, key); err != nil {
		return "", err
	}
	failpoint.Hit("sandbox.made")
	m.sandbox(key, containerID)
	return key, nil
}

// RemoveSandbox releases the sandbox's endpoints and the namespace itself. It
// is the fast way at a container's end: the kernel frees devices later. Safe to
// repeat.
func (m *Manager) RemoveSandbox(ctx context.Context, key string) error {
	if key == "" {
		return nil
	}
	if filepath.Dir(key) != m.netnsDir() {
		return fault.Invalid.Errorf("sandbox %q is not of this engine", key)
	}
	m.mu.Lock()
	sb := m.sandboxes[key]
	m.mu.Unlock()
	if sb == nil {
		return link.RemoveNS(key)
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	ctx = context.WithoutCancel(ctx)
	errs := []error{m.stopResolver(sb)}
	for _, ep := range sb.eps {
		errs = append(errs, m.release(ctx, sb, ep, nil))
	}
	failpoint.Hit("sandbox.released")
	errs = append(errs, link.RemoveNS(key))
	failpoint.Hit("sandbox.removed")
	m.forget(sb)
	return errors.Join(errs...)
}

func (m *Manager) forget(sb *sandbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.sandboxes, sb.key)
	if m.keys[sb.container] == sb.key {
		delete(m.keys, sb.container)
	}
}

// Attach gives a container its place in a network: addresses, the device in
// its namespace, routes, published ports, names. It is all or nothing. Errors:
// fault.NotFound for an unknown network, fault.Forbidden when the container is
// attached already or an address is taken, fault.Invalid for a bad request.
func (m *Manager) Attach(ctx context.Context, c model.AttachConfig) (_ *model.Endpoint, err error) {
	n, err := m.Get(c.NetworkRef)
	if err != nil {
		return nil, err
	}
	if n.ConfigOnly {
		return nil, fault.Forbidden.Errorf("cannot use configuration network %s to attach containers", n.Name)
	}
	d, err := m.driver(n.Driver)
	if err != nil {
		return nil, err
	}
	sb := m.sandbox(c.SandboxKey, c.ContainerID)
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.eps[n.ID] != nil {
		return nil, fault.Forbidden.Errorf("endpoint with name %s already exists in network %s", c.ContainerName, n.Name)
	}
	var u undo.Stack
	defer u.Run(&err)
	ep, err := m.newEndpoint(n, sb, c)
	if err != nil {
		return nil, err
	}
	u.Add(func() error { m.freeAddrs(ep); return nil })
	failpoint.Hit("attach.claimed")
	if err := m.eps.Put(ep.ID, ep); err != nil {
		return nil, err
	}
	sb.eps[n.ID] = ep
	failpoint.Hit("attach.recorded")
	u.Add(func() error { delete(sb.eps, n.ID); return m.eps.Delete(ep.ID) })
	if err := m.join(ctx, d, n, sb, ep, &u); err != nil {
		return nil, err
	}
	if err := m.eps.Put(ep.ID, ep); err != nil {
		return nil, err
	}
	failpoint.Hit("attach.saved")
	m.names.add(ep)
	u.Keep()
	m.o.Publish("connect", n.ID, n.Name, n.Driver, c.ContainerID)
	out := ep.Endpoint
	return &out, nil
}

// join does the kernel's part of Attach.
func (m *Manager) join(ctx context.Context, d Driver, n *Network, sb *sandbox, ep *Endpoint, u *undo.Stack) error {
	late := context.WithoutCancel(ctx)
	if ep.Sandbox == "" {
		return d.Join(ctx, n, ep, nil)
	}
	ns, err := link.OpenNS(ep.Sandbox)
	if err != nil {
		return err
	}
	defer ns.Close()
	u.Add(func() error { // after a failure only: opens its own, ns is closed by then
		again, err := link.OpenNS(ep.Sandbox)
		if err != nil {
			return d.Leave(late, n, ep, nil)
		}
		defer again.Close()
		return errors.Join(d.Leave(late, n, ep, again), m.route(late, sb, again, ep.NetworkID))
	})
	if err := d.Join(ctx, n, ep, ns); err != nil {
		return err
	}
	failpoint.Hit("attach.joined")
	if ep.IfName != "" {
		if ep.IPv6.IsValid() {
			if err := ns.EnableIPv6(ep.IfName); err != nil {
				return err
			}
		}
		if err := ns.AddAddrs(ep.IfName, ep.IPv4, ep.IPv6); err != nil {
			return err
		}
		if err := applySysctls(ns, ep); err != nil {
			return err
		}
	}
	failpoint.Hit("attach.addressed")
	if err := m.route(ctx, sb, ns, ""); err != nil {
		return err
	}
	failpoint.Hit("attach.routed")
	if n.UserDefined() {
		return m.startResolver(sb, ns)
	}
	m.refreshResolver(sb)
	return nil
}

// applySysctls sets com.docker.network.endpoint.sysctls: a comma list of
// net.{ipv4,ipv6,mpls}.conf.IFNAME.x=v.
func applySysctls(ns *link.NS, ep *Endpoint) error {
	list := ep.DriverOpts[OptSysctls]
	if list == "" {
		return nil
	}
	for _, s := range strings.Split(list, ",") {
		k, v, ok := strings.Cut(strings.TrimSpace(s), "=")
		f := strings.Split(k, ".")
		if !ok || len(f) < 5 || f[0] != "net" || f[3] != "IFNAME" || !slices.Contains([]string{"ipv4", "ipv6", "mpls"}, f[1]) {
			return fault.Invalid.Errorf("endpoint sysctl %q: want net.ipv4.conf.IFNAME.name=value", s)
		}
		for _, part := range f {
			if part == "" || strings.Contains(part, "/") {
				return fault.Invalid.Errorf("endpoint sysctl %q: bad name", s)
			}
		}
		f[3] = ep.IfName
		if err := ns.SetSysctl(strings.Join(f, "/"), v); err != nil {
			return fmt.Errorf("endpoint sysctl %s: %w", s, err)
		}
	}
	return nil
}

// newEndpoint makes the record and takes the addresses.
func (m *Manager) newEndpoint(n *Network, sb *sandbox, c model.AttachConfig) (ep *Endpoint, err error) {
	ep = &Endpoint{Sandbox: c.SandboxKey, Hostname: c.Hostname, Requests: c.Ports, Internal: n.Internal}
	ep.ID, ep.NetworkID, ep.NetworkName, ep.Driver = model.NewID(), n.ID, n.Name, n.Driver
	ep.ContainerID, ep.ContainerName = c.ContainerID, strings.TrimPrefix(c.ContainerName, "/")
	cfg := c.Config
	if cfg == nil {
		cfg = &apinetwork.EndpointSettings{}
	}
	ep.Links, ep.DriverOpts, ep.GwPriority = slices.Clone(cfg.Links), orEmpty(cfg.DriverOpts), cfg.GwPriority
	ep.Aliases = slices.Clone(cfg.Aliases)
	ep.DNSNames = dnsNames(n, ep)
	if c.SandboxKey == "" || n.Driver == "null" || n.Driver == "host" {
		return ep, nil
	}
	if ep.IfName, err = ifName(n, sb, ep); err != nil {
		return nil, err
	}
	if err := m.takeAddrs(n, ep, cfg.IPAMConfig); err != nil {
		m.freeAddrs(ep)
		return nil, err
	}
	ep.MAC = net.HardwareAddr(cfg.MacAddress)
	if len(ep.MAC) == 0 {
		ep.MAC = macFor(ep.IPv4.Addr())
	}
	return ep, nil
}

// dnsNames are the names by which others of a user's network find a container.
func dnsNames(n *Network, ep *Endpoint) []string {
	if !n.UserDefined() {
		return nil
	}
	var out []string
	short := ep.ContainerID
	if len(short) > 12 {
		short = short[:12]
	}
	for _, name := range append(append([]string{ep.ContainerName}, ep.Aliases...), short, ep.Hostname) {
		if name != "" && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// ifName picks the device's name in the container: the lowest free number.
func ifName(n *Network, sb *sandbox, ep *Endpoint) (string, error) {
	taken := map[string]bool{"lo": true}
	for _, other := range sb.eps {
		taken[other.IfName] = true
	}
	if want := ep.DriverOpts[OptIfName]; want != "" {
		if len(want) > 15 || strings.ContainsAny(want, "/ :\t\n") || want == "." || want == ".." {
			return "", fault.Invalid.Errorf("invalid interface name %q", want)
		}
		if taken[want] {
			return "", fault.Invalid.Errorf("interface name %q is in use in the container", want)
		}
		return want, nil
	}
	prefix := n.Options[OptIfacePrefix]
	if prefix == "" || len(prefix) > 10 || strings.ContainsAny(prefix, "/ :\t\n") {
		prefix = "eth"
	}
	for i := 0; ; i++ {
		if name := prefix + strconv.Itoa(i); !taken[name] {
			return name, nil
		}
	}
}

// macFor derives the hardware address from the IP, as Docker did for a
// decade: who reuses an address reuses its MAC, so that no neighbour's ARP
// entry is ever stale. Without IPv4 the driver's device keeps a random one.
func macFor(a netip.Addr) net.HardwareAddr {
	if !a.Is4() {
		return nil
	}
	b := a.As4()
	return net.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}
}

// takeAddrs claims the endpoint's addresses and notes its gateways.
func (m *Manager) takeAddrs(n *Network, ep *Endpoint, want *apinetwork.EndpointIPAMConfig) error {
	var w4, w6 netip.Addr
	if want != nil {
		w4, w6 = want.IPv4Address, want.IPv6Address
	}
	if (w4.IsValid() || w6.IsValid()) && !n.UserDefined() {
		return fault.Invalid.Errorf("user specified IP address is supported on user defined networks only")
	}
	for _, v6 := range []bool{false, true} {
		w, on := w4, n.EnableIPv4
		if v6 {
			w, on = w6, n.EnableIPv6
		}
		if w.IsValid() && (!on || w.Is6() != v6) {
			return fault.Invalid.Errorf("IP address %s: the network %s has no such addresses", w, n.Name)
		}
		if !on {
			continue
		}
		p, err := m.takeAddr(n, v6, w)
		if err != nil {
			return err
		}
		if !p.IsValid() {
			continue // no pool of this family: a driver without addresses
		}
		gw := gatewayFor(n, p.Addr())
		if v6 {
			ep.IPv6, ep.Gateway6 = p, gw
		} else {
			ep.IPv4, ep.Gateway = p, gw
		}
	}
	return nil
}

func (m *Manager) takeAddr(n *Network, v6 bool, want netip.Addr) (netip.Prefix, error) {
	var last error
	for _, c := range n.Subnets(v6) {
		s := m.subnetOf(n.ID, c.Subnet.Addr())
		if s == nil {
			continue
		}
		if want.IsValid() {
			if !c.Subnet.Contains(want) {
				last = fault.Invalid.Errorf("invalid endpoint settings:\nno configured subnet contains IP address %s", want)
				continue
			}
			return netip.PrefixFrom(want, c.Subnet.Bits()), s.Claim(want)
		}
		a, err := s.Next()
		if err == nil {
			return netip.PrefixFrom(a, c.Subnet.Bits()), nil
		}
		last = err
	}
	return netip.Prefix{}, last
}

// gatewayFor is where a container of address a sends what is not for the
// subnet: nowhere in an internal network.
func gatewayFor(n *Network, a netip.Addr) netip.Addr {
	if n.Internal {
		return netip.Addr{}
	}
	aux := "DefaultGatewayIPv4"
	if a.Is6() {
		aux = "DefaultGatewayIPv6"
	}
	for _, c := range n.IPAM.Config {
		if gw, ok := c.AuxAddress[aux]; ok && c.Subnet.Contains(a) {
			return gw
		}
	}
	return n.Gateway(a).Addr()
}

func (m *Manager) freeAddrs(ep *Endpoint) {
	for _, a := range []netip.Addr{ep.IPv4.Addr(), ep.IPv6.Addr()} {
		if s := m.subnetOf(ep.NetworkID, a); s != nil {
			s.Free(a)
		}
	}
}

// Detach takes a container out of a network; on a container that runs on, the
// device goes at once. Safe to repeat.
func (m *Manager) Detach(ctx context.Context, containerID, networkID string) error {
	sb := m.sandboxOf(containerID)
	if sb == nil {
		return nil
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if n, err := m.Get(networkID); err == nil {
		networkID = n.ID
	}
	ep := sb.eps[networkID]
	if ep == nil {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	var ns *link.NS
	if ep.Sandbox != "" {
		var err error
		if ns, err = link.OpenNS(ep.Sandbox); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		if ns != nil {
			defer ns.Close()
		}
	}
	sb.moved = pinned(ep.Ports) // what another network takes over keeps its host ports
	errs := []error{m.release(ctx, sb, ep, ns)}
	if ns != nil {
		errs = append(errs, m.route(ctx, sb, ns, ""))
	}
	sb.moved = nil
	if len(sb.eps) == 0 && ep.Sandbox == "" {
		m.forget(sb)
	}
	return errors.Join(errs...)
}

// release undoes an endpoint: ports, device, address, record. What fails is
// reported and the rest done all the same.
func (m *Manager) release(ctx context.Context, sb *sandbox, ep *Endpoint, ns *link.NS) error {
	n, ok := m.nets.Get(ep.NetworkID)
	errs := []error{m.unpublish(ctx, ep)}
	failpoint.Hit("detach.ports")
	if d := m.drivers[ep.Driver]; ok && d != nil {
		errs = append(errs, d.Leave(ctx, n, ep, ns))
	}
	delete(sb.eps, ep.NetworkID)
	failpoint.Hit("detach.left")
	m.names.remove(ep)
	m.refreshResolver(sb)
	errs = append(errs, m.eps.Delete(ep.ID))
	failpoint.Hit("detach.record")
	m.freeAddrs(ep)
	m.o.Publish("disconnect", ep.NetworkID, ep.NetworkName, ep.Driver, ep.ContainerID)
	return errors.Join(errs...)
}
