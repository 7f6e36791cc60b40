package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"machine/agent/sysfile"
)

// AddAddrs gives a device inside the namespace its addresses and sets it up.
// Safe to repeat.
func (n *NS) AddAddrs(dev string, addrs ...netip.Prefix) error {
	l, err := n.h.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("look up %s: %w", dev, err)
	}
	for _, p := range addrs {
		if !p.IsValid() {
			continue
		}
		a := &netlink.Addr{IPNet: ToIPNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD // it is ours: usable from the first packet
		}
		if err := n.h.AddrAdd(l, a); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add address %s to %s: %w", p, dev, err)
		}
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		if err := n.h.LinkSetUp(l); err != nil {
			return fmt.Errorf("set %s up: %w", dev, err)
		}
	}
	return nil
}

// EnableIPv6 turns IPv6 on for one device of the namespace.
func (n *NS) EnableIPv6(dev string) error {
	return n.Do(func() error {
		dir := "/proc/sys/net/ipv6/conf/" + dev
		if err := sysfile.Put(dir+"/disable_ipv6", "0"); err != nil {
			return fmt.Errorf("enable IPv6 on %s: %w", dev, err)
		}
		// Routers of the network are the engine's business.
		_ = sysfile.Put(dir+"/accept_ra", "0")
		return nil
	})
}

// SetSysctl writes a value below /proc/sys/net of the namespace; key has
// slashes ("net/ipv4/conf/eth0/forwarding").
func (n *NS) SetSysctl(key, value string) error {
	return n.Do(func() error { return Sysctl(key, value) })
}

// A Gateway is the default route of one address family.
type Gateway struct {
	Dev  string
	Addr netip.Addr // not valid: the route is the device itself
}

// SetDefault makes gw the only default route of the family; nil leaves none.
// Safe to repeat.
func (n *NS) SetDefault(v6 bool, gw *Gateway) error {
	fam, zero := netlink.FAMILY_V4, netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if v6 {
		fam, zero = netlink.FAMILY_V6, netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	var want *netlink.Route
	if gw != nil {
		l, err := n.h.LinkByName(gw.Dev)
		if err != nil {
			return fmt.Errorf("look up %s: %w", gw.Dev, err)
		}
		want = &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ToIPNet(zero)}
		if gw.Addr.IsValid() {
			want.Gw = gw.Addr.AsSlice()
			want.Flags = int(netlink.FLAG_ONLINK) // a gateway may lie outside of the subnet
		} else {
			want.Scope = netlink.SCOPE_LINK
		}
		if err := n.h.RouteReplace(want); err != nil {
			return fmt.Errorf("set default route by %s dev %s: %w", gw.Addr, gw.Dev, err)
		}
	}
	have, err := n.h.RouteList(nil, fam)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range have {
		if r.Dst != nil && FromIPNet(r.Dst).Bits() != 0 {
			continue
		}
		if want != nil && r.LinkIndex == want.LinkIndex && r.Gw.Equal(want.Gw) {
			continue
		}
		if r.Dst == nil {
			r.Dst = ToIPNet(zero)
		}
		if err := n.h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove default route: %w", err)
		}
	}
	return nil
}

// DeleteDev removes a device inside the namespace, and with it a veth's other
// end. Safe to repeat.
func (n *NS) DeleteDev(dev string) error {
	l, err := n.h.LinkByName(dev)
	if isNotFound(err) {
		return nil
	}
	if err == nil {
		err = n.h.LinkDel(l)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete %s in network namespace: %w", dev, err)
	}
	return nil
}

// Devs lists the names of the devices in the namespace.
func (n *NS) Devs() (map[string]bool, error) {
	list, err := n.h.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list devices of network namespace: %w", err)
	}
	out := map[string]bool{}
	for _, l := range list {
		out[l.Attrs().Name] = true
	}
	return out, nil
}

// MAC returns the hardware address of a device inside the namespace.
func (n *NS) MAC(dev string) (net.HardwareAddr, error) {
	l, err := n.h.LinkByName(dev)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", dev, err)
	}
	return l.Attrs().HardwareAddr, nil
}

// ForgetUDP drops what connection tracking knows of UDP flows to a port of the
// host: a flow from before the port's publication would go on missing it.
// Best effort: a kernel without the interface has nothing to drop.
func ForgetUDP(port uint16) {
	f := &netlink.ConntrackFilter{}
	if f.AddProtocol(unix.IPPROTO_UDP) != nil || f.AddPort(netlink.ConntrackOrigDstPort, port) != nil {
		return
	}
	_, _ = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, f)
}

// Counters are the statistics of one device.
type Counters struct {
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// Stats returns the counters of the namespace's devices but the loopback.
func (n *NS) Stats() (map[string]Counters, error) {
	list, err := n.h.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list devices of network namespace: %w", err)
	}
	out := map[string]Counters{}
	for _, l := range list {
		a := l.Attrs()
		if a.Flags&net.FlagLoopback != 0 || a.Statistics == nil {
			continue
		}
		s := a.Statistics
		out[a.Name] = Counters{
			RxBytes: s.RxBytes, RxPackets: s.RxPackets, RxErrors: s.RxErrors, RxDropped: s.RxDropped,
			TxBytes: s.TxBytes, TxPackets: s.TxPackets, TxErrors: s.TxErrors, TxDropped: s.TxDropped,
		}
	}
	return out, nil
}
