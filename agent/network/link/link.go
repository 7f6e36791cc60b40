package link

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"machine/agent/sysfile"
)

// Group is the device group of every device of ours: the mark by which a
// sweep knows them from the user's ("mdk").
const Group = 0x6d646b

// A Bridge is a bridge device as it should be.
type Bridge struct {
	Name  string
	Alias string         // marks the device as ours: "machine:" and the network's id
	Addrs []netip.Prefix // the host's addresses on it; none for an isolated one
	MTU   int            // 0 leaves the kernel's
	IPv6  bool
}

// SetBridge makes the bridge as wanted, adding before deleting. A device that
// was there before and is not ours keeps its other addresses.
func SetBridge(ctx context.Context, b Bridge) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l, err := netlink.LinkByName(b.Name)
	ours := false
	switch {
	case isNotFound(err):
		if l, err = addBridge(b); err != nil {
			return err
		}
		ours = true
	case err != nil:
		return fmt.Errorf("look up bridge %s: %w", b.Name, err)
	case l.Type() != "bridge":
		return fmt.Errorf("device %s exists and is a %s, not a bridge: choose another bridge name", b.Name, l.Type())
	default:
		ours = l.Attrs().Group == Group
	}
	bridgeSysctls(b)
	if b.MTU > 0 && l.Attrs().MTU != b.MTU {
		if err := netlink.LinkSetMTU(l, b.MTU); err != nil {
			return fmt.Errorf("set MTU %d of bridge %s: %w", b.MTU, b.Name, err)
		}
	}
	if err := setAddrs(l, b, ours); err != nil {
		return err
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(l); err != nil {
			return fmt.Errorf("set bridge %s up: %w", b.Name, err)
		}
	}
	return nil
}

func addBridge(b Bridge) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Group, attrs.MTU = b.Name, Group, b.MTU
	// A bridge without an address of its own takes its lowest port's, and
	// changes it under the containers' ARP tables as they come and go.
	attrs.HardwareAddr = net.HardwareAddr{0x02, 0x42, 0, 0, 0, 0}
	_, _ = rand.Read(attrs.HardwareAddr[2:]) // never fails
	br := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(br); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("create bridge %s: %w", b.Name, err)
	}
	if b.Alias != "" {
		if err := netlink.LinkSetAlias(br, b.Alias); err != nil {
			return nil, fmt.Errorf("mark bridge %s: %w", b.Name, err)
		}
	}
	l, err := netlink.LinkByName(b.Name)
	if err != nil {
		return nil, fmt.Errorf("look up bridge %s: %w", b.Name, err)
	}
	return l, nil
}

// bridgeSysctls is best effort: /proc/sys may be read-only in a nested host.
func bridgeSysctls(b Bridge) {
	off := "1"
	if b.IPv6 {
		off = "0"
	}
	_ = Sysctl("net/ipv6/conf/"+b.Name+"/disable_ipv6", off)
	_ = Sysctl("net/ipv6/conf/"+b.Name+"/accept_ra", "0")
	// A process of the host reaches a published port at 127.0.0.1: the
	// rewritten packet leaves by the bridge with a loopback source.
	_ = Sysctl("net/ipv4/conf/"+b.Name+"/route_localnet", "1")
}

func setAddrs(l netlink.Link, b Bridge, ours bool) error {
	have, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of bridge %s: %w", b.Name, err)
	}
	want := map[netip.Prefix]bool{}
	for _, p := range b.Addrs {
		want[p] = true
	}
	present := map[netip.Prefix]bool{}
	for _, a := range have {
		present[FromIPNet(a.IPNet)] = true
	}
	for _, p := range b.Addrs {
		if present[p] {
			continue
		}
		a := &netlink.Addr{IPNet: ToIPNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, a); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add address %s to bridge %s: %w", p, b.Name, err)
		}
	}
	if !ours {
		return nil
	}
	for _, a := range have {
		if p := FromIPNet(a.IPNet); !want[p] && !p.Addr().IsLinkLocalUnicast() {
			if err := netlink.AddrDel(l, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return fmt.Errorf("remove address %s of bridge %s: %w", p, b.Name, err)
			}
		}
	}
	return nil
}

// A Veth is a pair: one end on the host, in a bridge; the other made straight
// in a container's namespace (moving a device there costs ten times as much).
type Veth struct {
	Name    string           // on the host
	Master  string           // the bridge; empty for none
	Peer    string           // in the namespace
	PeerMAC net.HardwareAddr // nil for a random one
	MTU     int
}

