package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"machine/agent/fault"
)

// A Parent is the device that macvlan and ipvlan devices sit on.
type Parent struct {
	Name  string // "eth0", "eth0.50" (made when absent), or empty for a dummy
	Dummy string // the dummy's name
	Alias string // marks what we made
}

// Device returns the name of the device.
func (p Parent) Device() string {
	if p.Name == "" {
		return p.Dummy
	}
	return p.Name
}

// vlan splits the name of an 802.1q child.
func (p Parent) vlan() (under string, id int, ok bool) {
	i := strings.LastIndexByte(p.Name, '.')
	if i <= 0 {
		return "", 0, false
	}
	id, err := strconv.Atoi(p.Name[i+1:])
	return p.Name[:i], id, err == nil && id >= 1 && id <= 4094
}

// Check reports a parent that cannot be: the loopback, a bad name, or a device
// that is absent and no VLAN child.
func (p Parent) Check() error {
	switch {
	case p.Name == "":
		return nil
	case p.Name == "lo":
		return fmt.Errorf("loopback interface is not a valid parent link")
	case len(p.Name) > 15 || strings.ContainsAny(p.Name, "/ \t\n:"):
		return fmt.Errorf("invalid parent interface name %q", p.Name)
	case Exists(p.Name):
		return nil
	}
	under, _, ok := p.vlan()
	if !ok {
		return fmt.Errorf("the parent interface %s does not exist; only NAME.VLAN, of a VLAN from 1 to 4094, is made", p.Name)
	}
	if !Exists(under) {
		return fmt.Errorf("the parent interface %s does not exist", under)
	}
	return nil
}

// SetParent makes the device where it is ours to make, and sets it up. Safe to
// repeat.
func SetParent(ctx context.Context, p Parent) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l, err := netlink.LinkByName(p.Device())
	if err != nil && !isNotFound(err) {
		return fmt.Errorf("look up %s: %w", p.Device(), err)
	}
	if err != nil {
		if l, err = addParent(p); err != nil {
			return err
		}
	} else if l.Attrs().Group != Group {
		return nil // the host's own: its state is the host's business
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("set %s up: %w", p.Device(), err)
	}
	return nil
}

func addParent(p Parent) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Group = p.Device(), Group
	var l netlink.Link
	if p.Name == "" {
		l = &netlink.Dummy{LinkAttrs: attrs}
	} else {
		under, id, ok := p.vlan()
		if !ok {
			return nil, fault.Invalid.Errorf("the parent interface %s does not exist", p.Name)
		}
		base, err := netlink.LinkByName(under)
		if err != nil {
			return nil, fmt.Errorf("look up %s: %w", under, err)
		}
		attrs.ParentIndex = base.Attrs().Index
		l = &netlink.Vlan{LinkAttrs: attrs, VlanId: id, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
	}
	if err := netlink.LinkAdd(l); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("create parent interface %s: %w", p.Device(), err)
	}
	if err := netlink.LinkSetAlias(l, p.Alias); err != nil {
		return nil, fmt.Errorf("mark parent interface %s: %w", p.Device(), err)
	}
	return l, nil
}

// DeleteParent deletes the device if this network made it. Safe to repeat.
func DeleteParent(p Parent) error {
	l, err := netlink.LinkByName(p.Device())
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up %s: %w", p.Device(), err)
	}
	if a := l.Attrs(); a.Group != Group || a.Alias != p.Alias {
		return nil
	}
	return Delete(p.Device())
}

// A Sub is a device on a parent, made straight in a container's namespace.
//
// Kernels before 6.15 look for the device's name among the host's devices too,
// where eth0 is taken: the device is made by another name and renamed inside.
type Sub struct {
	Parent string
	Name   string
	Temp   string           // unique on the host
	MAC    net.HardwareAddr // nil for a random one
	MTU    int              // 0: the parent's
}

