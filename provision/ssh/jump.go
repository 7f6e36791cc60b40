package ssh

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// Via returns c with its connection led through the hosts of list, as ssh's -J
// names them: [user@]host[:port], with commas between. Their keys are recorded
// in c's known_hosts under their addresses; who logs in on them is the user's
// SSH agent or default keys, or the machine's key.
func (c Config) Via(list string) (Config, error) {
	if list == "" || list == "none" {
		return c, nil
	}
	var jumps []Config
	for _, s := range strings.Split(list, ",") {
		j := Config{Key: c.Key, KnownHosts: c.KnownHosts, Say: c.Say, jump: true}
		s = strings.TrimSpace(s)
		if user, host, ok := strings.Cut(s, "@"); ok {
			j.User, s = user, host
		}
		if host, port, err := net.SplitHostPort(s); err == nil {
			n, err := strconv.Atoi(port)
			if err != nil || n < 1 || n > 65535 {
				return c, fmt.Errorf("jump host %q: the port is no port", s)
			}
			j.Host, j.Port = host, n
		} else {
			j.Host = strings.Trim(s, "[]")
		}
		if j.Host == "" {
			return c, fmt.Errorf("jump hosts %q: want [user@]host[:port],...", list)
		}
		jumps = append(jumps, j)
	}
	c.Jumps = append(jumps, c.Jumps...)
	return c, nil
}

// reach opens the transport to the host: straight, or through its jump hosts.
// closeJumps closes those.
func reach(ctx context.Context, c Config) (conn net.Conn, closeJumps func(), err error) {
	if len(c.Jumps) == 0 {
		dialer := net.Dialer{Timeout: dialTimeout}
		conn, err = dialer.DialContext(ctx, "tcp", c.addr())
		if err != nil {
			err = fmt.Errorf("ssh to %s: %w", c.addr(), err)
		}
		return conn, func() {}, err
	}
	last := c.Jumps[len(c.Jumps)-1]
	last.Jumps = c.Jumps[:len(c.Jumps)-1]
	via, err := Dial(ctx, last)
	if err != nil {
		return nil, nil, fmt.Errorf("jump host: %w", err)
	}
	dctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err = via.DialContext(dctx, "tcp", c.addr())
	if err != nil {
		_ = via.Close()
		return nil, nil, fmt.Errorf("ssh to %s by way of %s: %w", c.addr(), last.addr(), err)
	}
	return conn, func() { _ = via.Close() }, nil
}
