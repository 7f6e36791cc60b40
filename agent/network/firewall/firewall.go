// Package firewall keeps the engine's packet rules in one nftables table per
// address family, "machine-docker", spoken to by netlink only. The table is
// desired state: it is held in memory, written whole in one transaction
// (nobody ever sees half of it), and written again when it is gone. Published
// ports are map elements, so that the cost of one does not grow with their
// number. Nothing outside of our table is read or touched.
//
// The chains, for each family:
//
//	raw prerouting   loopback addresses never come in from outside
//	nat prerouting   published ports: (address . proto . port) and, for local
//	                 addresses, (proto . port) to address . port
//	nat output       the same for processes of the host
//	nat postrouting  masquerade of what leaves a bridge, and of hairpins
//	filter forward   a verdict map by bridge: isolation, internal, icc
//
// Source: nft(8), netlink's linux/netfilter/nf_tables.h.
package firewall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"machine/agent/fault"
)

// TableName is the name of our tables.
const TableName = "machine-docker"

// Mode is a bridge's gateway mode (com.docker.network.bridge.gateway_mode_*).
type Mode string

// The gateway modes.
const (
	NAT            Mode = "nat"             // only published ports can be reached
	NATUnprotected Mode = "nat-unprotected" // every port can be reached by who has a route
	Routed         Mode = "routed"          // no translation; published container ports are open
	Isolated       Mode = "isolated"        // internal only; no address of the host on the bridge
)

// A Bridge is what the rules need to know of one bridge.
type Bridge struct {
	Name       string // the device
	Subnets    []netip.Prefix
	ICC        bool // containers of the bridge may talk to each other
	Internal   bool // nothing leaves, nothing comes in
	Masquerade bool
	SNAT4      netip.Addr // rewrite to it instead of masquerading; may be invalid
	SNAT6      netip.Addr
	Mode4      Mode // empty is NAT
	Mode6      Mode
}

// A Port is one published port.
type Port struct {
	Proto     string         // "tcp", "udp", "sctp"
	Host      netip.AddrPort // unspecified address: all of the host's
	Container netip.AddrPort // of the same family
}

type portKey struct {
	proto string
	host  netip.AddrPort
}

// A Firewall owns the tables. It is safe for concurrent use.
type Firewall struct {
	log *slog.Logger

	mu      sync.Mutex
	bridges map[string]Bridge
	ports   map[portKey]netip.AddrPort
	open    map[Port]struct{} // routed mode: container ports that are open
	written map[bool]bool     // by "is IPv6": our table was written
	warned  bool              // about others' rules
}

// New returns an empty firewall. The kernel is not touched before the first
// change or Set.
func New(log *slog.Logger) *Firewall {
	return &Firewall{log: log, bridges: map[string]Bridge{}, ports: map[portKey]netip.AddrPort{},
		open: map[Port]struct{}{}, written: map[bool]bool{}}
}

// SetBridge adds a bridge or changes it. Safe to repeat: when nothing changes
// the kernel is not touched.
func (f *Firewall) SetBridge(ctx context.Context, b Bridge) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if old, ok := f.bridges[b.Name]; ok && sameBridge(old, b) && f.written[false] {
		return nil
	}
	b.Subnets = slices.Clone(b.Subnets)
	old, had := f.bridges[b.Name]
	f.bridges[b.Name] = b
	if err := f.write(ctx); err != nil {
		if had {
			f.bridges[b.Name] = old
		} else {
			delete(f.bridges, b.Name)
		}
		return fmt.Errorf("packet rules of bridge %s: %w", b.Name, err)
	}
	return nil
}

// DeleteBridge removes a bridge's rules. Safe to repeat.
func (f *Firewall) DeleteBridge(ctx context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.bridges[name]; !ok {
		return nil
	}
	delete(f.bridges, name)
	if err := f.write(ctx); err != nil {
		return fmt.Errorf("packet rules of bridge %s: %w", name, err)
	}
	return nil
}

// Publish opens ports, all or none. It is safe to repeat. A host port that
// leads elsewhere already is fault.Conflict.
func (f *Firewall) Publish(ctx context.Context, ports []Port) error {
	if len(ports) == 0 {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var added []Port
	for _, p := range ports {
		if p.Host.Addr().Is6() != p.Container.Addr().Is6() {
			return fault.Invalid.Errorf("publish %s at %s: two address families", p.Container, p.Host)
		}
		k := portKey{p.Proto, p.Host}
		if to, ok := f.ports[k]; ok && to != p.Container {
			for _, a := range added {
				delete(f.ports, portKey{a.Proto, a.Host})
			}
			return fault.Conflict.Errorf("port %s/%s leads to %s already", p.Host, p.Proto, to)
		} else if !ok {
			f.ports[k] = p.Container
			added = append(added, p)
		}
	}
	if err := f.change(ctx, added, true); err != nil {
		for _, p := range added {
			delete(f.ports, portKey{p.Proto, p.Host})
		}
		return fmt.Errorf("publish ports: %w", err)
	}
	return nil
}

// Revoke closes ports again. Safe to repeat.
func (f *Firewall) Revoke(ctx context.Context, ports []Port) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var gone []Port
	for _, p := range ports {
		k := portKey{p.Proto, p.Host}
		if to, ok := f.ports[k]; ok && to == p.Container {
			delete(f.ports, k)
			gone = append(gone, p)
		}
	}
	if err := f.change(ctx, gone, false); err != nil {
		return fmt.Errorf("revoke ports: %w", err)
	}
	return nil
}

