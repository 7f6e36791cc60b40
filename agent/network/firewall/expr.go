package firewall

import (
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers. Register 1 is 16 bytes wide and begins where the 32-bit register
// 8 does: a concatenation is loaded piecewise from 8 on.
const (
	reg1  = 1
	reg32 = 8
)

func ifnameBytes(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b[:unix.IFNAMSIZ-1], name)
	return b
}

// ifname matches the device that the packet came by or leaves by.
func ifname(key expr.MetaKey, name string, equal bool) []expr.Any {
	op := expr.CmpOpEq
	if !equal {
		op = expr.CmpOpNeq
	}
	return []expr.Any{
		&expr.Meta{Key: key, Register: reg1},
		&expr.Cmp{Op: op, Register: reg1, Data: ifnameBytes(name)},
	}
}

// address loads the packet's source or destination.
func (b *table) address(source bool, reg uint32) expr.Any {
	off, size := uint32(16), uint32(4)
	if source {
		off = 12
	}
	if b.v6 {
		off, size = 24, 16
		if source {
			off = 8
		}
	}
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: size}
}

// inSubnet matches packets from or to a subnet.
func (b *table) inSubnet(source bool, p netip.Prefix) []expr.Any {
	p = p.Masked()
	size := p.Addr().BitLen() / 8
	return []expr.Any{
		b.address(source, reg1),
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: uint32(size),
			Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: p.Addr().AsSlice()},
	}
}

// lookupFull looks (address . proto . port) up in a set or, with the result in
// register 1, in a map.
func (b *table) lookupFull(s *nftables.Set) []expr.Any {
	next := uint32(reg32 + 1)
	if b.v6 {
		next = reg32 + 4
	}
	return []expr.Any{
		b.address(false, reg32),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: next},
		&expr.Payload{DestRegister: next + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		lookup(s, reg32),
	}
}

// lookupAny looks (proto . port) up.
func lookupAny(s *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg32},
		&expr.Payload{DestRegister: reg32 + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		lookup(s, reg32),
	}
}

func lookup(s *nftables.Set, reg uint32) expr.Any {
	l := &expr.Lookup{SourceRegister: reg, SetName: s.Name, SetID: s.ID}
	if s.IsMap {
		l.IsDestRegSet, l.DestRegister = true, reg1
	}
	return l
}

// dnat rewrites the destination to what a map lookup left in register 1.
func (b *table) dnat() []expr.Any {
	n := &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg1, RegProtoMin: reg32 + 1, Specified: true}
	if b.v6 {
		n.Family, n.RegProtoMin = unix.NFPROTO_IPV6, reg32+4
	}
	return []expr.Any{n}
}

func (b *table) snat(to netip.Addr) []expr.Any {
	n := &expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg1}
	if b.v6 {
		n.Family = unix.NFPROTO_IPV6
	}
	return []expr.Any{&expr.Immediate{Register: reg1, Data: to.AsSlice()}, n}
}

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

// localDestination matches packets to an address of this host: traffic in
// transit to other hosts is never rewritten.
func localDestination() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg1, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

func l4proto(n byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{n}},
	}
}

func dport(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: binaryutil.BigEndian.PutUint16(port)},
	}
}

// ctBits matches when one of the bits of a conntrack word is set.
func ctBits(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: reg1, Key: key},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: make([]byte, 4)},
	}
}

func ctState(bits uint32) []expr.Any { return ctBits(expr.CtKeySTATE, bits) }

func ctStatus(bits uint32) []expr.Any { return ctBits(expr.CtKeySTATUS, bits) }

// verdictBy jumps by the name of a device.
func verdictBy(key expr.MetaKey, s *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: reg1},
		&expr.Lookup{SourceRegister: reg1, DestRegister: 0, IsDestRegSet: true, SetName: s.Name, SetID: s.ID},
	}
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

func drop() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }
