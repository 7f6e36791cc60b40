// Package ipam hands out subnets and addresses. It is pure: it touches no
// kernel and no disk; its owner keeps the records and claims them again after
// a restart.
package ipam

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"sync"

	"machine/agent/fault"
)

// A Pool is a range of addresses that is cut into subnets of one size
// (Docker's default-address-pools).
type Pool struct {
	Base netip.Prefix `json:"base"`
	Size int          `json:"size"` // prefix length of each subnet
}

// DefaultPools returns Docker's local pools in Docker's order.
func DefaultPools() []Pool {
	p := netip.MustParsePrefix
	return []Pool{
		{p("172.17.0.0/16"), 16}, {p("172.18.0.0/16"), 16}, {p("172.19.0.0/16"), 16},
		{p("172.20.0.0/14"), 16}, {p("172.24.0.0/14"), 16}, {p("172.28.0.0/14"), 16},
		{p("192.168.0.0/16"), 20},
	}
}

// CheckPools reports the first pool that cannot be used, as fault.Invalid.
func CheckPools(pools []Pool) error {
	for _, p := range pools {
		switch {
		case !p.Base.IsValid():
			return fault.Invalid.Errorf("address pool has no valid base")
		case p.Size < p.Base.Bits() || p.Size > p.Base.Addr().BitLen():
			return fault.Invalid.Errorf("address pool %s: size %d is not between %d and %d",
				p.Base, p.Size, p.Base.Bits(), p.Base.Addr().BitLen())
		}
	}
	return nil
}

// A Space is the set of subnets that networks of this host hold. It is safe
// for concurrent use.
type Space struct {
	mu    sync.Mutex
	pools []Pool
	held  map[netip.Prefix]struct{}
}

// NewSpace returns an empty space over pools; nil means DefaultPools.
func NewSpace(pools []Pool) *Space {
	if len(pools) == 0 {
		pools = DefaultPools()
	}
	return &Space{pools: pools, held: map[netip.Prefix]struct{}{}}
}

// Claim takes the subnet that a user asked for. A subnet that overlaps one
// that is held gives fault.Forbidden, with Docker's words.
func (s *Space) Claim(subnet netip.Prefix) error {
	if !subnet.IsValid() {
		return fault.Invalid.Errorf("invalid subnet %s", subnet)
	}
	subnet = subnet.Masked()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.overlaps(subnet) {
		return fault.Forbidden.Errorf("invalid pool request: Pool overlaps with other one on this address space")
	}
	s.held[subnet] = struct{}{}
	return nil
}

// Next takes the first subnet of the pools that overlaps neither a held one
// nor one of avoid (the host's routes). When none is left it gives
// fault.Invalid, with Docker's words.
func (s *Space) Next(v6 bool, avoid []netip.Prefix) (netip.Prefix, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pools {
		if p.Base.Addr().Is6() != v6 {
			continue
		}
		sub := netip.PrefixFrom(p.Base.Masked().Addr(), p.Size)
		for ; sub.IsValid() && p.Base.Contains(sub.Addr()); sub = following(sub) {
			if s.overlaps(sub) || overlapsAny(sub, avoid) {
				continue
			}
			s.held[sub] = struct{}{}
			return sub, nil
		}
	}
	return netip.Prefix{}, fault.Invalid.Errorf("all predefined address pools have been fully subnetted")
}

// Release gives a subnet back. Safe to repeat.
func (s *Space) Release(subnet netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.held, subnet.Masked())
}

func (s *Space) overlaps(p netip.Prefix) bool {
	for h := range s.held {
		if h.Overlaps(p) {
			return true
		}
	}
	return false
}

func overlapsAny(p netip.Prefix, list []netip.Prefix) bool {
	for _, o := range list {
		if o.Bits() > 0 && o.Overlaps(p) {
			return true
		}
	}
	return false
}

// following returns the subnet of the same size after p; it is not valid when
// the address space ends there.
func following(p netip.Prefix) netip.Prefix {
	b := p.Addr().AsSlice()
	for bit := p.Bits() - 1; bit >= 0; bit-- { // binary increment of the network part
		mask := byte(1) << (7 - bit%8)
		b[bit/8] ^= mask
		if b[bit/8]&mask != 0 {
			a, _ := netip.AddrFromSlice(b)
			return netip.PrefixFrom(a, p.Bits())
		}
	}
	return netip.Prefix{}
}

// ULA returns the /64 number n of the unique local /48 (RFC 4193) that belongs
// to hostID: the same host always has the same one.
func ULA(hostID string, n uint16) netip.Prefix {
	h := sha256.Sum256([]byte(hostID))
	var a [16]byte
	a[0] = 0xfd
	copy(a[1:6], h[:5])
	a[6], a[7] = byte(n>>8), byte(n)
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// NextULA takes the first free /64 of the host's unique local /48.
func (s *Space) NextULA(hostID string) (netip.Prefix, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := 0; n < 1<<16; n++ {
		p := ULA(hostID, uint16(n))
		if !s.overlaps(p) {
			s.held[p] = struct{}{}
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("all IPv6 subnets of this host are in use")
}
