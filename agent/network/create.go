package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"strconv"
	"time"

	apinetwork "github.com/moby/moby/api/types/network"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/network/ipam"
	"machine/agent/undo"
)

var nameRE = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// Create makes a network. A name that is taken is fault.Conflict, one of the
// predefined networks' fault.Forbidden, a bad configuration fault.Invalid, an
// unknown driver fault.NotFound. Source: Docker Engine API, NetworkCreate.
func (m *Manager) Create(ctx context.Context, r apinetwork.CreateRequest) (resp apinetwork.CreateResponse, err error) {
	n, err := m.newNetwork(r)
	if err != nil {
		return resp, err
	}
	var u undo.Stack
	defer u.Run(&err)
	if err := m.reserve(n.Name); err != nil {
		return resp, err
	}
	defer m.unreserve(n.Name)
	if r.ConfigOnly {
		n.Driver = "null"
		if n.IPAM.Config == nil {
			n.IPAM.Config = []apinetwork.IPAMConfig{}
		}
		if err := m.nets.Put(n.ID, n); err != nil {
			return resp, err
		}
		m.o.Publish("create", n.ID, n.Name, n.Driver, "")
		return apinetwork.CreateResponse{ID: n.ID}, nil
	}
	d, err := m.driver(n.Driver)
	if err != nil {
		return resp, err
	}
	addresses, err := d.Prepare(n)
	if err != nil {
		return resp, err
	}
	if addresses {
		if err := m.fillIPAM(n); err != nil {
			return resp, err
		}
		u.Add(func() error { m.releaseSubnets(n); return nil })
	}
	if err := m.nets.Put(n.ID, n); err != nil {
		return resp, err
	}
	u.Add(func() error { return m.nets.Delete(n.ID) })
	// Also what a failed create left half-made goes.
	u.Add(func() error { return d.DeleteNetwork(context.WithoutCancel(ctx), n) })
	if err := d.CreateNetwork(ctx, n); err != nil {
		return resp, fmt.Errorf("create network %s: %w", n.Name, err)
	}
	u.Keep()
	m.o.Publish("create", n.ID, n.Name, n.Driver, "")
	return apinetwork.CreateResponse{ID: n.ID}, nil
}

func (m *Manager) driver(name string) (Driver, error) {
	if d := m.drivers[name]; d != nil {
		return d, nil
	}
	return nil, fault.NotFound.Errorf("could not find plugin %s in v1 plugin registry: plugin not found", name)
}

// reserve keeps two creates from taking one name.
func (m *Manager) reserve(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.creating[name] || m.byName(name) != nil {
		return fault.Conflict.Errorf("network with name %s already exists", name)
	}
	m.creating[name] = true
	return nil
}

func (m *Manager) unreserve(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.creating, name)
}

// newNetwork checks a request and makes a record of it.
func (m *Manager) newNetwork(r apinetwork.CreateRequest) (*Network, error) {
	switch {
	case !nameRE.MatchString(r.Name):
		return nil, fault.Invalid.Errorf("invalid network name %q: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", r.Name)
	case r.Name == "bridge" || r.Name == "host" || r.Name == "none" || r.Name == "default":
		return nil, fault.Forbidden.Errorf("operation is not permitted on predefined %s network", r.Name)
	case r.ConfigOnly && r.ConfigFrom != nil && r.ConfigFrom.Network != "":
		return nil, fault.Forbidden.Errorf("a configuration network cannot depend on another configuration network")
	case r.Driver == "host" || r.Driver == "null":
		return nil, fault.Forbidden.Errorf("only one instance of %q network is allowed", r.Driver)
	case r.Scope != "" && r.Scope != "local":
		return nil, fault.Invalid.Errorf("network scope %q needs a cluster", r.Scope)
	}
	n := &Network{}
	n.ID, n.Name, n.Created = model.NewID(), r.Name, time.Now()
	n.Scope, n.Driver = "local", r.Driver
	if n.Driver == "" || n.Driver == "default" {
		n.Driver = "bridge"
	}
	n.Internal, n.Attachable, n.Ingress, n.ConfigOnly = r.Internal, r.Attachable, r.Ingress, r.ConfigOnly
	n.Options, n.Labels = orEmpty(r.Options), orEmpty(r.Labels)
	n.IPAM = apinetwork.IPAM{Driver: "default", Options: map[string]string{}}
	if r.IPAM != nil {
		if r.IPAM.Driver != "" && r.IPAM.Driver != "default" && r.IPAM.Driver != "null" {
			return nil, fault.NotFound.Errorf("could not find IPAM plugin %s", r.IPAM.Driver)
		}
		n.IPAM.Options = orEmpty(r.IPAM.Options)
		n.IPAM.Config = r.IPAM.Config
	}
	if r.ConfigFrom != nil && r.ConfigFrom.Network != "" {
		if err := m.configFrom(n, r); err != nil {
			return nil, err
		}
	}
	families(n, r)
	if !n.EnableIPv4 && !n.EnableIPv6 {
		return nil, fault.Invalid.Errorf("IPv4 or IPv6 must be enabled")
	}
	return n, checkIPAM(n)
}

