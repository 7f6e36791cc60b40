package network

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	apinetwork "github.com/moby/moby/api/types/network"
)

// TestRelayTakesStrays: a connection that meets only the socket which holds a
// published port, because the kernel does not lead it yet, is not left hanging
// in that socket's queue.
func TestRelayTakesStrays(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "container")
			c.Close()
		}
	}()
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
	inner, _ := apinetwork.PortFrom(uint16(l.Addr().(*net.TCPAddr).Port), apinetwork.TCP)
	ep := &Endpoint{}
	ep.IPv4, ep.Ports = netip.PrefixFrom(lo, 8), []PortBinding{{Port: inner, HostIP: lo, HostPort: port}}
	m.relay(ep)
	early.SetDeadline(time.Now().Add(20 * time.Second))
	if b, err := io.ReadAll(early); string(b) != "container" {
		t.Errorf("got %q, %v", b, err)
	}
	m.ports.close()
	m.wg.Wait()
}
