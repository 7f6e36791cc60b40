package agent

import "machine/agent/network"

// moreDrivers are the network drivers beside bridge, host and none.
func moreDrivers() []network.Driver { return nil }