// AddVeth makes the pair, both ends up, in one message.
func AddVeth(ctx context.Context, v Veth, ns *NS) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Flags, msg.Change = unix.IFF_UP, unix.IFF_UP
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.Name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(Group)))
	if v.MTU > 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(v.MTU))))
	}
	if v.Master != "" {
		br, err := netlink.LinkByName(v.Master)
		if err != nil {
			return fmt.Errorf("look up bridge %s: %w", v.Master, err)
		}
		req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(br.Attrs().Index))))
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	peer := data.AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC) // not up yet: the kernel refuses it before the pair is joined
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.Peer))
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns.FD())))
	if v.MTU > 0 {
		peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(v.MTU)))
	}
	if v.PeerMAC != nil {
		peer.AddRtAttr(unix.IFLA_ADDRESS, []byte(v.PeerMAC))
	}
	req.AddData(info)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("create veth %s to %s in bridge %s: %w", v.Name, v.Peer, v.Master, err)
	}
	return nil
}

// Hairpin lets a bridge port send a frame back where it came from: a
// container that calls its own published port needs it.
func Hairpin(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("look up %s: %w", name, err)
	}
	if err := netlink.LinkSetHairpin(l, true); err != nil {
		return fmt.Errorf("set hairpin mode of %s: %w", name, err)
	}
	return nil
}

// Detach takes a device out of the data plane at once: down and out of its
// bridge. The kernel deletes it with its peer's namespace, later and cheaper
// than we could. Safe to repeat: an absent device is no error.
func Detach(name string) error {
	l, err := netlink.LinkByName(name)
	if isNotFound(err) {
		return nil
	}
	if err == nil {
		err = errors.Join(netlink.LinkSetDown(l), netlink.LinkSetNoMaster(l))
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("take %s out of its bridge: %w", name, err)
	}
	return nil
}

// Delete removes a device. Safe to repeat: an absent device is no error.
func Delete(name string) error {
	l, err := netlink.LinkByName(name)
	if isNotFound(err) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete device %s: %w", name, err)
	}
	return nil
}

// Exists reports whether the host has a device of this name.
func Exists(name string) bool {
	_, err := netlink.LinkByName(name)
	return err == nil
}

// Ours lists the host's devices of one type ("veth", "bridge", "vlan",
// "dummy") that carry our mark: name to the name of its bridge, or "".
func Ours(kind string) (map[string]string, error) {
	list, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	names := map[int]string{}
	for _, l := range list {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	out := map[string]string{}
	for _, l := range list {
		if a := l.Attrs(); a.Group == Group && l.Type() == kind {
			out[a.Name] = names[a.MasterIndex]
		}
	}
	return out, nil
}

// Routes lists the destinations of the host's routes, but for default ones:
// what a new subnet must not overlap.
func Routes() ([]netip.Prefix, error) {
	list, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var out []netip.Prefix
	for _, r := range list {
		if r.Dst != nil {
			if p := FromIPNet(r.Dst); p.IsValid() && p.Bits() > 0 {
				out = append(out, p)
			}
		}
	}
	return out, nil
}

// Sysctl writes a value below /proc/sys of the host's namespaces.
func Sysctl(key, value string) error {
	if strings.Contains(key, "..") {
		return fmt.Errorf("sysctl %s: bad name", key)
	}
	return sysfile.Put("/proc/sys/"+key, value)
}

// ToIPNet converts, keeping the host part of the address.
func ToIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// FromIPNet converts, keeping the host part of the address. The result is not
// valid when n is nil or its mask has holes.
func FromIPNet(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}
	}
	if bits == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones)
}

func isNotFound(err error) bool {
	var nf netlink.LinkNotFoundError
	return errors.As(err, &nf) || errors.Is(err, unix.ENODEV)
}

// AddrsOf lists the addresses of a device of the host; none when it is absent.
func AddrsOf(name string) ([]netip.Prefix, error) {
	l, err := netlink.LinkByName(name)
	if isNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", name, err)
	}
	list, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list addresses of %s: %w", name, err)
	}
	var out []netip.Prefix
	for _, a := range list {
		out = append(out, FromIPNet(a.IPNet))
	}
	return out, nil
}
