package model

import (
	"net"
	"net/netip"
	"time"

	"github.com/moby/moby/api/types/network"
)

// A PortRequest asks for a container port to be published.
type PortRequest struct {
	Port     network.Port
	HostIP   netip.Addr // zero: the network's default, usually all addresses
	HostPort string     // "", "8080" or "8000-8010"
}

// A PortBinding is a published port as it is.
type PortBinding struct {
	Port     network.Port
	HostIP   netip.Addr
	HostPort uint16
}

// An Endpoint is one container's place in one network.
type Endpoint struct {
	ID, NetworkID, NetworkName, Driver string
	ContainerID, ContainerName         string
	IfName                             string // in the container
	HostIf                             string // the host's end; empty when there is none
	MAC                                net.HardwareAddr
	IPv4, IPv6                         netip.Prefix
	Gateway, Gateway6                  netip.Addr
	Aliases, DNSNames, Links           []string
	DriverOpts                         map[string]string
	GwPriority                         int
	Ports                              []PortBinding
}

// AttachConfig asks for an endpoint.
type AttachConfig struct {
	ContainerID, ContainerName, Hostname string
	NetworkRef                           string // id or name
	SandboxKey                           string // path of the network namespace
	Config                               *network.EndpointSettings
	Ports                                []PortRequest
}

// DNSConfig is what a container's resolv.conf and resolver are made of.
type DNSConfig struct {
	Servers []netip.Addr
	Options []string
	Search  []string
}

// LogOptions choose which records of a container's log to read.
type LogOptions struct {
	Since, Until time.Time // zero: no bound
	Tail         int       // last records only; negative is all
	Follow       bool      // go on until the writer has ended
}

// A LogRecord is one entry of a container's log. Line is valid until the
// callback that got it returns; it includes its newline unless Partial.
type LogRecord struct {
	Time    time.Time
	Stream  string // "stdout" or "stderr"
	Line    []byte
	Partial bool
	Attrs   map[string]string
}

// LinkStats are the counters of one network interface.
type LinkStats struct {
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// A VolumeRequest names a volume, and says how to make it if it is absent.
type VolumeRequest struct {
	Name    string // empty: anonymous, a name is made
	Driver  string
	Options map[string]string
	Labels  map[string]string
}

// A Volume is a volume in use.
type Volume struct {
	Name, Driver string
	Mountpoint   string // host path of its data
	Anonymous    bool
	Empty        bool // nothing in it yet: may be filled from the image
}
