package firewall

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Names in our table.
const (
	forwardChain = "forward"
	portsAny     = "ports-any"  // proto . port to address . port
	portsAddr    = "ports-addr" // address . proto . port to address . port
	openPorts    = "open-ports" // address . proto . port
	toBridge     = "to-bridge"
	fromBridge   = "from-bridge"
	maxElements  = 400 // per message: netlink attributes are at most 64 KiB
)

// Conntrack's bits: linux/netfilter/nf_conntrack_common.h.
const (
	ctEstablished = 1 << 1 // IP_CT_ESTABLISHED as a state bit
	ctRelated     = 1 << 2
	ctDNAT        = 1 << 5 // IPS_DST_NAT
)

func family(v6 bool) nftables.TableFamily {
	if v6 {
		return nftables.TableFamilyIPv6
	}
	return nftables.TableFamilyIPv4
}

// dial returns a connection whose sockets hold the acknowledgements of a big
// batch: with the default buffers more than 150 messages give ENOBUFS although
// they were committed. nsfd 0 is the agent's namespace.
func dial(nsfd int) (*nftables.Conn, error) {
	const buffer = 4 << 20
	opts := []nftables.ConnOption{nftables.WithSockOptions(func(c *netlink.Conn) error {
		// Best effort: without CAP_NET_ADMIN in the first user namespace the
		// system's limit holds.
		_ = c.SetReadBuffer(buffer)
		_ = c.SetWriteBuffer(buffer)
		return nil
	})}
	if nsfd > 0 {
		opts = append(opts, nftables.WithNetNSFd(nsfd))
	}
	c, err := nftables.New(opts...)
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return c, nil
}

// table builds one transaction.
type table struct {
	c  *nftables.Conn
	t  *nftables.Table
	v6 bool

	any, addr, open *nftables.Set
}

func writeTable(p plan) error {
	c, err := dial(0)
	if err != nil {
		return err
	}
	b := &table{c: c, v6: p.v6, t: &nftables.Table{Name: TableName, Family: family(p.v6)}}
	c.AddTable(b.t)
	c.DelTable(b.t)
	c.AddTable(b.t)
	if err := b.sets(p); err != nil {
		return fmt.Errorf("nftables table %s: %w", TableName, err)
	}
	b.raw()
	b.nat(p)
	if err := b.forward(p); err != nil {
		return fmt.Errorf("nftables table %s: %w", TableName, err)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write nftables table %s: %w", TableName, err)
	}
	return nil
}

func changePorts(v6 bool, ports []Port, add bool) error {
	c, err := dial(0)
	if err != nil {
		return err
	}
	b := &table{c: c, v6: v6, t: &nftables.Table{Name: TableName, Family: family(v6)}}
	b.describe()
	if err := b.elements(ports, add); err != nil {
		return err
	}
	return c.Flush()
}

func (b *table) addrType() nftables.SetDatatype {
	if b.v6 {
		return nftables.TypeIP6Addr
	}
	return nftables.TypeIPAddr
}

func (b *table) describe() {
	a := b.addrType()
	to := nftables.MustConcatSetType(a, nftables.TypeInetService)
	full := nftables.MustConcatSetType(a, nftables.TypeInetProto, nftables.TypeInetService)
	b.any = &nftables.Set{Table: b.t, Name: portsAny, IsMap: true, Concatenation: true, DataType: to,
		KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)}
	b.addr = &nftables.Set{Table: b.t, Name: portsAddr, IsMap: true, Concatenation: true, DataType: to, KeyType: full}
	b.open = &nftables.Set{Table: b.t, Name: openPorts, Concatenation: true, KeyType: full}
}

func (b *table) sets(p plan) error {
	b.describe()
	for _, s := range []*nftables.Set{b.any, b.addr, b.open} {
		if err := b.c.AddSet(s, nil); err != nil {
			return err
		}
	}
	if err := b.elements(p.ports, true); err != nil {
		return err
	}
	var open []nftables.SetElement
	for _, o := range p.open {
		open = append(open, nftables.SetElement{Key: fullKey(o.Proto, o.Container)})
	}
	return b.chunks(b.open, open, true)
}

