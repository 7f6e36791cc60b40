// Package bridge is the driver of networks that are a bridge on this host:
// each container has a veth pair into it; the firewall isolates, masquerades
// and publishes. Options are Docker's com.docker.network.bridge.*.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"machine/agent/fault"
	"machine/agent/network"
	"machine/agent/network/firewall"
	"machine/agent/network/link"
)

const prefix = "com.docker.network.bridge."

// Options of the driver.
const (
	optName        = prefix + "name"
	optICC         = prefix + "enable_icc"
	optMasquerade  = prefix + "enable_ip_masquerade"
	optHostBinding = prefix + "host_binding_ipv4"
	optInhibit     = prefix + "inhibit_ipv4"
	optMode4       = prefix + "gateway_mode_ipv4"
	optMode6       = prefix + "gateway_mode_ipv6"
)

// Driver implements network.Driver, network.Publisher and network.Healer.
type Driver struct {
	fw *firewall.Firewall
}

// New returns the driver. fw stays the caller's.
func New(fw *firewall.Firewall) *Driver { return &Driver{fw: fw} }

// Name implements network.Driver.
func (d *Driver) Name() string { return "bridge" }

// device returns the name of the network's bridge.
func device(n *network.Network) string {
	if name := n.Options[optName]; name != "" {
		return name
	}
	return "br-" + n.ID[:12]
}

// HostIf returns the name of an endpoint's device on the host.
func HostIf(ep *network.Endpoint) string { return "veth" + ep.ID[:7] }

func mode(n *network.Network, key string) firewall.Mode {
	if m := n.Options[key]; m != "" {
		return firewall.Mode(m)
	}
	return firewall.NAT
}

// Prepare implements network.Driver.
func (d *Driver) Prepare(n *network.Network) (bool, error) {
	name := device(n)
	if len(name) > 15 || strings.ContainsAny(name, "/ :\t\n") || name == "." || name == ".." {
		return false, fault.Invalid.Errorf("invalid bridge name %q: at most 15 characters, no / or space", name)
	}
	for _, key := range []string{optICC, optMasquerade, optInhibit} {
		switch n.Options[key] {
		case "", "true", "false", "1", "0", "t", "f", "T", "F", "True", "False", "TRUE", "FALSE":
		default:
			return false, fault.Invalid.Errorf("invalid value for option %s: %q is not a boolean", key, n.Options[key])
		}
	}
	if v := n.Options[optHostBinding]; v != "" {
		if _, err := netip.ParseAddr(v); err != nil {
			return false, fault.Invalid.Errorf("invalid value for option %s: %w", optHostBinding, err)
		}
	}
	if v := n.Options[network.OptMTU]; v != "" && n.MTU() == 0 && v != "0" {
		return false, fault.Invalid.Errorf("invalid value for option %s: %q", network.OptMTU, v)
	}
	for _, key := range []string{optMode4, optMode6} {
		switch m := mode(n, key); m {
		case firewall.NAT, firewall.NATUnprotected, firewall.Routed:
		case firewall.Isolated:
			if !n.Internal {
				return false, fault.Invalid.Errorf("gateway mode %q can only be used for an internal network", m)
			}
		default:
			return false, fault.Invalid.Errorf("unknown gateway mode %q", m)
		}
	}
	return true, nil
}

// CreateNetwork implements network.Driver.
func (d *Driver) CreateNetwork(ctx context.Context, n *network.Network) error {
	b := link.Bridge{Name: device(n), Alias: "machine:" + n.ID, MTU: n.MTU(), IPv6: n.EnableIPv6}
	fb := firewall.Bridge{Name: b.Name, ICC: n.Bool(optICC, true), Internal: n.Internal,
		Masquerade: n.Bool(optMasquerade, true), Mode4: mode(n, optMode4), Mode6: mode(n, optMode6)}
	fb.SNAT4, _ = netip.ParseAddr(n.Options[network.OptHostIPv4])
	fb.SNAT6, _ = netip.ParseAddr(n.Options[network.OptHostIPv6])
	for _, c := range n.IPAM.Config {
		if !c.Subnet.IsValid() {
			continue
		}
		fb.Subnets = append(fb.Subnets, c.Subnet.Masked())
		key, inhibit := optMode4, n.Bool(optInhibit, false)
		if c.Subnet.Addr().Is6() {
			key, inhibit = optMode6, false
		}
		if c.Gateway.IsValid() && mode(n, key) != firewall.Isolated && !inhibit {
			b.Addrs = append(b.Addrs, netip.PrefixFrom(c.Gateway, c.Subnet.Bits()))
		}
	}
	// The rules first: a bridge never stands open.
	if err := d.fw.SetBridge(ctx, fb); err != nil {
		return err
	}
	if err := link.SetBridge(ctx, b); err != nil {
		return err
	}
	if n.EnableIPv6 && !n.Internal {
		if err := link.Sysctl("net/ipv6/conf/all/forwarding", "1"); err != nil {
			return fmt.Errorf("turn IPv6 forwarding on: %w", err)
		}
	}
	return nil
}

