package firewall

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"testing"
)

func TestKeys(t *testing.T) {
	if got, want := anyKey("tcp", 8080), []byte{6, 0, 0, 0, 0x1f, 0x90, 0, 0}; !bytes.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	got := fullKey("udp", netip.MustParseAddrPort("10.1.2.3:53"))
	if want := []byte{10, 1, 2, 3, 17, 0, 0, 0, 0, 53, 0, 0}; !bytes.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := target(netip.MustParseAddrPort("172.17.0.2:80")), []byte{172, 17, 0, 2, 0, 80, 0, 0}; !bytes.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := fullKey("tcp", netip.MustParseAddrPort("[fd00::1]:80")); len(got) != 24 {
		t.Errorf("IPv6 key has %d bytes, want 24", len(got))
	}
	if protoNumber("ghost") != 255 {
		t.Error("an unknown protocol must match nothing")
	}
	if b := ifnameBytes("a-name-that-is-too-long-for-a-device"); len(b) != 16 || b[15] != 0 {
		t.Errorf("got %v", b)
	}
}

func TestPlanIsStableAndOfOneFamily(t *testing.T) {
	f := New(slog.New(slog.DiscardHandler))
	f.bridges["b"] = Bridge{Name: "b", Subnets: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("fd00::/64")}}
	f.bridges["a"] = Bridge{Name: "a", Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.1/16")}}
	for _, p := range []Port{
		{"udp", netip.MustParseAddrPort("0.0.0.0:53"), netip.MustParseAddrPort("10.1.0.2:53")},
		{"tcp", netip.MustParseAddrPort("0.0.0.0:90"), netip.MustParseAddrPort("10.1.0.2:90")},
		{"tcp", netip.MustParseAddrPort("0.0.0.0:80"), netip.MustParseAddrPort("10.1.0.2:80")},
		{"tcp", netip.MustParseAddrPort("[::]:80"), netip.MustParseAddrPort("[fd00::2]:80")},
	} {
		f.ports[portKey{p.Proto, p.Host}] = p.Container
	}
	p4, p6 := f.plan(false), f.plan(true)
	if len(p4.bridges) != 2 || p4.bridges[0].Name != "a" || p4.bridges[0].Subnets[0].String() != "10.1.0.0/16" || len(p4.bridges[1].Subnets) != 1 {
		t.Errorf("bridges: got %+v", p4.bridges)
	}
	if len(p4.ports) != 3 || p4.ports[0].Host.Port() != 80 || p4.ports[2].Proto != "udp" {
		t.Errorf("ports: got %+v", p4.ports)
	}
	if len(p6.ports) != 1 || len(p6.bridges[0].Subnets) != 0 || len(p6.bridges[1].Subnets) != 1 {
		t.Errorf("IPv6: got %+v", p6)
	}
	if !f.needs6() {
		t.Error("an IPv6 subnet needs the IPv6 table")
	}
}

func TestPublishRefusesTwoFamilies(t *testing.T) {
	f := New(slog.New(slog.DiscardHandler))
	err := f.Publish(context.Background(), []Port{{"tcp", netip.MustParseAddrPort("[::]:80"), netip.MustParseAddrPort("10.1.0.2:80")}})
	if err == nil || len(f.ports) != 0 {
		t.Errorf("got %v with %d ports", err, len(f.ports))
	}
}
