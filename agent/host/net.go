package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"

	"machine/agent/fault"
	"machine/agent/state"
	"machine/agent/undo"
)

const (
	runDir     = "/run/machine"
	bridgeName = "machine0"
	forwardCtl = "/proc/sys/net/ipv4/ip_forward"
)

// pools are the subnets to choose from; the first without a route is taken.
var pools = []string{"10.231.0.0/16", "10.232.0.0/16", "172.27.0.0/16", "10.97.0.0/16", "192.168.231.0/24"}

// card is the place of one machine in the network.
type card struct {
	ip, gateway netip.Addr
	prefix      int
	mac         string
}

// attach claims an address and makes bridge, forwarding and NAT. The claim
// stays when the machine stops, so that it comes back with the same address.
func attach(c Config, u *undo.Stack) (card, error) {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return card{}, fault.Internal.Errorf("machine network: %w", err)
	}
	release, err := lock(filepath.Join(runDir, "lock"))
	if err != nil {
		return card{}, fault.Internal.Errorf("machine network: %w", err)
	}
	defer release()
	pool, err := ensureBridge()
	if err != nil {
		return card{}, err
	}
	u.Add(func() error { return detach("") }) // nobody's claim, only the clean-up
	ip, fresh, err := claim(pool, c.Dir, c.IP)
	if err != nil {
		return card{}, err
	}
	if fresh {
		u.Add(func() error { return os.Remove(claimFile(ip)) })
	}
	if err := ensureNAT(pool); err != nil {
		return card{}, err
	}
	if err := ensureForwarding(); err != nil {
		return card{}, err
	}
	allowForward()
	a := ip.As4()
	return card{
		ip: ip, gateway: pool.Addr().Next(), prefix: pool.Bits(),
		mac: fmt.Sprintf("02:6d:%02x:%02x:%02x:%02x", a[0], a[1], a[2], a[3]),
	}, nil
}

// ensureBridge returns the masked subnet of the bridge, made when missing.
func ensureBridge() (netip.Prefix, error) {
	link, err := netlink.LinkByName(bridgeName)
	if err == nil {
		if pool, ok := subnetOf(link); ok {
			return pool, netlink.LinkSetUp(link)
		}
	} else {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = bridgeName, outwardMTU()
		link = &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(link); err != nil && !errors.Is(err, os.ErrExist) {
			return netip.Prefix{}, fault.Internal.Errorf("make bridge %s: %w", bridgeName, err)
		}
		if link, err = netlink.LinkByName(bridgeName); err != nil {
			return netip.Prefix{}, fault.Internal.Errorf("bridge %s: %w", bridgeName, err)
		}
	}
	pool, err := freePool()
	if err != nil {
		return pool, err
	}
	a := pool.Addr().Next().As4()
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.IP(a[:]), Mask: net.CIDRMask(pool.Bits(), 32)}}
	// A fixed MAC: else it follows that of the ports, and ARP caches go stale.
	mac := net.HardwareAddr{0x02, 0x6d, a[0], a[1], a[2], a[3]}
	err = errors.Join(netlink.LinkSetHardwareAddr(link, mac), netlink.AddrReplace(link, addr), netlink.LinkSetUp(link))
	if err != nil {
		return pool, fault.Internal.Errorf("set up bridge %s: %w", bridgeName, err)
	}
	return pool, nil
}

// outwardMTU is that of the way out of this computer: with a larger one,
// machines would depend on ICMP that many networks drop.
func outwardMTU() int {
	const ethernet = 1500
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return ethernet
	}
	for _, r := range routes {
		if r.Dst != nil && r.Dst.IP != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		link, err := netlink.LinkByIndex(r.LinkIndex)
		if err == nil && link.Attrs().MTU >= 1280 && link.Attrs().MTU < ethernet {
			return link.Attrs().MTU
		}
	}
	return ethernet
}

func subnetOf(link netlink.Link) (netip.Prefix, bool) {
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return netip.Prefix{}, false
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.IPNet.String()); err == nil {
			return p.Masked(), true
		}
	}
	return netip.Prefix{}, false
}

// freePool chooses the first pool that overlaps with no route but the default.
func freePool() (netip.Prefix, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return netip.Prefix{}, fault.Internal.Errorf("list routes: %w", err)
	}
next:
	for _, s := range pools {
		pool := netip.MustParsePrefix(s)
		for _, r := range routes {
			if r.Dst == nil {
				continue
			}
			dst, err := netip.ParsePrefix(r.Dst.String())
			if err == nil && dst.Bits() > 0 && dst.Overlaps(pool) {
				continue next
			}
		}
		return pool, nil
	}
	return netip.Prefix{}, fault.Conflict.Errorf("no subnet is free for local machines: this computer has routes into all of %s", strings.Join(pools, ", "))
}

func claimFile(ip netip.Addr) string { return filepath.Join(runDir, "ip", ip.String()) }

