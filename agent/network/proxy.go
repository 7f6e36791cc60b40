package network

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// udpIdle is how long a relayed UDP flow is remembered.
const udpIdle = 90 * time.Second

// relay serves the bindings that the kernel cannot lead: the host's address is
// of another family than the container's ([::]:80 to a container that has
// IPv4 only). Of the others it refuses the connections that met the socket
// alone: before the kernel was told of the binding, or after it was told of its
// end. Nobody else would ever accept them. The sockets are those of hostPorts:
// closing one ends its relay.
func (m *Manager) relay(ep *Endpoint) {
	for _, b := range ep.Ports {
		if !b.HostIP.IsValid() {
			continue
		}
		_, direct := ep.Direct(b)
		to := ep.IPv4.Addr()
		if !to.IsValid() {
			to = ep.IPv6.Addr()
		}
		target := netip.AddrPortFrom(to, b.Port.Num())
		switch s := m.ports.socket(b).(type) {
		case *net.TCPListener:
			if direct {
				m.wg.Go(func() { refuseTCP(s) })
			} else {
				m.wg.Go(func() { relayTCP(s, target) })
			}
		case *net.UDPConn:
			if !direct {
				m.wg.Go(func() { relayUDP(s, target) })
			}
		}
	}
}

// refuseTCP resets what arrives until l is closed.
func refuseTCP(l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			time.Sleep(10 * time.Millisecond) // out of descriptors, mostly
		default:
			_ = c.SetLinger(0)
			c.Close()
		}
	}
}

// relayTCP ends when l is closed and the last connection is through.
func relayTCP(l *net.TCPListener, to netip.AddrPort) {
	var conns connSet
	var wg sync.WaitGroup
	defer wg.Wait()
	defer conns.closeAll()
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors, mostly
			continue
		}
		wg.Go(func() {
			defer c.Close()
			d := net.Dialer{Timeout: 10 * time.Second}
			up, err := d.Dial("tcp", to.String())
			if err != nil {
				return
			}
			defer up.Close()
			if !conns.add(c, up) {
				return
			}
			defer conns.remove(c, up)
			done := make(chan struct{})
			go func() {
				defer close(done)
				copyHalf(up.(*net.TCPConn), c)
			}()
			copyHalf(c, up.(*net.TCPConn))
			<-done
		})
	}
}

// copyHalf copies one direction and then closes only that.
func copyHalf(dst, src *net.TCPConn) {
	_, _ = io.Copy(dst, src)
	_ = dst.CloseWrite()
	_ = src.CloseRead()
}

// A connSet closes what is open when a relay ends.
type connSet struct {
	mu     sync.Mutex
	open   map[net.Conn]struct{}
	closed bool
}

func (s *connSet) add(list ...net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if s.open == nil {
		s.open = map[net.Conn]struct{}{}
	}
	for _, c := range list {
		s.open[c] = struct{}{}
	}
	return true
}

func (s *connSet) remove(list ...net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range list {
		delete(s.open, c)
	}
}

func (s *connSet) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.open {
		c.Close()
	}
}

// relayUDP gives every client a socket of its own towards the container, so
// that answers find their way back. It ends when pc is closed.
func relayUDP(pc *net.UDPConn, to netip.AddrPort) {
	var mu sync.Mutex
	flows := map[netip.AddrPort]*net.UDPConn{}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		for _, f := range flows {
			f.Close()
		}
	}()
	buf := make([]byte, 65535)
	for {
		n, client, err := pc.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		mu.Lock()
		up := flows[client]
		if up == nil {
			up, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
			if err != nil {
				mu.Unlock()
				continue
			}
			flows[client] = up
			wg.Go(func() {
				relayBack(pc, up, client)
				mu.Lock()
				delete(flows, client)
				mu.Unlock()
				up.Close()
			})
		}
		mu.Unlock()
		_ = up.SetReadDeadline(time.Now().Add(udpIdle))
		_, _ = up.Write(buf[:n])
	}
}

func relayBack(pc, up *net.UDPConn, client netip.AddrPort) {
	buf := make([]byte, 65535)
	for {
		n, err := up.Read(buf)
		if err != nil {
			var ne net.Error
			if errors.As(err, &ne) && !ne.Timeout() && !errors.Is(err, net.ErrClosed) {
				continue // the container's port was closed for a moment: ICMP
			}
			return
		}
		_ = up.SetReadDeadline(time.Now().Add(udpIdle))
		if _, err := pc.WriteToUDPAddrPort(buf[:n], client); err != nil {
			return
		}
	}
}
