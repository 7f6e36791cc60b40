package sshd

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

const forwardDial = 10 * time.Second

// directTCP connects the client to an address as seen from here (ssh -L).
func (c *connection) directTCP(ctx context.Context, nc ssh.NewChannel) {
	var m struct {
		Host       string
		Port       uint32
		OriginHost string
		OriginPort uint32
	}
	if ssh.Unmarshal(nc.ExtraData(), &m) != nil {
		_ = nc.Reject(ssh.ConnectionFailed, "malformed request")
		return
	}
	c.connect(ctx, nc, "tcp", net.JoinHostPort(m.Host, strconv.Itoa(int(m.Port))))
}

// directUnix connects the client to a Unix socket (ssh -L port:/path).
func (c *connection) directUnix(ctx context.Context, nc ssh.NewChannel) {
	var m struct {
		Path     string
		Reserved string
		Port     uint32
	}
	if ssh.Unmarshal(nc.ExtraData(), &m) != nil {
		_ = nc.Reject(ssh.ConnectionFailed, "malformed request")
		return
	}
	if c.user.credential() != nil {
		_ = nc.Reject(ssh.Prohibited, "only root may forward to sockets")
		return
	}
	c.connect(ctx, nc, "unix", m.Path)
}

func (c *connection) connect(ctx context.Context, nc ssh.NewChannel, network, addr string) {
	dialer := net.Dialer{Timeout: forwardDial}
	conn, err := dialer.DialContext(ctx, network, addr)
	if err != nil {
		_ = nc.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	ch, reqs, err := nc.Accept()
	if err != nil {
		_ = conn.Close()
		return
	}
	c.wg.Go(func() { ssh.DiscardRequests(reqs) })
	join(ctx, ch, conn)
}

// join copies both ways, passes half-closes on, and closes both at the end.
func join(ctx context.Context, ch ssh.Channel, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close(); _ = ch.Close() })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(conn, ch)
		if hc, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = hc.CloseWrite()
		}
	})
	wg.Go(func() { _, _ = io.Copy(ch, conn); _ = ch.CloseWrite() })
	wg.Wait()
	_ = errors.Join(conn.Close(), ch.Close())
}

type forwardRequest struct {
	Host string
	Port uint32
}

// globalRequests serves ssh -R (RFC 4254, 7.1) and keepalives.
func (c *connection) globalRequests(ctx context.Context, reqs <-chan *ssh.Request) {
	for req := range reqs {
		var m forwardRequest
		ok, payload := false, []byte(nil)
		switch req.Type {
		case "tcpip-forward":
			if ssh.Unmarshal(req.Payload, &m) == nil {
				var port uint32
				if port, ok = c.listen(ctx, m); ok && m.Port == 0 {
					payload = ssh.Marshal(struct{ Port uint32 }{port})
				}
			}
		case "cancel-tcpip-forward":
			if ssh.Unmarshal(req.Payload, &m) == nil {
				ok = c.unlisten(m)
			}
		}
		if req.WantReply {
			_ = req.Reply(ok, payload)
		}
	}
}

func forwardKey(host string, port uint32) string { return host + ":" + strconv.Itoa(int(port)) }

func (c *connection) listen(ctx context.Context, m forwardRequest) (uint32, bool) {
	if m.Port < 1024 && m.Port != 0 && c.user.credential() != nil {
		return 0, false
	}
	host := m.Host
	if host == "*" {
		host = ""
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(int(m.Port))))
	if err != nil {
		c.Log.Info("forward", "address", m.Host, "port", m.Port, "error", err)
		return 0, false
	}
	port := uint32(l.Addr().(*net.TCPAddr).Port)
	c.mu.Lock()
	if c.closed || len(c.forwards) >= 256 {
		c.mu.Unlock()
		_ = l.Close()
		return 0, false
	}
	c.forwards[forwardKey(m.Host, port)] = l
	c.mu.Unlock()
	c.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.wg.Go(func() { c.forwarded(ctx, m.Host, port, conn) })
		}
	})
	return port, true
}

func (c *connection) forwarded(ctx context.Context, host string, port uint32, conn net.Conn) {
	from := conn.RemoteAddr().(*net.TCPAddr)
	ch, reqs, err := c.conn.OpenChannel("forwarded-tcpip", ssh.Marshal(struct {
		Host       string
		Port       uint32
		OriginHost string
		OriginPort uint32
	}{host, port, from.IP.String(), uint32(from.Port)}))
	if err != nil {
		_ = conn.Close()
		return
	}
	c.wg.Go(func() { ssh.DiscardRequests(reqs) })
	join(ctx, ch, conn)
}

func (c *connection) unlisten(m forwardRequest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	l, ok := c.forwards[forwardKey(m.Host, m.Port)]
	if ok {
		_ = l.Close()
		delete(c.forwards, forwardKey(m.Host, m.Port))
	}
	return ok
}

func (c *connection) closeForwards() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, l := range c.forwards {
		_ = l.Close()
	}
}
