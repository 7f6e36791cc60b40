// Package null is the driver of network none: its containers have a network
// namespace of their own, and in it a loopback only.
package null

import (
	"context"

	"machine/agent/network"
	"machine/agent/network/link"
)

// Driver implements network.Driver; there is nothing to do.
type Driver struct{}

// Name implements network.Driver.
func (Driver) Name() string { return "null" }

// Prepare implements network.Driver.
func (Driver) Prepare(*network.Network) (bool, error) { return false, nil }

// CreateNetwork implements network.Driver.
func (Driver) CreateNetwork(context.Context, *network.Network) error { return nil }

// DeleteNetwork implements network.Driver.
func (Driver) DeleteNetwork(context.Context, *network.Network) error { return nil }

// Join implements network.Driver.
func (Driver) Join(context.Context, *network.Network, *network.Endpoint, *link.NS) error { return nil }

// Leave implements network.Driver.
func (Driver) Leave(context.Context, *network.Network, *network.Endpoint, *link.NS) error { return nil }
