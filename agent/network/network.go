// Package network keeps the engine's networks: their records, the attachment
// of containers to them, published ports and service names. What a network is
// in the kernel is its driver's business (bridge, host, null, macvlan,
// ipvlan, overlay), which the wiring passes in.
//
// Records of networks live on disk and survive a restart of the host. Those of
// endpoints live below the exec root, which is gone after a boot, as the
// endpoints are.
package network

import (
	"context"
	"net/netip"
	"strconv"

	apinetwork "github.com/moby/moby/api/types/network"

	"machine/agent/model"
	"machine/agent/network/link"
)

// Options and labels that more than one package reads.
const (
	OptMTU         = "com.docker.network.driver.mtu"
	OptIfacePrefix = "com.docker.network.container_iface_prefix"
	OptIfName      = "com.docker.network.endpoint.ifname"
	OptSysctls     = "com.docker.network.endpoint.sysctls"
	OptEnableIPv4  = "com.docker.network.enable_ipv4"
	OptEnableIPv6  = "com.docker.network.enable_ipv6"
	OptHostIPv4    = "com.docker.network.host_ipv4"
	OptHostIPv6    = "com.docker.network.host_ipv6"
)

// A Network is the record of one network.
type Network struct {
	apinetwork.Network
	Predefined bool `json:"Predefined,omitempty"` // bridge, host or none
}

// Subnets returns the network's IPAM pools of one family.
func (n *Network) Subnets(v6 bool) []apinetwork.IPAMConfig {
	var out []apinetwork.IPAMConfig
	for _, c := range n.IPAM.Config {
		if c.Subnet.IsValid() && c.Subnet.Addr().Is6() == v6 {
			out = append(out, c)
		}
	}
	return out
}

// Gateway returns the gateway of the pool that a belongs to, with the pool's
// prefix length; it is not valid when there is none.
func (n *Network) Gateway(a netip.Addr) netip.Prefix {
	for _, c := range n.IPAM.Config {
		if c.Subnet.IsValid() && c.Subnet.Contains(a) && c.Gateway.IsValid() {
			return netip.PrefixFrom(c.Gateway, c.Subnet.Bits())
		}
	}
	return netip.Prefix{}
}

// Bool reads a boolean option; an absent or unreadable one gives def.
func (n *Network) Bool(key string, def bool) bool {
	if v, err := strconv.ParseBool(n.Options[key]); err == nil {
		return v
	}
	return def
}

// MTU returns the network's MTU; 0 means the kernel's default.
func (n *Network) MTU() int {
	v, err := strconv.Atoi(n.Options[OptMTU])
	if err != nil || v < 0 {
		return 0
	}
	return v
}

// UserDefined reports whether containers of the network find each other by
// name: all networks but the predefined ones.
func (n *Network) UserDefined() bool { return !n.Predefined }

// A PortBinding is one published port.
type PortBinding = model.PortBinding

// A PortRequest is what a user asked to publish.
type PortRequest = model.PortRequest

// An Endpoint is the record of one container's place in one network.
type Endpoint struct {
	model.Endpoint
	Hostname    string        `json:",omitempty"`
	Sandbox     string        `json:",omitempty"` // path of the namespace; empty for the host's
	DeviceRoute bool          `json:",omitempty"` // the default route is the device itself
	Internal    bool          `json:",omitempty"` // never the way out
	Requests    []PortRequest `json:",omitempty"` // to publish when this endpoint is the way out
}

// Direct reports whether the kernel leads the binding to the endpoint: both
// are of one address family. The engine relays the others itself.
func (ep *Endpoint) Direct(b PortBinding) (to netip.AddrPort, ok bool) {
	p := ep.IPv4
	if b.HostIP.Is6() {
		p = ep.IPv6
	}
	return netip.AddrPortFrom(p.Addr(), b.Port.Num()), p.IsValid()
}

// A Driver makes networks of one kind in the kernel. Its methods are safe to
// repeat and for concurrent use.
type Driver interface {
	Name() string
	// Prepare checks the options of a new network and fills in what the driver
	// decides (option defaults, Internal). It touches nothing. A driver whose
	// containers need no addresses reports so.
	Prepare(n *Network) (addresses bool, err error)
	// CreateNetwork makes what the network needs before a first container. It
	// is called again, for each network, when the agent starts.
	CreateNetwork(ctx context.Context, n *Network) error
	// DeleteNetwork removes all of it.
	DeleteNetwork(ctx context.Context, n *Network) error
	// Join gives the container its device ep.IfName, in ns, with ep.MAC (or
	// puts the one it got there). It may set ep.HostIf, ep.Gateway and
	// ep.DeviceRoute. Addresses and routes are the caller's work.
	Join(ctx context.Context, n *Network, ep *Endpoint, ns *link.NS) error
	// Leave takes the endpoint out of the data plane. ns is nil when the
	// sandbox is to go away: then the device inside may be left to the kernel.
	Leave(ctx context.Context, n *Network, ep *Endpoint, ns *link.NS) error
}

// A Publisher is a driver that can lead ports of the host to containers.
type Publisher interface {
	// Publish leads every binding that ep.Direct approves to ep.
	Publish(ctx context.Context, n *Network, ep *Endpoint, b []PortBinding) error
	Revoke(ctx context.Context, n *Network, ep *Endpoint, b []PortBinding) error
	// HostAddr returns the addresses to publish at when the user named none;
	// translated is false when the network publishes without host ports.
	HostAddr(n *Network) (addrs []netip.Addr, translated bool)
}

// A Healer is a driver that can put back what somebody removed from the
// kernel, and that sweeps what a crash left.
type Healer interface {
	// Check looks at the kernel and repairs it.
	Check(ctx context.Context) error
	// Sweep removes what is marked as ours and belongs neither to a network
	// nor to an endpoint of the lists.
	Sweep(ctx context.Context, nets []*Network, eps []*Endpoint) error
}