// families decides which IP versions the network has.
func families(n *Network, r apinetwork.CreateRequest) {
	n.EnableIPv4 = true
	if v, err := strconv.ParseBool(n.Options[OptEnableIPv4]); err == nil {
		n.EnableIPv4 = v
	}
	if v, err := strconv.ParseBool(n.Options[OptEnableIPv6]); err == nil {
		n.EnableIPv6 = v
	}
	if r.EnableIPv4 != nil {
		n.EnableIPv4 = *r.EnableIPv4
	}
	if r.EnableIPv6 != nil {
		n.EnableIPv6 = *r.EnableIPv6
	}
}

func (m *Manager) configFrom(n *Network, r apinetwork.CreateRequest) error {
	from, err := m.Get(r.ConfigFrom.Network)
	if err != nil {
		return err
	}
	if !from.ConfigOnly {
		return fault.Invalid.Errorf("network %q is not a configuration network", from.Name)
	}
	if len(r.Options) > 0 || r.IPAM != nil && len(r.IPAM.Config) > 0 {
		return fault.Forbidden.Errorf("user specified configurations are not supported if the network depends on a configuration network")
	}
	n.ConfigFrom = apinetwork.ConfigReference{Network: from.Name}
	n.IPAM, n.Options = from.IPAM, maps.Clone(from.Options)
	n.Internal = n.Internal || from.Internal
	return nil
}

// checkIPAM refuses pools that make no sense, with Docker's words where
// clients know them.
func checkIPAM(n *Network) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, c := range n.IPAM.Config {
		if !c.Subnet.IsValid() {
			if c.IPRange.IsValid() || c.Gateway.IsValid() || len(c.AuxAddress) > 0 {
				bad("invalid subnet : every gateway, ip-range and aux-address needs a subnet")
			}
			continue
		}
		if c.Subnet != c.Subnet.Masked() {
			bad("invalid subnet %s: it should be %s", c.Subnet, c.Subnet.Masked())
		}
		if c.Subnet.Addr().Is4In6() {
			bad("invalid subnet %s: it is an IPv4 subnet written as IPv6", c.Subnet)
		}
		if c.IPRange.IsValid() && (c.IPRange.Bits() < c.Subnet.Bits() || !c.Subnet.Contains(c.IPRange.Addr())) {
			bad("invalid ip-range %s: it is not within the subnet %s", c.IPRange, c.Subnet)
		}
		if c.Gateway.IsValid() && !c.Subnet.Contains(c.Gateway) && n.ownsSubnets() {
			bad("invalid gateway %s: parent subnet %s doesn't contain this address", c.Gateway, c.Subnet)
		}
		for name, a := range c.AuxAddress {
			if !c.Subnet.Contains(a) {
				bad("invalid auxiliary address %s (%s): parent subnet %s doesn't contain this address", a, name, c.Subnet)
			}
		}
	}
	if len(errs) > 0 {
		return fault.Invalid.Errorf("invalid network config:\n%w", errors.Join(errs...))
	}
	return nil
}

// fillIPAM completes the pools of a network, and takes them.
func (m *Manager) fillIPAM(n *Network) (err error) {
	var u undo.Stack
	defer u.Run(&err)
	configs := make([]apinetwork.IPAMConfig, 0, 2)
	var have4, have6 bool
	for _, c := range n.IPAM.Config {
		if !c.Subnet.IsValid() {
			continue
		}
		v6 := c.Subnet.Addr().Is6()
		if v6 && !n.EnableIPv6 || !v6 && !n.EnableIPv4 {
			continue
		}
		have4, have6 = have4 || !v6, have6 || v6
		configs = append(configs, c)
	}
	for _, v6 := range []bool{false, true} {
		if v6 && (!n.EnableIPv6 || have6) || !v6 && (!n.EnableIPv4 || have4) {
			continue
		}
		sub, err := m.nextSubnet(v6, "")
		if err != nil {
			return err
		}
		u.Add(func() error { m.space.Release(sub); return nil })
		configs = append(configs, apinetwork.IPAMConfig{Subnet: sub})
	}
	for i, c := range configs {
		// L2 networks of others have a gateway only when the user names one.
		if !c.Gateway.IsValid() && n.ownsSubnets() {
			configs[i].Gateway = defaultGateway(c)
		}
	}
	u.Run(&err) // claimSubnets takes all of them in one go
	n.IPAM.Config = configs
	if err := m.claimSubnets(n); err != nil {
		m.dropClaims(n)
		return err
	}
	return nil
}

// dropClaims reverses a claimSubnets that failed half-way, without giving back
// what another network holds.
func (m *Manager) dropClaims(n *Network) {
	m.mu.Lock()
	delete(m.subnets, n.ID)
	m.mu.Unlock()
	held := map[netip.Prefix]bool{}
	for _, other := range m.nets.All() {
		if other.ID == n.ID {
			continue
		}
		for _, c := range other.IPAM.Config {
			held[c.Subnet] = true
		}
	}
	for _, c := range n.IPAM.Config {
		if !held[c.Subnet] {
			m.space.Release(c.Subnet)
		}
	}
}

// defaultGateway is the first address that is not reserved otherwise.
func defaultGateway(c apinetwork.IPAMConfig) netip.Addr {
	s := ipam.NewSubnet(c.Subnet, c.IPRange, nil)
	for _, a := range c.AuxAddress {
		_ = s.Claim(a)
	}
	if a, err := s.Next(); err == nil {
		return a
	}
	return s.First()
}

func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return maps.Clone(m)
}
