//go:build !linux

package plugin

import "net"

// peerAllowed cannot tell the caller's user here.
func peerAllowed(net.Conn) bool { return true }