// elements adds or removes published ports.
func (b *table) elements(ports []Port, add bool) error {
	var anyElems, addrElems []nftables.SetElement
	for _, p := range ports {
		e := nftables.SetElement{Val: target(p.Container)}
		if p.Host.Addr().IsUnspecified() {
			e.Key = anyKey(p.Proto, p.Host.Port())
			anyElems = append(anyElems, e)
		} else {
			e.Key = fullKey(p.Proto, p.Host)
			addrElems = append(addrElems, e)
		}
	}
	if err := b.chunks(b.any, anyElems, add); err != nil {
		return err
	}
	return b.chunks(b.addr, addrElems, add)
}

func (b *table) chunks(s *nftables.Set, elems []nftables.SetElement, add bool) error {
	for len(elems) > 0 {
		n := min(len(elems), maxElements)
		var err error
		if add {
			err = b.c.SetAddElements(s, elems[:n])
		} else {
			err = b.c.SetDeleteElements(s, elems[:n])
		}
		if err != nil {
			return err
		}
		elems = elems[n:]
	}
	return nil
}

// protoNumber is IANA's; an unknown name gives 255, which no packet has.
func protoNumber(proto string) byte {
	switch proto {
	case "tcp":
		return unix.IPPROTO_TCP
	case "udp":
		return unix.IPPROTO_UDP
	case "sctp":
		return unix.IPPROTO_SCTP
	}
	return 255
}

// Parts of a concatenation are padded to 32 bits each.

func anyKey(proto string, port uint16) []byte {
	return []byte{protoNumber(proto), 0, 0, 0, byte(port >> 8), byte(port), 0, 0}
}

func fullKey(proto string, a netip.AddrPort) []byte {
	return append(a.Addr().AsSlice(), anyKey(proto, a.Port())...)
}

func target(a netip.AddrPort) []byte {
	return append(a.Addr().AsSlice(), byte(a.Port()>>8), byte(a.Port()), 0, 0)
}

func (b *table) base(name string, hook *nftables.ChainHook, prio *nftables.ChainPriority, typ nftables.ChainType) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	return b.c.AddChain(&nftables.Chain{Name: name, Table: b.t, Hooknum: hook, Priority: prio, Type: typ, Policy: &accept})
}

func (b *table) rule(ch *nftables.Chain, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	b.c.AddRule(&nftables.Rule{Table: b.t, Chain: ch, Exprs: all})
}

