package container

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/undo"
)

// Connect attaches a container to a further network; a stopped one when it
// starts.
func (m *Manager) Connect(ctx context.Context, ref, networkName string, cfg *network.EndpointSettings) error {
	c, err := m.hold(ctx, ref)
	if err != nil {
		return err
	}
	defer c.unlock()
	r := c.rec.Load()
	if mode := r.HostConfig.NetworkMode; mode.IsHost() || mode.IsContainer() {
		return fault.Invalid.Errorf("container sharing network namespace with another container or host cannot be connected to any other network")
	}
	if networkName == "host" || networkName == "none" {
		return fault.Forbidden.Errorf("container cannot be connected to %s network", networkName)
	}
	if _, dup := r.Networks[networkName]; dup {
		return fault.Forbidden.Errorf("endpoint with name %s already exists in network %s", r.Name, networkName)
	}
	if cfg == nil {
		cfg = &network.EndpointSettings{}
	}
	n := r.clone()
	n.Networks = map[string]*network.EndpointSettings{networkName: cfg}
	for k, v := range r.Networks {
		if k != "none" {
			n.Networks[k] = v
		}
	}
	if _, err := c.running(); err != nil {
		return c.set(func(r *Record) { r.Networks = n.Networks })
	}
	ep, err := c.attachOne(ctx, n, networkName, r.SandboxKey, nil)
	if err != nil {
		return err
	}
	return c.bookEndpoints(ctx, n, networkName, ep)
}

// bookEndpoints stores a changed set of endpoints of a running container; a
// nil endpoint is one that went.
func (c *Container) bookEndpoints(ctx context.Context, n *Record, name string, ep *model.Endpoint) error {
	c.mu.Lock()
	eps := map[string]*model.Endpoint{}
	for k, v := range c.endpoints {
		if k != name {
			eps[k] = v
		}
	}
	if ep != nil {
		eps[name] = ep
	}
	c.endpoints = eps
	nets, ports := operational(n, eps)
	err := c.setLocked(func(r *Record) { r.Networks, r.Ports = nets, ports })
	c.mu.Unlock()
	if err != nil {
		return err
	}
	return c.m.writeNetFiles(ctx, c.rec.Load(), eps)
}

