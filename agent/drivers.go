package agent

import (
	"machine/agent/network"
	"machine/agent/network/ipvlan"
	"machine/agent/network/macvlan"
)

// moreDrivers are the network drivers beside bridge, host and none.
func moreDrivers() []network.Driver { return []network.Driver{&macvlan.Driver{}, ipvlan.New()} }
