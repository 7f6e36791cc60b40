package ssh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh/agent"
)

// Forwards are tunnels of one connection, as OpenSSH's -L, -R and -D name them
// (ssh(1)): [bind:]port:host:hostport, a socket's path in place of port or
// host:hostport, and [bind:]port.
type Forwards struct {
	Local, Remote, Dynamic []string
}

// Forward opens all tunnels; an error closes those that were open. They last
// until the client is closed or stop is called, which waits for the listeners.
func (c *Client) Forward(ctx context.Context, f Forwards) (stop func(), err error) {
	t := &tunnels{}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	here, there := (&net.Dialer{}).DialContext, c.DialContext
	for _, s := range f.Local {
		from, to, err := splitForward(s)
		if err != nil {
			return nil, err
		}
		l, err := net.Listen(network(from), from)
		if err != nil {
			return nil, fmt.Errorf("forward -L %s: %w", s, err)
		}
		t.serve(ctx, l, func(context.Context, net.Conn) (string, error) { return to, nil }, there)
	}
	for _, s := range f.Remote {
		from, to, err := splitForward(s)
		if err != nil {
			return nil, err
		}
		l, err := c.Listen(network(from), from)
		if err != nil {
			return nil, fmt.Errorf("forward -R %s: %w", s, err)
		}
		t.serve(ctx, l, func(context.Context, net.Conn) (string, error) { return to, nil }, here)
	}
	for _, s := range f.Dynamic {
		from, err := bindAddr(s)
		if err != nil {
			return nil, err
		}
		l, err := net.Listen("tcp", from)
		if err != nil {
			return nil, fmt.Errorf("forward -D %s: %w", s, err)
		}
		t.serve(ctx, l, socks, there)
	}
	return t.close, nil
}

// tunnels are listeners and what was accepted.
type tunnels struct {
	mu        sync.Mutex
	listeners []net.Listener
	wg        sync.WaitGroup
}

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

func (t *tunnels) serve(ctx context.Context, l net.Listener, target func(context.Context, net.Conn) (string, error), dial dialFunc) {
	t.mu.Lock()
	t.listeners = append(t.listeners, l)
	t.mu.Unlock()
	t.wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with its connection, which the client's end breaks
				defer func() { _ = in.Close() }()
				to, err := target(ctx, in)
				if err != nil {
					return
				}
				out, err := dial(ctx, network(to), to)
				if err != nil {
					return
				}
				join(in, out)
			}()
		}
	})
}

func (t *tunnels) close() {
	t.mu.Lock()
	for _, l := range t.listeners {
		_ = l.Close()
	}
	t.mu.Unlock()
	t.wg.Wait()
}

// join copies both ways, each end's end of file on its own.
func join(a, b net.Conn) {
	defer func() { _ = b.Close() }()
	var wg sync.WaitGroup
	half := func(dst, src net.Conn) {
		_, _ = io.Copy(dst, src)
		if cw, ok := dst.(interface{ CloseWrite() error }); ok {
			_ = cw.CloseWrite()
		} else {
			_ = dst.Close()
		}
	}
	wg.Go(func() { half(a, b) })
	wg.Go(func() { half(b, a) })
	wg.Wait()
}

func network(addr string) string {
	if strings.HasPrefix(addr, "/") {
		return "unix"
	}
	return "tcp"
}

// splitForward reads [bind:]port:host:hostport, where either end may be a path.
func splitForward(s string) (from, to string, err error) {
	bad := fmt.Errorf("forward %q: want [bind:]port:host:port", s)
	words := words(s)
	switch {
	case len(words) == 2 && network(words[0]) == "unix" && network(words[1]) == "unix":
		return words[0], words[1], nil
	case len(words) == 2 && network(words[1]) == "unix":
		from, err = bindAddr(words[0])
		return from, words[1], err
	case len(words) == 3 && network(words[0]) == "unix":
		return words[0], net.JoinHostPort(words[1], words[2]), checkPort(words[2], bad)
	case len(words) == 3 && network(words[2]) == "unix":
		return net.JoinHostPort(words[0], words[1]), words[2], checkPort(words[1], bad)
	case len(words) == 3:
		return net.JoinHostPort("127.0.0.1", words[0]), net.JoinHostPort(words[1], words[2]),
			errors.Join(checkPort(words[0], bad), checkPort(words[2], bad))
	case len(words) == 4:
		return net.JoinHostPort(star(words[0]), words[1]), net.JoinHostPort(words[2], words[3]),
			errors.Join(checkPort(words[1], bad), checkPort(words[3], bad))
	}
	return "", "", bad
}

// words splits at colons, but for those in [brackets].
func words(s string) []string {
	var list []string
	word, depth := "", 0
	for _, r := range s {
		switch {
		case r == '[':
			depth++
		case r == ']':
			depth--
		case r == ':' && depth == 0:
			list, word = append(list, word), ""
		default:
			word += string(r)
		}
	}
	return append(list, word)
}

func bindAddr(s string) (string, error) {
	w := words(s)
	bad := fmt.Errorf("forward %q: want [bind:]port", s)
	switch len(w) {
	case 1:
		return net.JoinHostPort("127.0.0.1", w[0]), checkPort(w[0], bad)
	case 2:
		return net.JoinHostPort(star(w[0]), w[1]), checkPort(w[1], bad)
	}
	return "", bad
}

func star(host string) string {
	if host == "*" {
		return ""
	}
	return host
}

func checkPort(s string, bad error) error {
	if n, err := strconv.Atoi(s); err != nil || n < 0 || n > 65535 {
		return bad
	}
	return nil
}

// socks reads a SOCKS 5 request (RFC 1928, no login) and answers that it is
// granted: what then fails closes the connection.
func socks(_ context.Context, c net.Conn) (string, error) {
	head := make([]byte, 2)
	if _, err := io.ReadFull(c, head); err != nil {
		return "", err
	}
	if head[0] != 5 {
		return "", fmt.Errorf("SOCKS version %d", head[0])
	}
	if _, err := io.CopyN(io.Discard, c, int64(head[1])); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte{5, 0}); err != nil {
		return "", err
	}
	req := make([]byte, 4)
	if _, err := io.ReadFull(c, req); err != nil {
		return "", err
	}
	size := 0
	switch req[3] {
	case 1:
		size = 4
	case 4:
		size = 16
	case 3:
		n := make([]byte, 1)
		if _, err := io.ReadFull(c, n); err != nil {
			return "", err
		}
		size = int(n[0])
	}
	addr := make([]byte, size+2)
	if _, err := io.ReadFull(c, addr); err != nil {
		return "", err
	}
	if req[1] != 1 || size == 0 {
		_, _ = c.Write([]byte{5, 7, 0, 1, 0, 0, 0, 0, 0, 0}) // command not supported
		return "", errors.New("SOCKS: only CONNECT")
	}
	host := string(addr[:size])
	if req[3] != 3 {
		host = net.IP(addr[:size]).String()
	}
	port := int(addr[size])<<8 | int(addr[size+1])
	_, err := c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	return net.JoinHostPort(host, strconv.Itoa(port)), err
}

// shareAgent lets programs on the host use the SSH agent of this computer.
func (c *Client) shareAgent() error {
	sock := os.Getenv("SSH_AUTH_SOCK")
	if sock == "" {
		return errors.New("ssh -A: no SSH agent runs here (SSH_AUTH_SOCK is not set)")
	}
	if err := agent.ForwardToRemote(c.Client, sock); err != nil {
		return fmt.Errorf("ssh -A: %w", err)
	}
	return nil
}