// Disconnect takes a container off a network. With force an unknown
// container is no error for the caller to mind.
func (m *Manager) Disconnect(ctx context.Context, ref, networkName, networkID string, force bool) error {
	c, err := m.find(ref)
	if err != nil {
		if force {
			return m.o.Networks.Detach(ctx, ref, networkID)
		}
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	r := c.rec.Load()
	if mode := r.HostConfig.NetworkMode; mode.IsHost() || mode.IsContainer() {
		return fault.Invalid.Errorf("container sharing network namespace with another container or host cannot be disconnected from any network")
	}
	if _, ok := r.Networks[networkName]; !ok {
		return fault.Forbidden.Errorf("container %s is not connected to network %s", r.ID, networkName)
	}
	n := r.clone()
	n.Networks = map[string]*network.EndpointSettings{}
	for k, v := range r.Networks {
		if k != networkName {
			n.Networks[k] = v
		}
	}
	if _, err := c.running(); err != nil {
		return c.set(func(r *Record) { r.Networks = n.Networks })
	}
	if err := m.o.Networks.Detach(ctx, c.id, networkID); err != nil {
		return err
	}
	return c.bookEndpoints(ctx, n, networkName, nil)
}

// attachAll connects the sandbox to the container's networks, by name, the
// one of the network mode first: it becomes eth0.
func (c *Container) attachAll(ctx context.Context, r *Record, key string, u *undo.Stack) (map[string]*model.Endpoint, error) {
	eps := map[string]*model.Endpoint{}
	mode := r.HostConfig.NetworkMode
	if mode.IsContainer() || mode.IsHost() || mode.IsNone() {
		return eps, nil
	}
	names := slices.SortedFunc(maps.Keys(r.Networks), func(a, b string) int {
		if d := r.Networks[b].GwPriority - r.Networks[a].GwPriority; d != 0 {
			return d
		}
		if (a == string(mode)) != (b == string(mode)) {
			if a == string(mode) {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	published := false
	for _, name := range names {
		var ports []model.PortRequest
		if !published {
			ports = portRequests(r)
		}
		ep, err := c.attachOne(ctx, r, name, key, ports)
		if err != nil {
			return nil, err
		}
		published = published || len(ep.Ports) > 0
		eps[name] = ep
		clean := context.WithoutCancel(ctx)
		u.Add(func() error { return c.m.o.Networks.Detach(clean, c.id, ep.NetworkID) })
	}
	return eps, nil
}

func (c *Container) attachOne(ctx context.Context, r *Record, name, key string, ports []model.PortRequest) (*model.Endpoint, error) {
	cfg := r.Networks[name].Copy()
	if cfg == nil {
		cfg = &network.EndpointSettings{}
	}
	if name == "bridge" {
		cfg.Links = nil // links of the default bridge are hosts lines
	} else if len(cfg.Links) == 0 {
		cfg.Links = r.HostConfig.Links
	}
	return c.m.o.Networks.Attach(ctx, model.AttachConfig{
		ContainerID: c.id, ContainerName: r.Name, Hostname: r.Config.Hostname, NetworkRef: name,
		SandboxKey: key, Config: cfg, Ports: ports,
	})
}

// portRequests are --publish and --publish-all.
func portRequests(r *Record) []model.PortRequest {
	var out []model.PortRequest
	for port, bs := range r.HostConfig.PortBindings {
		for _, b := range bs {
			out = append(out, model.PortRequest{Port: port, HostIP: b.HostIP, HostPort: b.HostPort})
		}
	}
	if r.HostConfig.PublishAllPorts {
		for port := range r.Config.ExposedPorts {
			if len(r.HostConfig.PortBindings[port]) == 0 {
				out = append(out, model.PortRequest{Port: port})
			}
		}
	}
	slices.SortFunc(out, func(a, b model.PortRequest) int {
		return strings.Compare(a.Port.String()+a.HostPort+a.HostIP.String(), b.Port.String()+b.HostPort+b.HostIP.String())
	})
	return out
}

// operational merges what is into what was asked for.
func operational(r *Record, eps map[string]*model.Endpoint) (map[string]*network.EndpointSettings, network.PortMap) {
	nets := map[string]*network.EndpointSettings{}
	ports := network.PortMap{}
	for port := range r.Config.ExposedPorts {
		ports[port] = nil
	}
	for name, cfg := range r.Networks {
		n := cfg.Copy()
		if n == nil {
			n = &network.EndpointSettings{}
		}
		if ep := eps[name]; ep != nil {
			fillEndpoint(n, ep)
			for _, p := range ep.Ports {
				b := network.PortBinding{HostIP: p.HostIP, HostPort: fmt.Sprint(p.HostPort)}
				// Ports follow the way out: an endpoint that was attached
				// earlier may still say that it had them.
				if p.HostIP.IsValid() && !slices.Contains(ports[p.Port], b) {
					ports[p.Port] = append(ports[p.Port], b)
				}
			}
		}
		nets[name] = n
	}
	return nets, ports
}

func fillEndpoint(n *network.EndpointSettings, ep *model.Endpoint) {
	n.NetworkID, n.EndpointID = ep.NetworkID, ep.ID
	n.MacAddress = network.HardwareAddr(ep.MAC)
	n.Gateway, n.IPv6Gateway = ep.Gateway, ep.Gateway6
	n.DNSNames = ep.DNSNames
	if ep.IPv4.IsValid() {
		n.IPAddress, n.IPPrefixLen = ep.IPv4.Addr(), ep.IPv4.Bits()
	}
	if ep.IPv6.IsValid() {
		n.GlobalIPv6Address, n.GlobalIPv6PrefixLen = ep.IPv6.Addr(), ep.IPv6.Bits()
	}
}

// clearEndpoints forgets what was true only while running.
func clearEndpoints(in map[string]*network.EndpointSettings, macs map[string]bool) map[string]*network.EndpointSettings {
	out := map[string]*network.EndpointSettings{}
	for name, e := range in {
		n := &network.EndpointSettings{IPAMConfig: e.IPAMConfig, Links: e.Links, Aliases: e.Aliases, DriverOpts: e.DriverOpts, GwPriority: e.GwPriority, NetworkID: e.NetworkID, DNSNames: e.DNSNames}
		if macs[name] {
			n.MacAddress = e.MacAddress
		}
		out[name] = n
	}
	return out
}

// leaveNetworks gives addresses and ports back: whoever hears of the end may
// want them at once.
func (c *Container) leaveNetworks(ctx context.Context, r *Record) {
	log := c.m.o.Log.With("container", c.id)
	c.mu.Lock()
	eps := c.endpoints
	c.mu.Unlock()
	if r.SandboxKey != "" && !r.HostConfig.NetworkMode.IsContainer() {
		eps = nil // they go with the sandbox, which is much cheaper
	}
	for _, ep := range eps {
		if err := c.m.o.Networks.Detach(ctx, c.id, ep.NetworkID); err != nil {
			log.Error("detach network", "network", ep.NetworkName, "error", err)
		}
	}
	if r.SandboxKey != "" && !r.HostConfig.NetworkMode.IsContainer() {
		if err := c.m.o.Networks.RemoveSandbox(ctx, r.SandboxKey); err != nil {
			log.Error("remove network namespace", "error", err)
		}
	}
}