// claim gives dir an address of the pool: the one that it has, the one that it
// wants, or the first free. A claim whose folder is gone is free.
func claim(pool netip.Prefix, dir, want string) (ip netip.Addr, fresh bool, err error) {
	if err := os.MkdirAll(filepath.Join(runDir, "ip"), 0o755); err != nil {
		return ip, false, fault.Internal.Errorf("claim address: %w", err)
	}
	free := func(ip netip.Addr) bool {
		owner, err := os.ReadFile(claimFile(ip))
		if err != nil || len(owner) == 0 {
			return true
		}
		_, err = os.Stat(string(owner))
		return errors.Is(err, os.ErrNotExist)
	}
	gateway := pool.Addr().Next()
	if w, err := netip.ParseAddr(want); err == nil && pool.Contains(w) && w != gateway && w != pool.Addr() {
		if owner, err := os.ReadFile(claimFile(w)); err == nil && string(owner) == dir {
			return w, false, nil
		}
		if free(w) {
			return w, true, state.WriteFile(claimFile(w), []byte(dir), 0o644)
		}
	}
	for ip = gateway.Next(); pool.Contains(ip.Next()); ip = ip.Next() {
		if free(ip) {
			return ip, true, state.WriteFile(claimFile(ip), []byte(dir), 0o644)
		}
	}
	return ip, false, fault.Conflict.Errorf("no address is free in %s", pool)
}

// claims maps addresses to the folders that hold them.
func claims() map[string]string {
	m := map[string]string{}
	entries, _ := os.ReadDir(filepath.Join(runDir, "ip"))
	for _, e := range entries {
		file := filepath.Join(runDir, "ip", e.Name())
		if dir, err := os.ReadFile(file); err == nil && len(dir) > 0 {
			m[file] = string(dir)
		}
	}
	return m
}

// ensureForwarding turns forwarding on and remembers that it was off.
func ensureForwarding() error {
	now, err := os.ReadFile(forwardCtl)
	if err != nil {
		return fault.Internal.Errorf("ip forwarding: %w", err)
	}
	if strings.TrimSpace(string(now)) == "1" {
		return nil
	}
	if err := os.WriteFile(filepath.Join(runDir, "forward-was-off"), nil, 0o644); err != nil {
		return fault.Internal.Errorf("ip forwarding: %w", err)
	}
	if err := os.WriteFile(forwardCtl, []byte("1"), 0o644); err != nil {
		return fault.Internal.Errorf("ip forwarding: %w", err)
	}
	return nil
}

// plug makes the machine's cable: one end in the bridge, the other made
// straight in the namespace of pid.
func plug(dir string, boot bootConfig, pid int) error {
	name := vethName(dir)
	if old, err := netlink.LinkByName(name); err == nil {
		_ = netlink.LinkDel(old)
	}
	bridge, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return fault.Internal.Errorf("bridge %s: %w", bridgeName, err)
	}
	mac, err := net.ParseMAC(boot.MAC)
	if err != nil {
		return fault.Internal.Errorf("MAC address: %w", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex, attrs.MTU = name, bridge.Attrs().Index, outwardMTU()
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerHardwareAddr: mac, PeerMTU: uint32(attrs.MTU), PeerNamespace: netlink.NsPid(pid)}
	if err := netlink.LinkAdd(veth); err != nil {
		return fault.Internal.Errorf("make veth %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return fault.Internal.Errorf("veth %s up: %w", name, err)
	}
	return nil
}

// unplug removes the cable; a dead namespace takes it away by itself, later.
func unplug(dir string) error {
	link, err := netlink.LinkByName(vethName(dir))
	if err != nil {
		return nil
	}
	if err := netlink.LinkDel(link); err != nil {
		if _, gone := netlink.LinkByName(vethName(dir)); gone != nil {
			return nil
		}
		return fmt.Errorf("remove veth: %w", err)
	}
	return nil
}

// detach gives the machine's address back, and removes what no machine needs.
func detach(dir string) error {
	if _, err := os.Stat(runDir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	release, err := lock(filepath.Join(runDir, "lock"))
	if err != nil {
		return err
	}
	defer release()
	for file, owner := range claims() {
		if owner == dir {
			if err := os.Remove(file); err != nil {
				return fmt.Errorf("release address: %w", err)
			}
		}
	}
	return cleanNetwork()
}

// cleanNetwork removes bridge, NAT and our change of ip_forward when no
// address is claimed any more. The caller holds the lock.
func cleanNetwork() error {
	for file, owner := range claims() {
		if _, err := os.Stat(owner); err == nil {
			return nil
		}
		_ = os.Remove(file)
	}
	var errs []error
	if link, err := netlink.LinkByName(bridgeName); err == nil {
		errs = append(errs, netlink.LinkDel(link))
	}
	errs = append(errs, removeNAT())
	forbidForward()
	mark := filepath.Join(runDir, "forward-was-off")
	if _, err := os.Stat(mark); err == nil {
		errs = append(errs, os.WriteFile(forwardCtl, []byte("0"), 0o644), os.Remove(mark))
	}
	return errors.Join(errs...)
}