// DeleteNetwork implements network.Driver. A bridge that the user made stays.
func (d *Driver) DeleteNetwork(ctx context.Context, n *network.Network) error {
	name := device(n)
	ours, err := link.Ours("bridge")
	if err != nil {
		return err
	}
	if _, ok := ours[name]; ok {
		if err := link.Delete(name); err != nil {
			return err
		}
	}
	return d.fw.DeleteBridge(ctx, name)
}

// Join implements network.Driver.
func (d *Driver) Join(ctx context.Context, n *network.Network, ep *network.Endpoint, ns *link.NS) error {
	if ns == nil {
		return fault.Invalid.Errorf("network %s: the container has no network namespace of its own", n.Name)
	}
	ep.HostIf = HostIf(ep)
	v := link.Veth{Name: ep.HostIf, Master: device(n), Peer: ep.IfName, PeerMAC: ep.MAC, MTU: n.MTU()}
	if err := link.AddVeth(ctx, v, ns); err != nil {
		return err
	}
	if len(ep.MAC) == 0 {
		mac, err := ns.MAC(ep.IfName)
		if err != nil {
			return err
		}
		ep.MAC = mac
	}
	if mode(n, optMode4) == firewall.Isolated {
		ep.Gateway = netip.Addr{}
	}
	if mode(n, optMode6) == firewall.Isolated {
		ep.Gateway6 = netip.Addr{}
	}
	return nil
}

// Leave implements network.Driver.
func (d *Driver) Leave(_ context.Context, _ *network.Network, ep *network.Endpoint, ns *link.NS) error {
	if ep.HostIf == "" {
		return nil
	}
	if ns == nil {
		return link.Detach(ep.HostIf)
	}
	return link.Delete(ep.HostIf)
}

// HostAddr implements network.Publisher.
func (d *Driver) HostAddr(n *network.Network) ([]netip.Addr, bool) {
	if n.Internal || mode(n, optMode4) == firewall.Routed {
		return nil, false
	}
	a, err := netip.ParseAddr(n.Options[optHostBinding])
	if err == nil && !a.IsUnspecified() {
		return []netip.Addr{a}, true
	}
	return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}, true
}

// split sorts bindings into those that the kernel translates and the
// container ports that a routed network opens.
func split(ep *network.Endpoint, list []network.PortBinding) (nat, open []firewall.Port) {
	for _, b := range list {
		if !b.HostIP.IsValid() {
			for _, a := range []netip.Prefix{ep.IPv4, ep.IPv6} {
				if a.IsValid() {
					open = append(open, firewall.Port{Proto: string(b.Port.Proto()),
						Container: netip.AddrPortFrom(a.Addr(), b.Port.Num())})
				}
			}
			continue
		}
		if to, ok := ep.Direct(b); ok {
			nat = append(nat, firewall.Port{Proto: string(b.Port.Proto()),
				Host: netip.AddrPortFrom(b.HostIP, b.HostPort), Container: to})
		}
	}
	return nat, open
}

// Publish implements network.Publisher.
func (d *Driver) Publish(ctx context.Context, n *network.Network, ep *network.Endpoint, list []network.PortBinding) error {
	if n.Internal {
		return nil
	}
	nat, open := split(ep, list)
	if err := d.fw.Publish(ctx, nat); err != nil {
		return err
	}
	if err := d.fw.Open(ctx, open); err != nil {
		return errors.Join(err, d.fw.Revoke(context.WithoutCancel(ctx), nat))
	}
	for _, p := range nat {
		if p.Proto == "udp" {
			link.ForgetUDP(p.Host.Port())
		}
	}
	if len(nat) == 0 {
		return nil
	}
	if err := link.Hairpin(ep.HostIf); err != nil {
		return errors.Join(err, d.Revoke(context.WithoutCancel(ctx), n, ep, list))
	}
	return nil
}

// Revoke implements network.Publisher.
func (d *Driver) Revoke(ctx context.Context, _ *network.Network, ep *network.Endpoint, list []network.PortBinding) error {
	nat, open := split(ep, list)
	err := errors.Join(d.fw.Revoke(ctx, nat), d.fw.Shut(ctx, open))
	for _, p := range nat {
		if p.Proto == "udp" {
			link.ForgetUDP(p.Host.Port())
		}
	}
	return err
}

// Check implements network.Healer.
func (d *Driver) Check(ctx context.Context) error {
	_, err := d.fw.Check(ctx)
	return err
}

// Sweep implements network.Healer.
func (d *Driver) Sweep(ctx context.Context, nets []*network.Network, eps []*network.Endpoint) error {
	bridges := map[string]bool{}
	for _, n := range nets {
		if n.Driver == d.Name() && !n.ConfigOnly {
			bridges[device(n)] = true
		}
	}
	var keep []string
	for _, ep := range eps {
		keep = append(keep, ep.HostIf)
	}
	veths, err := link.Ours("veth")
	if err != nil {
		return err
	}
	errs := []error{ctx.Err()}
	for name, master := range veths {
		// Without a bridge it is being freed, or it is another agent's.
		if bridges[master] && strings.HasPrefix(name, "veth") && !slices.Contains(keep, name) {
			errs = append(errs, link.Delete(name))
		}
	}
	return errors.Join(errs...)
}