// raw keeps loopback addresses on the loopback device: bridges have
// route_localnet on, so that 127.0.0.1 can be published, and a neighbour must
// not profit.
func (b *table) raw() {
	ch := b.base("raw-prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, nftables.ChainTypeFilter)
	if b.v6 {
		return // the kernel drops ::1 from outside itself
	}
	local := netip.MustParsePrefix("127.0.0.0/8")
	b.rule(ch, ifname(expr.MetaKeyIIFNAME, "lo", false), b.inSubnet(false, local), drop())
	b.rule(ch, ifname(expr.MetaKeyIIFNAME, "lo", false), b.inSubnet(true, local), drop())
}

func (b *table) nat(p plan) {
	pre := b.base("nat-prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, nftables.ChainTypeNAT)
	out := b.base("nat-output", nftables.ChainHookOutput, nftables.ChainPriorityNATDest, nftables.ChainTypeNAT)
	for _, ch := range []*nftables.Chain{pre, out} {
		b.rule(ch, b.lookupFull(b.addr), b.dnat())
		b.rule(ch, localDestination(), lookupAny(b.any), b.dnat())
	}
	post := b.base("nat-postrouting", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, nftables.ChainTypeNAT)
	for _, br := range p.bridges {
		b.source(post, br)
	}
}

func (b *table) mode(br Bridge) Mode {
	if b.v6 {
		return br.Mode6
	}
	return br.Mode4
}

// source writes the rewriting of sources for one bridge.
func (b *table) source(post *nftables.Chain, br Bridge) {
	if br.Internal {
		return
	}
	routed := b.mode(br) == Routed
	for _, s := range br.Subnets {
		// A container that reaches a neighbour, or itself, by a published
		// port: the answer has to come back this way.
		b.rule(post, b.inSubnet(true, s), ifname(expr.MetaKeyOIFNAME, br.Name, true), ctStatus(ctDNAT), masquerade())
		if !br.Masquerade || routed {
			continue
		}
		to := br.SNAT4
		if b.v6 {
			to = br.SNAT6
		}
		rewrite := masquerade()
		if to.IsValid() && to.Is6() == b.v6 && !to.IsUnspecified() {
			rewrite = b.snat(to)
		}
		b.rule(post, b.inSubnet(true, s), ifname(expr.MetaKeyOIFNAME, br.Name, false), rewrite)
	}
	if !b.v6 && len(br.Subnets) > 0 {
		b.rule(post, b.inSubnet(true, netip.MustParsePrefix("127.0.0.0/8")), ifname(expr.MetaKeyOIFNAME, br.Name, true), masquerade())
	}
}

// forward writes the filter: one chain per bridge and direction, found by a
// verdict map, so that a packet passes the same few rules however many
// bridges there are.
func (b *table) forward(p plan) error {
	vmap := func(name string) *nftables.Set {
		return &nftables.Set{Table: b.t, Name: name, IsMap: true, KeyType: nftables.TypeIFName, DataType: nftables.TypeVerdict}
	}
	to, from := vmap(toBridge), vmap(fromBridge)
	var toElems, fromElems []nftables.SetElement
	for _, br := range p.bridges {
		in := b.c.AddChain(&nftables.Chain{Name: "to-" + br.Name, Table: b.t})
		out := b.c.AddChain(&nftables.Chain{Name: "from-" + br.Name, Table: b.t})
		b.incoming(in, br)
		if br.Internal || len(br.Subnets) == 0 {
			b.rule(out, drop())
		} else {
			b.rule(out, accept())
		}
		toElems = append(toElems, jump(br.Name, in.Name))
		fromElems = append(fromElems, jump(br.Name, out.Name))
	}
	for _, s := range []*nftables.Set{to, from} {
		if err := b.c.AddSet(s, nil); err != nil {
			return err
		}
	}
	if err := b.chunks(to, toElems, true); err != nil {
		return err
	}
	if err := b.chunks(from, fromElems, true); err != nil {
		return err
	}
	ch := b.base(forwardChain, nftables.ChainHookForward, nftables.ChainPriorityFilter, nftables.ChainTypeFilter)
	b.rule(ch, ctState(ctEstablished|ctRelated), accept())
	b.rule(ch, verdictBy(expr.MetaKeyOIFNAME, to))
	b.rule(ch, verdictBy(expr.MetaKeyIIFNAME, from))
	return nil
}

// incoming writes what may enter a bridge. It always ends in a verdict.
func (b *table) incoming(ch *nftables.Chain, br Bridge) {
	mode := b.mode(br)
	if !br.Internal {
		b.rule(ch, ctStatus(ctDNAT), accept()) // a published port
	}
	if br.ICC {
		b.rule(ch, ifname(expr.MetaKeyIIFNAME, br.Name, true), accept())
	} else {
		b.rule(ch, ifname(expr.MetaKeyIIFNAME, br.Name, true), drop())
	}
	switch {
	case br.Internal:
	case mode == NATUnprotected:
		b.rule(ch, accept())
		return
	case mode == Routed:
		b.rule(ch, b.lookupFull(b.open), accept())
		icmp := byte(unix.IPPROTO_ICMP)
		if b.v6 {
			icmp = unix.IPPROTO_ICMPV6
		}
		b.rule(ch, l4proto(icmp), accept())
	}
	b.rule(ch, drop())
}

func jump(bridge, chain string) nftables.SetElement {
	return nftables.SetElement{Key: ifnameBytes(bridge), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

// ResolverNAT, in the network namespace nsfd, leads queries for server:53 to
// the ports where the embedded resolver listens: the container keeps port 53
// for a name server of its own. Safe to repeat.
func ResolverNAT(nsfd int, server netip.Addr, udp, tcp uint16) error {
	c, err := dial(nsfd)
	if err != nil {
		return err
	}
	b := &table{c: c, t: &nftables.Table{Name: TableName, Family: nftables.TableFamilyIPv4}}
	c.AddTable(b.t)
	c.DelTable(b.t)
	c.AddTable(b.t)
	ch := b.base("nat-output", nftables.ChainHookOutput, nftables.ChainPriorityNATDest, nftables.ChainTypeNAT)
	for proto, port := range map[byte]uint16{unix.IPPROTO_UDP: udp, unix.IPPROTO_TCP: tcp} {
		b.rule(ch, b.inSubnet(false, netip.PrefixFrom(server, 32)), l4proto(proto), dport(53), []expr.Any{
			&expr.Immediate{Register: 1, Data: server.AsSlice()},
			&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(port)},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2},
		})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("lead %s:53 to the resolver: %w", server, err)
	}
	return nil
}
