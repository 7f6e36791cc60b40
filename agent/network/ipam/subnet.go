package ipam

import (
	"net/netip"
	"sync"
	"time"

	"machine/agent/fault"
)

// Quarantine is how long a freed address is passed over while others are
// free: a neighbour may hold its old owner's state for so long.
const Quarantine = 5 * time.Second

// A Subnet hands out the addresses of one subnet. It is safe for concurrent
// use.
type Subnet struct {
	prefix, within netip.Prefix
	now            func() time.Time

	mu    sync.Mutex
	held  map[netip.Addr]struct{}
	freed map[netip.Addr]time.Time
	hint  netip.Addr // all addresses before it are held
}

// NewSubnet returns an allocator for prefix. Addresses are picked from within
// (prefix itself when not valid; Docker's --ip-range); now is time.Now but in
// tests. The network's own and the broadcast address are never handed out.
func NewSubnet(prefix, within netip.Prefix, now func() time.Time) *Subnet {
	prefix = prefix.Masked()
	if !within.IsValid() {
		within = prefix
	}
	if now == nil {
		now = time.Now
	}
	s := &Subnet{prefix: prefix, within: within.Masked(), now: now,
		held: map[netip.Addr]struct{}{}, freed: map[netip.Addr]time.Time{}}
	s.hint = s.within.Addr()
	return s
}

// Prefix returns the whole subnet.
func (s *Subnet) Prefix() netip.Prefix { return s.prefix }

// First returns the first address that a host can have: Docker's default
// gateway. With an ip-range it is the first of that range.
func (s *Subnet) First() netip.Addr {
	a := s.within.Addr()
	if a == s.prefix.Addr() && s.prefix.Bits() < a.BitLen()-1 {
		a = a.Next()
	}
	return a
}

// Claim takes one given address. It gives fault.Invalid when the address is
// not of the subnet and fault.Forbidden when somebody has it.
func (s *Subnet) Claim(a netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.prefix.Contains(a) {
		return fault.Invalid.Errorf("no configured subnet contains IP address %s", a)
	}
	if _, ok := s.held[a]; ok {
		return fault.Forbidden.Errorf("Address already in use")
	}
	s.held[a] = struct{}{}
	delete(s.freed, a)
	return nil
}

// Next takes the lowest free address. One that was freed less than Quarantine
// ago is taken only when nothing else is left: then the one freed first.
func (s *Subnet) Next() (netip.Addr, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	var oldest netip.Addr
	for a := s.hint; a.IsValid() && s.within.Contains(a); a = a.Next() {
		if _, ok := s.held[a]; ok || !s.usable(a) {
			if a == s.hint {
				s.hint = a.Next()
			}
			continue
		}
		if at, ok := s.freed[a]; ok && now.Sub(at) < Quarantine {
			if !oldest.IsValid() || at.Before(s.freed[oldest]) {
				oldest = a
			}
			continue
		}
		return s.take(a), nil
	}
	if oldest.IsValid() {
		return s.take(oldest), nil
	}
	return netip.Addr{}, fault.Internal.Errorf("no available IPv%s addresses on this network's address pools", family(s.prefix))
}

func (s *Subnet) take(a netip.Addr) netip.Addr {
	s.held[a] = struct{}{}
	delete(s.freed, a)
	return a
}

// usable reports whether a host may have the address.
func (s *Subnet) usable(a netip.Addr) bool {
	if a.BitLen()-s.prefix.Bits() <= 1 { // RFC 3021: both ends of a /31 are hosts
		return true
	}
	if a == s.prefix.Addr() {
		return false
	}
	return a.Is6() || s.prefix.Contains(a.Next()) // the broadcast address is the last
}

// Free gives an address back. Safe to repeat.
func (s *Subnet) Free(a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.held[a]; !ok {
		return
	}
	delete(s.held, a)
	now := s.now()
	for old, at := range s.freed { // the table stays as small as the churn
		if now.Sub(at) >= Quarantine {
			delete(s.freed, old)
		}
	}
	s.freed[a] = now
	if s.within.Contains(a) && (!s.hint.IsValid() || a.Less(s.hint)) {
		s.hint = a
	}
}

// InUse returns the number of addresses that are held.
func (s *Subnet) InUse() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held)
}

func family(p netip.Prefix) string {
	if p.Addr().Is6() {
		return "6"
	}
	return "4"
}
