package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	apinetwork "github.com/moby/moby/api/types/network"

	"machine/agent/model"
	"machine/agent/network/ipam"
	"machine/agent/network/link"
	"machine/agent/spare"
	"machine/agent/state"
)

// Options configure a Manager.
type Options struct {
	Root     string // network records
	ExecRoot string // volatile state; namespaces are bound at ExecRoot/netns
	Log      *slog.Logger
	// Publish tells the event feed; may be nil.
	Publish      func(action, networkID, name, driver, containerID string)
	Drivers      []Driver
	Bridge       BridgeOptions
	AddressPools []ipam.Pool // nil: Docker's
	IPForward    bool        // set net.ipv4.ip_forward
	HostID       string      // makes the host's own IPv6 prefix; host name when empty
	// The engine's defaults for containers without settings of their own.
	HostResolvConf          string // /etc/resolv.conf when empty
	DNS, DNSOpts, DNSSearch []string
	// Remap are the ids of mapped sandboxes; nil when none is asked for.
	Remap *model.IDMap
}

// A Manager owns all networks of the host. It is safe for concurrent use. It has
// more methods than our budget: networks, sandboxes, endpoints and names share
// its locks, and every method below the exported ones serves one file only.
type Manager struct {
	o       Options
	log     *slog.Logger
	drivers map[string]Driver
	nets    *state.Store[*Network]
	eps     *state.Store[*Endpoint]
	space   *ipam.Space
	ports   *hostPorts
	names   *names
	// dnsConfs are what containers' resolvers were told, by container id.
	dnsConfs *state.Store[model.DNSConfig]

	mu        sync.Mutex
	creating  map[string]bool                          // names that Create is at work on
	subnets   map[string]map[netip.Prefix]*ipam.Subnet // by network id
	sandboxes map[string]*sandbox                      // by key
	keys      map[string]string                        // container id to the key of its sandbox
	// Namespaces without names, so that nothing is left of them when the agent
	// ends, however that comes.
	spare       spare.Spare[*os.File]
	spareMapped spare.Spare[*os.File] // owned by user namespaces
	wg          sync.WaitGroup        // resolvers and proxies
}

// A sandbox is the network namespace of one container.
type sandbox struct {
	mu        sync.Mutex // held through every change of the namespace
	key       string
	container string
	eps       map[string]*Endpoint // by network id; guarded by mu
	dns       *resolver
	moved     []PortRequest // ports of an endpoint that was just detached
	dnsConf   model.DNSConfig
}

// Open reads the records, makes the predefined networks, and puts every
// network into the kernel. Endpoints are left alone until Restore. Close ends
// it.
func Open(ctx context.Context, o Options) (*Manager, error) {
	if err := ipam.CheckPools(o.AddressPools); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Publish == nil {
		o.Publish = func(_, _, _, _, _ string) {}
	}
	if o.HostID == "" {
		o.HostID, _ = os.Hostname()
	}
	if o.Bridge.Name == "" {
		o.Bridge.Name = "docker0"
	}
	if o.HostResolvConf == "" {
		o.HostResolvConf = "/etc/resolv.conf"
	}
	m := &Manager{o: o, log: o.Log, drivers: map[string]Driver{}, space: ipam.NewSpace(o.AddressPools),
		ports: newHostPorts(), names: newNames(), creating: map[string]bool{}, subnets: map[string]map[netip.Prefix]*ipam.Subnet{},
		sandboxes: map[string]*sandbox{}, keys: map[string]string{}}
	end := func(ns *os.File) { ns.Close() }
	m.spare.Make, m.spare.End = link.MakeNS, end
	m.spareMapped.Make, m.spareMapped.End = func() (*os.File, error) { return link.MakeUserNS(o.Remap) }, end
	for _, d := range o.Drivers {
		m.drivers[d.Name()] = d
	}
	if err := m.load(); err != nil {
		return nil, err
	}
	if o.IPForward {
		if err := link.Sysctl("net/ipv4/ip_forward", "1"); err != nil {
			m.log.Warn("cannot turn IP forwarding on: containers will not reach other hosts", "err", err)
		}
	}
	if err := m.predefine(ctx); err != nil {
		return nil, err
	}
	return m, m.raise(ctx)
}

func (m *Manager) load() error {
	var broken, more []error
	var err error
	if m.nets, broken, err = state.Open[*Network](filepath.Join(m.o.Root, "networks")); err != nil {
		return err
	}
	if m.eps, more, err = state.Open[*Endpoint](filepath.Join(m.o.ExecRoot, "network", "endpoints")); err != nil {
		return err
	}
	if m.dnsConfs, _, err = state.Open[model.DNSConfig](filepath.Join(m.o.ExecRoot, "network", "dns")); err != nil {
		return err
	}
	for _, err := range append(broken, more...) {
		m.log.Error("broken network record", "err", err)
	}
	for id, n := range m.nets.All() {
		if n == nil || n.ID != id {
			m.log.Error("network record is not of its name: removed", "id", id)
			if err := m.nets.Delete(id); err != nil {
				return err
			}
			continue
		}
		if err := m.claimSubnets(n); err != nil {
			m.log.Error("network's subnet is in use", "network", n.Name, "err", err)
		}
	}
	for id, ep := range m.eps.All() {
		if ep == nil || ep.ID != id {
			if err := m.eps.Delete(id); err != nil {
				return err
			}
			continue
		}
		m.claimEndpoint(ep)
	}
	return nil
}

