package registry

import (
	"context"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"machine/agent/fault"
)

// trust is what a user says of registries: which mirrors Docker Hub has, and
// who need not prove who they are.
type trust struct {
	mirrors  []*url.URL
	insecure []netip.Prefix
	names    map[string]bool
}

func parseTrust(mirrors, insecure []string) (trust, error) {
	t := trust{names: map[string]bool{"localhost": true}, insecure: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}}
	for _, i := range insecure {
		if p, err := netip.ParsePrefix(i); err == nil {
			t.insecure = append(t.insecure, p)
			continue
		}
		if strings.Contains(i, "://") || strings.Contains(i, "/") {
			return t, fault.Invalid.Errorf("insecure registry %q should be a host, host:port or CIDR", i)
		}
		t.names[strings.ToLower(i)] = true
	}
	for _, m := range mirrors {
		u, err := url.Parse(strings.TrimRight(m, "/"))
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" {
			return t, fault.Invalid.Errorf("registry mirror %q should be http(s)://host[:port][/path] without credentials", m)
		}
		t.mirrors = append(t.mirrors, u)
	}
	return t, nil
}

// Check tells of mirrors and insecure registries what New and Set would refuse.
func Check(mirrors, insecure []string) error {
	_, err := parseTrust(mirrors, insecure)
	return err
}

// Set changes the mirrors and the insecure registries of a client in use: what
// runs goes on as it began. Invalid, and nothing is changed, when one is.
func (c *Client) Set(mirrors, insecure []string) error {
	t, err := parseTrust(mirrors, insecure)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trust, c.plain, c.away = t, map[string]bool{}, map[string]time.Time{}
	return nil
}

func (c *Client) mirrorsNow() []*url.URL {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.mirrors)
}

// IsInsecure tells whether a host may be talked to without checks.
func (c *Client) IsInsecure(ctx context.Context, host string) bool {
	c.mu.Lock()
	t := c.trust // its parts are never changed
	c.mu.Unlock()
	host = strings.ToLower(host)
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	if t.names[host] || t.names[name] {
		return true
	}
	var ips []netip.Addr
	if ip, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		ips = []netip.Addr{ip}
	} else if len(t.insecure) > 2 { // CIDRs were configured: names count, too
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		ips, _ = net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	}
	for _, ip := range ips {
		for _, p := range t.insecure {
			if p.Contains(ip.Unmap()) {
				return true
			}
		}
	}
	return false
}