// Open lets packets from outside reach container ports of a bridge in routed
// mode; Host of the ports is ignored. Safe to repeat.
func (f *Firewall) Open(ctx context.Context, ports []Port) error {
	return f.setOpen(ctx, ports, true)
}

// Shut reverses Open. Safe to repeat.
func (f *Firewall) Shut(ctx context.Context, ports []Port) error {
	return f.setOpen(ctx, ports, false)
}

func (f *Firewall) setOpen(ctx context.Context, ports []Port, on bool) error {
	if len(ports) == 0 {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range ports {
		k := Port{Proto: p.Proto, Container: p.Container}
		if on {
			f.open[k] = struct{}{}
		} else {
			delete(f.open, k)
		}
	}
	if err := f.write(ctx); err != nil {
		return fmt.Errorf("open container ports: %w", err)
	}
	return nil
}

// Set writes the tables anew, whatever is in the kernel.
func (f *Firewall) Set(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.write(ctx)
}

// Check writes the tables again when one of them is gone or was emptied
// ("nft flush ruleset", a firewall manager's reload). It reports whether it
// had to.
func (f *Firewall) Check(ctx context.Context) (healed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for v6, was := range f.written {
		if !was {
			continue
		}
		ok, err := tableStands(v6)
		if err != nil {
			return false, err
		}
		if !ok {
			f.log.Warn("our packet rules were removed by somebody: writing them again", "table", TableName)
			return true, f.write(ctx)
		}
	}
	return false, nil
}

// Close removes our tables from the kernel. Safe to repeat.
func (f *Firewall) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.written = map[bool]bool{}
	return errors.Join(deleteTable(false), deleteTable(true))
}

// write replaces the tables by what should be.
func (f *Firewall) write(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.warn()
	for _, v6 := range []bool{false, true} {
		if v6 && !f.needs6() {
			if f.written[true] {
				if err := deleteTable(true); err != nil {
					return err
				}
				f.written[true] = false
			}
			continue
		}
		if err := writeTable(f.plan(v6)); err != nil {
			return err
		}
		f.written[v6] = true
	}
	return nil
}

func (f *Firewall) needs6() bool {
	for _, b := range f.bridges {
		for _, s := range b.Subnets {
			if s.Addr().Is6() {
				return true
			}
		}
	}
	return false
}

// change adds or removes map elements; when the kernel refuses (somebody
// removed our table) the tables are written anew.
func (f *Firewall) change(ctx context.Context, ports []Port, add bool) error {
	if len(ports) == 0 {
		return nil
	}
	for _, v6 := range []bool{false, true} {
		var mine []Port
		for _, p := range ports {
			if p.Host.Addr().Is6() == v6 {
				mine = append(mine, p)
			}
		}
		if len(mine) == 0 {
			continue
		}
		if !f.written[v6] || changePorts(v6, mine, add) != nil {
			return f.write(ctx)
		}
	}
	return nil
}

// plan is the wanted table of one family: pure data, in a stable order.
type plan struct {
	v6      bool
	bridges []Bridge // Subnets only of this family
	ports   []Port
	open    []Port
}

func (f *Firewall) plan(v6 bool) plan {
	p := plan{v6: v6}
	for _, name := range slices.Sorted(maps.Keys(f.bridges)) {
		b := f.bridges[name]
		var subs []netip.Prefix
		for _, s := range b.Subnets {
			if s.Addr().Is6() == v6 {
				subs = append(subs, s.Masked())
			}
		}
		b.Subnets = subs
		p.bridges = append(p.bridges, b)
	}
	for k, to := range f.ports {
		if k.host.Addr().Is6() == v6 {
			p.ports = append(p.ports, Port{k.proto, k.host, to})
		}
	}
	for o := range f.open {
		if o.Container.Addr().Is6() == v6 {
			p.open = append(p.open, o)
		}
	}
	order := func(a, b Port) int {
		if c := strings.Compare(a.Proto, b.Proto); c != 0 {
			return c
		}
		if c := a.Host.Compare(b.Host); c != 0 {
			return c
		}
		return a.Container.Compare(b.Container)
	}
	slices.SortFunc(p.ports, order)
	slices.SortFunc(p.open, order)
	return p
}

func sameBridge(a, b Bridge) bool {
	return a.Name == b.Name && slices.Equal(a.Subnets, b.Subnets) && a.ICC == b.ICC &&
		a.Internal == b.Internal && a.Masquerade == b.Masquerade && a.SNAT4 == b.SNAT4 &&
		a.SNAT6 == b.SNAT6 && a.Mode4 == b.Mode4 && a.Mode6 == b.Mode6
}

func tableStands(v6 bool) (bool, error) {
	c, err := dial(0)
	if err != nil {
		return false, err
	}
	t, err := c.ListTableOfFamily(TableName, family(v6))
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up nftables table %s: %w", TableName, err)
	}
	chains, err := c.ListChainsOfTableFamily(family(v6))
	if err != nil {
		return false, fmt.Errorf("list nftables chains: %w", err)
	}
	for _, ch := range chains {
		if ch.Table.Name != t.Name || ch.Name != forwardChain {
			continue
		}
		rules, err := c.GetRules(t, ch)
		return err == nil && len(rules) > 0, err
	}
	return false, nil
}

func deleteTable(v6 bool) error {
	c, err := dial(0)
	if err != nil {
		return err
	}
	t := &nftables.Table{Name: TableName, Family: family(v6)}
	c.AddTable(t) // so that the deletion of an absent one is no error
	c.DelTable(t)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("delete nftables table %s: %w", TableName, err)
	}
	return nil
}