// MacvlanMode reads an option's value; empty is bridge.
func MacvlanMode(s string) (netlink.MacvlanMode, error) {
	switch s {
	case "", "bridge":
		return netlink.MACVLAN_MODE_BRIDGE, nil
	case "private":
		return netlink.MACVLAN_MODE_PRIVATE, nil
	case "vepa":
		return netlink.MACVLAN_MODE_VEPA, nil
	case "passthru":
		return netlink.MACVLAN_MODE_PASSTHRU, nil
	}
	return 0, fmt.Errorf("unknown macvlan mode %q: want bridge, private, vepa or passthru", s)
}

// IPVlanMode reads the options' values; empty are l2 and bridge.
func IPVlanMode(mode, flag string) (netlink.IPVlanMode, netlink.IPVlanFlag, error) {
	modes := map[string]netlink.IPVlanMode{"": netlink.IPVLAN_MODE_L2, "l2": netlink.IPVLAN_MODE_L2,
		"l3": netlink.IPVLAN_MODE_L3, "l3s": netlink.IPVLAN_MODE_L3S}
	flags := map[string]netlink.IPVlanFlag{"": netlink.IPVLAN_FLAG_BRIDGE, "bridge": netlink.IPVLAN_FLAG_BRIDGE,
		"private": netlink.IPVLAN_FLAG_PRIVATE, "vepa": netlink.IPVLAN_FLAG_VEPA}
	m, ok := modes[mode]
	if !ok {
		return 0, 0, fmt.Errorf("unknown ipvlan mode %q: want l2, l3 or l3s", mode)
	}
	f, ok := flags[flag]
	if !ok {
		return 0, 0, fmt.Errorf("unknown ipvlan flag %q: want bridge, private or vepa", flag)
	}
	return m, f, nil
}

func (s Sub) attrs(ctx context.Context, ns *NS) (netlink.LinkAttrs, error) {
	a := netlink.NewLinkAttrs()
	if err := ctx.Err(); err != nil {
		return a, err
	}
	parent, err := netlink.LinkByName(s.Parent)
	if err != nil {
		return a, fmt.Errorf("look up parent interface %s: %w", s.Parent, err)
	}
	a.Name, a.MTU, a.ParentIndex, a.Namespace = s.Temp, s.MTU, parent.Attrs().Index, netlink.NsFd(ns.FD())
	if len(s.MAC) > 0 {
		a.HardwareAddr = s.MAC
	}
	return a, nil
}

// AddMacvlan makes a macvlan device in ns; it is down.
func AddMacvlan(ctx context.Context, s Sub, mode netlink.MacvlanMode, ns *NS) error {
	a, err := s.attrs(ctx, ns)
	if err != nil {
		return err
	}
	if err := netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: a, Mode: mode}); err != nil {
		if errors.Is(err, unix.EBUSY) {
			return fault.Conflict.Errorf("create macvlan on %s: an ipvlan network or a passthru device has it: %w", s.Parent, err)
		}
		return fmt.Errorf("create macvlan %s on %s: %w", s.Name, s.Parent, err)
	}
	return ns.rename(s.Temp, s.Name)
}

// AddIPVlan makes an ipvlan device in ns; it is down.
func AddIPVlan(ctx context.Context, s Sub, mode netlink.IPVlanMode, flag netlink.IPVlanFlag, ns *NS) error {
	a, err := s.attrs(ctx, ns)
	if err != nil {
		return err
	}
	if err := netlink.LinkAdd(&netlink.IPVlan{LinkAttrs: a, Mode: mode, Flag: flag}); err != nil {
		if errors.Is(err, unix.EBUSY) {
			return fault.Conflict.Errorf("create ipvlan on %s: a macvlan network has it: %w", s.Parent, err)
		}
		return fmt.Errorf("create ipvlan %s on %s: %w", s.Name, s.Parent, err)
	}
	return ns.rename(s.Temp, s.Name)
}

// rename gives a device inside the namespace its name, or deletes it.
func (n *NS) rename(from, to string) error {
	l, err := n.h.LinkByName(from)
	if err != nil {
		return fmt.Errorf("look up %s: %w", from, err)
	}
	if err := n.h.LinkSetName(l, to); err != nil {
		return errors.Join(fmt.Errorf("rename %s to %s: %w", from, to, err), n.h.LinkDel(l))
	}
	return nil
}
