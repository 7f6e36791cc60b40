package network

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	apinetwork "github.com/moby/moby/api/types/network"
)

// TestStraysAreRefused: a connection that meets only the socket which holds a
// published port, because the kernel does not lead it yet, is not left hanging
// in that socket's queue.
func TestStraysAreRefused(t *testing.T) {
	m := &Manager{ports: newHostPorts()}
	lo := netip.MustParseAddr("127.0.0.1")
	port, _, err := m.ports.take(apinetwork.TCP, []netip.Addr{lo}, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	early, err := net.Dial("tcp4", netip.AddrPortFrom(lo, port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	ep := &Endpoint{}
	ep.IPv4, ep.Ports = netip.PrefixFrom(lo, 8), []PortBinding{{Port: apinetwork.MustParsePort("80/tcp"), HostIP: lo, HostPort: port}}
	m.relay(ep)
	early.SetDeadline(time.Now().Add(20 * time.Second))
	if n, err := early.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %d bytes, %v; want a reset", n, err)
	}
	m.ports.close()
	m.wg.Wait()
}
