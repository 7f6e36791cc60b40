package network

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	apinetwork "github.com/moby/moby/api/types/network"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/network/ipam"
	"machine/agent/network/link"
)

// BridgeOptions configure the default bridge (dockerd's flags of these names).
type BridgeOptions struct {
	Disabled      bool       // bridge=none
	Name          string     // docker0
	BIP           string     // bip: address of the bridge with the subnet's length
	FixedCIDR     string     // fixed-cidr
	MTU           int        // mtu; 0 is 1500
	NoICC         bool       // icc=false
	NoIPMasq      bool       // ip-masq=false
	DefaultBindIP netip.Addr // ip: where ports are published by default; not valid is 0.0.0.0
	DefaultGW     netip.Addr // default-gateway
}

// predefine makes the records of bridge, host and none as the options say.
func (m *Manager) predefine(ctx context.Context) error {
	for _, d := range []struct{ name, driver string }{{"bridge", "bridge"}, {"host", "host"}, {"none", "null"}} {
		old := m.byName(d.name)
		if d.name == "bridge" && m.o.Bridge.Disabled && old != nil {
			m.releaseSubnets(old)
			if err := m.nets.Delete(old.ID); err != nil {
				return err
			}
		}
		if m.drivers[d.driver] == nil || d.name == "bridge" && m.o.Bridge.Disabled {
			continue
		}
		n := &Network{Predefined: true}
		n.Name, n.Driver, n.Scope, n.EnableIPv4 = d.name, d.driver, "local", true
		n.ID, n.Created = model.NewID(), time.Now()
		n.IPAM = apinetwork.IPAM{Driver: "default", Config: []apinetwork.IPAMConfig{}}
		n.Options, n.Labels = map[string]string{}, map[string]string{}
		if old != nil {
			n.ID, n.Created = old.ID, old.Created
		}
		if d.name == "bridge" {
			if err := m.defaultBridge(n, old); err != nil {
				return fmt.Errorf("default bridge: %w", err)
			}
		}
		if err := m.nets.Put(n.ID, n); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// defaultBridge fills in the record of network bridge.
func (m *Manager) defaultBridge(n, old *Network) error {
	b := m.o.Bridge
	mtu, bind := b.MTU, b.DefaultBindIP
	if mtu == 0 {
		mtu = 1500
	}
	if !bind.IsValid() {
		bind = netip.IPv4Unspecified()
	}
	const p = "com.docker.network.bridge."
	n.Options = map[string]string{
		p + "default_bridge": "true", p + "enable_icc": strconv.FormatBool(!b.NoICC),
		p + "enable_ip_masquerade": strconv.FormatBool(!b.NoIPMasq),
		p + "host_binding_ipv4":    bind.String(), p + "name": b.Name, OptMTU: strconv.Itoa(mtu),
	}
	c, err := b.chosen(old)
	if err != nil {
		return err
	}
	if old != nil {
		m.releaseSubnets(old)
	}
	if !c.Subnet.IsValid() {
		if c, err = bridgeAddr(b.Name); err != nil { // a bridge that the user made
			return err
		}
	}
	if !c.Subnet.IsValid() {
		sub, err := m.nextSubnet(false, b.Name)
		if err != nil {
			return err
		}
		m.space.Release(sub) // claimSubnets takes it
		c.Subnet = sub
	}
	if !c.Gateway.IsValid() {
		c.Gateway = ipam.NewSubnet(c.Subnet, netip.Prefix{}, nil).First()
	}
	if b.DefaultGW.IsValid() {
		c.AuxAddress = map[string]netip.Addr{"DefaultGatewayIPv4": b.DefaultGW}
	}
	n.IPAM.Config = []apinetwork.IPAMConfig{c}
	if err := m.claimSubnets(n); err != nil {
		return err
	}
	for _, ep := range m.eps.All() {
		if s := m.subnetOf(n.ID, ep.IPv4.Addr()); s != nil && ep.NetworkID == n.ID {
			_ = s.Claim(ep.IPv4.Addr()) // taken again: the pool is a new one
		}
	}
	return nil
}

// chosen is the pool that the bridge was told to have, or had before; the zero
// value when there is none.
func (b *BridgeOptions) chosen(old *Network) (c apinetwork.IPAMConfig, err error) {
	switch {
	case b.BIP != "":
		bip, err := netip.ParsePrefix(b.BIP)
		if err != nil {
			return c, fault.Invalid.Errorf("bip %q: %w", b.BIP, err)
		}
		c.Subnet, c.Gateway = bip.Masked(), bip.Addr()
	case old != nil && len(old.IPAM.Config) > 0 && b.FixedCIDR == "":
		c = old.IPAM.Config[0]
		c.IPRange, c.AuxAddress = netip.Prefix{}, nil
	case b.FixedCIDR != "":
		fixed, err := netip.ParsePrefix(b.FixedCIDR)
		if err != nil {
			return c, fault.Invalid.Errorf("fixed-cidr %q: %w", b.FixedCIDR, err)
		}
		c.Subnet = fixed.Masked()
	}
	if b.FixedCIDR != "" && b.BIP != "" {
		fixed, err := netip.ParsePrefix(b.FixedCIDR)
		if err != nil || !c.Subnet.Overlaps(fixed) || fixed.Bits() < c.Subnet.Bits() {
			return c, fault.Invalid.Errorf("fixed-cidr %q does not lie in bip's subnet %s", b.FixedCIDR, c.Subnet)
		}
		c.IPRange = fixed.Masked()
	}
	return c, nil
}

// bridgeAddr returns the pool that a bridge's own IPv4 address stands for.
func bridgeAddr(name string) (c apinetwork.IPAMConfig, err error) {
	have, err := link.AddrsOf(name)
	for _, p := range have {
		if p.Addr().Is4() && p.Bits() <= 30 {
			c.Subnet, c.Gateway = p.Masked(), p.Addr()
			break
		}
	}
	return c, err
}
