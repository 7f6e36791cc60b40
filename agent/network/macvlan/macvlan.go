// Package macvlan is the driver of networks whose containers are neighbours of
// the host on its own link, each with a hardware address of its own. Options:
// parent (DEVICE or DEVICE.VLAN) and macvlan_mode (bridge, private, vepa,
// passthru). Without a parent the network is internal, on a dummy device.
package macvlan

import (
	"context"

	"machine/agent/fault"
	"machine/agent/network"
	"machine/agent/network/link"
)

// Options of the driver.
const (
	optParent = "parent"
	optMode   = "macvlan_mode"
)

// Driver implements network.Driver.
type Driver struct{}

// Name implements network.Driver.
func (Driver) Name() string { return "macvlan" }

func parent(n *network.Network) link.Parent {
	return link.Parent{Name: n.Options[optParent], Dummy: "dm-" + n.ID[:12], Alias: "machine:" + n.ID}
}

// Prepare implements network.Driver.
func (Driver) Prepare(n *network.Network) (bool, error) {
	mode := n.Options[optMode]
	if mode == "" {
		mode = "bridge"
		n.Options[optMode] = mode
	}
	if _, err := link.MacvlanMode(mode); err != nil {
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

// CreateNetwork implements network.Driver.
func (Driver) CreateNetwork(ctx context.Context, n *network.Network) error {
	return link.SetParent(ctx, parent(n))
}

// DeleteNetwork implements network.Driver.
func (Driver) DeleteNetwork(_ context.Context, n *network.Network) error {
	return link.DeleteParent(parent(n))
}

// Join implements network.Driver.
func (Driver) Join(ctx context.Context, n *network.Network, ep *network.Endpoint, ns *link.NS) error {
	if ns == nil {
		return fault.Invalid.Errorf("network %s: the container has no network namespace of its own", n.Name)
	}
	mode, err := link.MacvlanMode(n.Options[optMode])
	if err != nil {
		return err
	}
	err = link.AddMacvlan(ctx, link.Sub{Parent: parent(n).Device(), Name: ep.IfName, Temp: "ma-" + ep.ID[:8], MAC: ep.MAC, MTU: n.MTU()}, mode, ns)
	if err != nil {
		return err
	}
	ep.MAC, err = ns.MAC(ep.IfName)
	return err
}

// Leave implements network.Driver.
func (Driver) Leave(_ context.Context, _ *network.Network, ep *network.Endpoint, ns *link.NS) error {
	if ns == nil || ep.IfName == "" {
		return nil // the kernel frees the device with its namespace
	}
	return ns.DeleteDev(ep.IfName)
}