// claimSubnets takes a recorded network's pools and reserved addresses.
func (m *Manager) claimSubnets(n *Network) error {
	if n.ConfigOnly {
		return nil
	}
	subs := map[netip.Prefix]*ipam.Subnet{}
	var errs []error
	for _, c := range n.IPAM.Config {
		if !c.Subnet.IsValid() {
			continue
		}
		if _, twice := subs[c.Subnet.Masked()]; !twice && n.ownsSubnets() {
			errs = append(errs, m.space.Claim(c.Subnet))
		}
		s := ipam.NewSubnet(c.Subnet, c.IPRange, nil)
		for _, a := range append([]netip.Addr{c.Gateway}, auxAddrs(c)...) {
			if a.IsValid() && c.Subnet.Contains(a) {
				errs = append(errs, s.Claim(a))
			}
		}
		subs[c.Subnet.Masked()] = s
	}
	m.mu.Lock()
	m.subnets[n.ID] = subs
	m.mu.Unlock()
	return errors.Join(errs...)
}

// ownsSubnets is false for drivers whose subnets are those of the outside
// network: macvlan and ipvlan networks may share them with each other.
func (n *Network) ownsSubnets() bool { return n.Driver != "macvlan" && n.Driver != "ipvlan" }

func auxAddrs(c apinetwork.IPAMConfig) []netip.Addr {
	var out []netip.Addr
	for _, a := range c.AuxAddress {
		if a != c.Gateway {
			out = append(out, a)
		}
	}
	return out
}

func (m *Manager) claimEndpoint(ep *Endpoint) {
	for _, p := range []netip.Prefix{ep.IPv4, ep.IPv6} {
		if s := m.subnetOf(ep.NetworkID, p.Addr()); s != nil {
			if err := s.Claim(p.Addr()); err != nil {
				m.log.Error("endpoint's address", "endpoint", ep.ID, "addr", p, "err", err)
			}
		}
	}
	sb := m.sandbox(ep.Sandbox, ep.ContainerID)
	sb.mu.Lock()
	sb.eps[ep.NetworkID] = ep
	sb.mu.Unlock()
	m.names.add(ep)
}

func (m *Manager) subnetOf(netID string, a netip.Addr) *ipam.Subnet {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !a.IsValid() {
		return nil
	}
	for p, s := range m.subnets[netID] {
		if p.Contains(a) {
			return s
		}
	}
	return nil
}

// sandbox returns the entry of key, made when absent. Containers that share
// the host's namespace, and those without network, have one by their own id.
func (m *Manager) sandbox(key, container string) *sandbox {
	if key == "" {
		key = "container:" + container
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	sb := m.sandboxes[key]
	if sb == nil {
		sb = &sandbox{key: key, container: container, eps: map[string]*Endpoint{}}
		m.sandboxes[key] = sb
		m.keys[container] = key
	}
	return sb
}

func (m *Manager) releaseSubnets(n *Network) {
	m.mu.Lock()
	delete(m.subnets, n.ID)
	m.mu.Unlock()
	for _, c := range n.IPAM.Config {
		if c.Subnet.IsValid() && n.ownsSubnets() {
			m.space.Release(c.Subnet)
		}
	}
}

// nextSubnet takes a free subnet that no route of the host leads to; the
// routes of the bridge own do not count.
func (m *Manager) nextSubnet(v6 bool, own string) (netip.Prefix, error) {
	avoid, err := link.Routes()
	if err != nil {
		return netip.Prefix{}, err
	}
	mine, err := link.AddrsOf(own)
	if err != nil {
		return netip.Prefix{}, err
	}
	kept := avoid[:0]
	for _, a := range avoid {
		ours := false
		for _, p := range mine {
			ours = ours || p.Masked() == a || a.IsSingleIP()
		}
		if !ours {
			kept = append(kept, a)
		}
	}
	if v6 {
		p, err := m.space.Next(true, kept)
		if err == nil {
			return p, nil
		}
		return m.space.NextULA(m.o.HostID)
	}
	return m.space.Next(false, kept)
}

// raise puts all networks into the kernel. A user's network that cannot be
// made is reported and skipped; without the predefined ones nothing works.
func (m *Manager) raise(ctx context.Context) error {
	for _, n := range m.nets.All() {
		d := m.drivers[n.Driver]
		if d == nil || n.ConfigOnly {
			continue
		}
		if err := d.CreateNetwork(ctx, n); err != nil {
			if n.Predefined {
				return fmt.Errorf("network %s: %w", n.Name, err)
			}
			m.log.Error("network cannot be made; its containers will not start", "network", n.Name, "err", err)
		}
	}
	return nil
}

// Check repairs what somebody removed from the kernel. It is meant to be
// called every few seconds.
func (m *Manager) Check(ctx context.Context) error {
	var errs []error
	for _, d := range m.drivers {
		if h, ok := d.(Healer); ok {
			errs = append(errs, h.Check(ctx))
		}
	}
	return errors.Join(errs...)
}

// Close ends resolvers and proxies and lets the ports go. Containers keep
// their networks: the kernel's part stays as it is.
func (m *Manager) Close() error {
	for _, sb := range m.allSandboxes() {
		sb.mu.Lock()
		sb.dns.close()
		sb.dns = nil
		sb.mu.Unlock()
	}
	m.ports.close()
	m.spare.Close()
	m.spareMapped.Close()
	m.wg.Wait()
	return nil
}
