// Package ipvlan is the driver of networks whose containers share the hardware
// address of the host's link and have IP addresses of their own. Options:
// parent (DEVICE or DEVICE.VLAN), ipvlan_mode (l2, l3, l3s) and ipvlan_flag
// (bridge, private, vepa). The mode belongs to the parent: all networks of one
// parent have the same. Without a parent the network is internal, on a dummy
// device.
package ipvlan

import (
	"context"
	"net/netip"
	"sync"

	"machine/agent/fault"
	"machine/agent/network"
	"machine/agent/network/link"
)

// Options of the driver.
const (
	optParent = "parent"
	optMode   = "ipvlan_mode"
	optFlag   = "ipvlan_flag"
)

// Driver implements network.Driver.
type Driver struct {
	mu    sync.Mutex
	users map[string]string // parent to the network that has it
}

// New returns the driver.
func New() *Driver { return &Driver{users: map[string]string{}} }

// Name implements network.Driver.
func (d *Driver) Name() string { return "ipvlan" }

func parent(n *network.Network) link.Parent {
	return link.Parent{Name: n.Options[optParent], Dummy: "di-" + n.ID[:12], Alias: "machine:" + n.ID}
}

// Prepare implements network.Driver.
func (d *Driver) Prepare(n *network.Network) (bool, error) {
	for key, def := range map[string]string{optMode: "l2", optFlag: "bridge"} {
		if n.Options[key] == "" {
			n.Options[key] = def
		}
	}
	if _, _, err := link.IPVlanMode(n.Options[optMode], n.Options[optFlag]); err != nil {
		return false, fault.Invalid.Errorf("%w", err)
	}
	if err := parent(n).Check(); err != nil {
		return false, fault.Invalid.Errorf("%w", err)
	}
	if n.Options[optParent] == "" {
		n.Internal = true
	}
	return true, nil
}

// CreateNetwork implements network.Driver. A parent that another ipvlan
// network has is refused: the kernel would silently change that one's mode.
func (d *Driver) CreateNetwork(ctx context.Context, n *network.Network) error {
	dev := parent(n).Device()
	d.mu.Lock()
	defer d.mu.Unlock()
	if other := d.users[dev]; other != "" && other != n.ID {
		return fault.Conflict.Errorf("network %s is already using parent interface %s", other[:12], dev)
	}
	if err := link.SetParent(ctx, parent(n)); err != nil {
		return err
	}
	d.users[dev] = n.ID
	return nil
}

// DeleteNetwork implements network.Driver.
func (d *Driver) DeleteNetwork(_ context.Context, n *network.Network) error {
	dev := parent(n).Device()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.users[dev] != n.ID { // a create that was refused: the device is another's
		return nil
	}
	if err := link.DeleteParent(parent(n)); err != nil {
		return err
	}
	delete(d.users, dev)
	return nil
}

// Join implements network.Driver. In the modes l3 and l3s the device itself is
// the default route.
func (d *Driver) Join(ctx context.Context, n *network.Network, ep *network.Endpoint, ns *link.NS) error {
	if ns == nil {
		return fault.Invalid.Errorf("network %s: the container has no network namespace of its own", n.Name)
	}
	mode, flag, err := link.IPVlanMode(n.Options[optMode], n.Options[optFlag])
	if err != nil {
		return err
	}
	err = link.AddIPVlan(ctx, link.Sub{Parent: parent(n).Device(), Name: ep.IfName, Temp: "ip-" + ep.ID[:8], MTU: n.MTU()}, mode, flag, ns)
	if err != nil {
		return err
	}
	if n.Options[optMode] != "l2" {
		ep.DeviceRoute = !n.Internal
		ep.Gateway, ep.Gateway6 = netip.Addr{}, netip.Addr{}
	}
	ep.MAC, err = ns.MAC(ep.IfName)
	return err
}

// Leave implements network.Driver.
func (d *Driver) Leave(_ context.Context, _ *network.Network, ep *network.Endpoint, ns *link.NS) error {
	if ns == nil || ep.IfName == "" {
		return nil // the kernel frees the device with its namespace
	}
	return ns.DeleteDev(ep.IfName)
}
