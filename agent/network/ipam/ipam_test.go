package ipam

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"machine/agent/fault"
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func TestPoolsInDockersOrder(t *testing.T) {
	s := NewSpace(nil)
	for _, want := range []string{"172.17.0.0/16", "172.18.0.0/16", "172.19.0.0/16", "172.20.0.0/16", "172.21.0.0/16"} {
		got, err := s.Next(false, nil)
		if err != nil || got != pfx(want) {
			t.Fatalf("got %v, %v, want %s", got, err, want)
		}
	}
	s.Release(pfx("172.18.0.0/16"))
	if got, _ := s.Next(false, nil); got != pfx("172.18.0.0/16") {
		t.Errorf("after a release: got %v", got)
	}
}

func TestNextAvoidsRoutes(t *testing.T) {
	s := NewSpace(nil)
	got, err := s.Next(false, []netip.Prefix{pfx("172.17.3.0/24"), pfx("0.0.0.0/0"), pfx("172.18.0.1/32")})
	if err != nil || got != pfx("172.19.0.0/16") {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestSpaceIsFinite(t *testing.T) {
	s := NewSpace([]Pool{{pfx("10.0.0.0/24"), 26}})
	for range 4 {
		if _, err := s.Next(false, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Next(false, nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("got %v, want Invalid", err)
	}
	n := 0
	d := NewSpace(nil)
	for ; n < 1000; n++ {
		if _, err := d.Next(false, nil); err != nil {
			break
		}
	}
	if n != 3+12+16 {
		t.Errorf("Docker's pools have %d subnets, want 31", n)
	}
	end := NewSpace([]Pool{{pfx("255.255.255.0/24"), 24}}) // no wrap-around
	if _, err := end.Next(false, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := end.Next(false, nil); err == nil {
		t.Error("the address space went on after its end")
	}
}

func TestClaimRefusesOverlap(t *testing.T) {
	s := NewSpace(nil)
	if err := s.Claim(pfx("10.1.0.0/16")); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"10.1.0.0/16", "10.1.2.0/24", "10.0.0.0/8"} {
		if err := s.Claim(pfx(p)); !fault.Is(err, fault.Forbidden) {
			t.Errorf("claim %s: got %v, want Forbidden", p, err)
		}
	}
}

func TestULAIsTheHostsOwn(t *testing.T) {
	a, b := ULA("host-a", 1), ULA("host-b", 1)
	if a == b || a != ULA("host-a", 1) || a.Bits() != 64 || !pfx("fd00::/8").Contains(a.Addr()) {
		t.Errorf("got %v and %v", a, b)
	}
}

func TestLowestFreeButNotJustFreed(t *testing.T) {
	now := time.Unix(1000, 0)
	s := NewSubnet(pfx("10.0.0.0/29"), netip.Prefix{}, func() time.Time { return now })
	next := func() string {
		a, err := s.Next()
		if err != nil {
			return err.Error()
		}
		return a.String()
	}
	if got := next() + " " + next() + " " + next(); got != "10.0.0.1 10.0.0.2 10.0.0.3" {
		t.Fatalf("got %s", got)
	}
	s.Free(netip.MustParseAddr("10.0.0.2"))
	s.Free(netip.MustParseAddr("10.0.0.2"))
	if got := next(); got != "10.0.0.4" {
		t.Errorf("just after a free: got %s, want 10.0.0.4", got)
	}
	now = now.Add(Quarantine)
	if got := next(); got != "10.0.0.2" {
		t.Errorf("later: got %s, want 10.0.0.2", got)
	}
	if got := next() + " " + next(); got != "10.0.0.5 10.0.0.6" {
		t.Errorf("got %s", got)
	}
	s.Free(netip.MustParseAddr("10.0.0.5"))
	if got := next(); got != "10.0.0.5" {
		t.Errorf("when full: got %s, want the one just freed", got)
	}
	if _, err := s.Next(); err == nil || s.InUse() != 6 {
		t.Errorf("got %v with %d in use, want an error with 6", err, s.InUse())
	}
}

func TestRangeAndGateway(t *testing.T) {
	s := NewSubnet(pfx("10.0.0.0/16"), pfx("10.0.5.0/30"), nil)
	var got []string
	for {
		a, err := s.Next()
		if err != nil {
			break
		}
		got = append(got, a.String())
	}
	if len(got) != 4 || got[0] != "10.0.5.0" || got[3] != "10.0.5.3" {
		t.Errorf("got %v", got)
	}
	if a := NewSubnet(pfx("10.0.0.0/16"), netip.Prefix{}, nil).First(); a.String() != "10.0.0.1" {
		t.Errorf("first: got %s", a)
	}
	if err := s.Claim(netip.MustParseAddr("10.0.9.9")); err != nil {
		t.Errorf("an address outside of the range but in the subnet: %v", err)
	}
	if err := s.Claim(netip.MustParseAddr("10.0.9.9")); !fault.Is(err, fault.Forbidden) {
		t.Errorf("twice: got %v", err)
	}
	if err := s.Claim(netip.MustParseAddr("10.1.0.1")); !fault.Is(err, fault.Invalid) {
		t.Errorf("outside: got %v", err)
	}
}

func TestSmallSubnets(t *testing.T) {
	for p, want := range map[string]int{"10.0.0.0/30": 2, "10.0.0.0/31": 2, "10.0.0.0/32": 1, "fd00::/126": 3} {
		s, n := NewSubnet(pfx(p), netip.Prefix{}, nil), 0
		for ; n < 10; n++ {
			if _, err := s.Next(); err != nil {
				break
			}
		}
		if n != want {
			t.Errorf("%s has %d addresses, want %d", p, n, want)
		}
	}
}

func TestBadPools(t *testing.T) {
	for _, p := range []Pool{{}, {pfx("10.0.0.0/16"), 8}, {pfx("10.0.0.0/16"), 33}} {
		if err := CheckPools([]Pool{p}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%v: got %v", p, err)
		}
	}
}

// TestF50TenThousand: ten thousand claims and frees on a /24, with crashes in
// between after which a new pool learns only of the addresses that are in use:
// none is given twice, none is lost.
func TestF50TenThousand(t *testing.T) {
	rnd := rand.New(rand.NewPCG(50, 50))
	now := time.Unix(1000, 0)
	prefix := pfx("10.9.8.0/24")
	fresh := func() *Subnet { return NewSubnet(prefix, netip.Prefix{}, func() time.Time { return now }) }
	s, held := fresh(), map[netip.Addr]bool{}
	for given := 0; given < 10_000; {
		now = now.Add(time.Duration(rnd.IntN(300)) * time.Millisecond)
		switch {
		case rnd.IntN(500) == 0: // a crash
			s = fresh()
			for a := range held {
				if err := s.Claim(a); err != nil {
					t.Fatalf("%s after a crash: %v", a, err)
				}
			}
		case len(held) < 254 && (len(held) == 0 || rnd.IntN(100) < 53):
			a, err := s.Next()
			if err != nil {
				t.Fatalf("with %d held: %v", len(held), err)
			}
			if held[a] || !prefix.Contains(a) || a == prefix.Addr() || a == netip.MustParseAddr("10.9.8.255") {
				t.Fatalf("%s was given, of %d held", a, len(held))
			}
			held[a] = true
			given++
		default:
			for a := range held {
				s.Free(a)
				delete(held, a)
				break
			}
		}
		if s.InUse() != len(held) {
			t.Fatalf("%d in use, %d held", s.InUse(), len(held))
		}
	}
	for a := range held {
		s.Free(a)
	}
	for range 254 {
		if _, err := s.Next(); err != nil {
			t.Fatalf("an address was lost: %v", err)
		}
	}
	if a, err := s.Next(); err == nil {
		t.Errorf("one too many: %s", a)
	}
}
