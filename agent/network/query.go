package network

import (
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	apinetwork "github.com/moby/moby/api/types/network"

	"machine/agent/fault"
	"machine/agent/model"
)

// byName takes no lock of the manager.
func (m *Manager) byName(name string) *Network {
	for _, n := range m.nets.All() {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// Get finds a network by id, name or unique id prefix, in this order. The
// record is shared: do not change it. fault.NotFound when there is none,
// fault.Invalid when a prefix fits several.
func (m *Manager) Get(ref string) (*Network, error) {
	if n, ok := m.nets.Get(ref); ok {
		return n, nil
	}
	if ref == "default" {
		ref = "bridge"
	}
	if n := m.byName(ref); n != nil {
		return n, nil
	}
	var found []*Network
	if ref != "" {
		for id, n := range m.nets.All() {
			if strings.HasPrefix(id, ref) {
				found = append(found, n)
			}
		}
	}
	switch len(found) {
	case 0:
		return nil, fault.NotFound.Errorf("network %s not found", ref)
	case 1:
		return found[0], nil
	}
	return nil, fault.Invalid.Errorf("network %s is ambiguous (%d matches found on ID prefix)", ref, len(found))
}

// Resolve is Get for who needs only the nouns.
func (m *Manager) Resolve(ref string) (id, name, driver string, err error) {
	n, err := m.Get(ref)
	if err != nil {
		return "", "", "", err
	}
	return n.ID, n.Name, n.Driver, nil
}

// List returns all networks, oldest first, without their containers.
func (m *Manager) List() []apinetwork.Inspect {
	var out []apinetwork.Inspect
	for _, n := range m.nets.All() {
		out = append(out, apinetwork.Inspect{Network: n.Network, Containers: map[string]apinetwork.EndpointResource{}})
	}
	slices.SortFunc(out, func(a, b apinetwork.Inspect) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out
}

// Inspect returns one network with the containers that are attached to it.
func (m *Manager) Inspect(ref string) (apinetwork.Inspect, error) {
	n, err := m.Get(ref)
	if err != nil {
		return apinetwork.Inspect{}, err
	}
	out := apinetwork.Inspect{Network: n.Network, Containers: map[string]apinetwork.EndpointResource{}}
	for _, ep := range m.endpoints(n.ID) {
		out.Containers[ep.ContainerID] = apinetwork.EndpointResource{
			Name: ep.ContainerName, EndpointID: ep.ID, MacAddress: apinetwork.HardwareAddr(ep.MAC),
			IPv4Address: ep.IPv4, IPv6Address: ep.IPv6,
		}
	}
	return out, nil
}

// endpoints lists the network's endpoints; the copies are the caller's.
func (m *Manager) endpoints(netID string) []model.Endpoint {
	var out []model.Endpoint
	m.eachEndpoint(func(ep *Endpoint) {
		if ep.NetworkID == netID {
			out = append(out, ep.Endpoint)
		}
	})
	return out
}

// eachEndpoint calls f with every endpoint, its sandbox's lock held.
func (m *Manager) eachEndpoint(f func(ep *Endpoint)) {
	for _, sb := range m.allSandboxes() {
		sb.mu.Lock()
		for _, ep := range sb.eps {
			f(ep)
		}
		sb.mu.Unlock()
	}
}

func (m *Manager) allSandboxes() []*sandbox {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.sandboxes))
}

// Endpoints returns copies of a container's endpoints, by network name.
func (m *Manager) Endpoints(containerID string) map[string]*model.Endpoint {
	out := map[string]*model.Endpoint{}
	if sb := m.sandboxOf(containerID); sb != nil {
		sb.mu.Lock()
		defer sb.mu.Unlock()
		for _, ep := range sb.eps {
			c := ep.Endpoint
			out[ep.NetworkName] = &c
		}
	}
	return out
}

func (m *Manager) sandboxOf(containerID string) *sandbox {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sandboxes[m.keys[containerID]]
}

// HostGateway is the address that "host-gateway" stands for: the default
// bridge's. Empty without one.
func (m *Manager) HostGateway() string {
	if n := m.byName("bridge"); n != nil && len(n.IPAM.Config) > 0 && n.IPAM.Config[0].Gateway.IsValid() {
		return n.IPAM.Config[0].Gateway.String()
	}
	return ""
}

// ListFiltered is List for the API: filters driver, id, label, name, scope,
// type (builtin, custom) and dangling.
func (m *Manager) ListFiltered(f model.Filters) ([]apinetwork.Inspect, error) {
	if err := f.Check("driver", "id", "label", "name", "scope", "type", "dangling"); err != nil {
		return nil, err
	}
	for _, v := range f["type"] {
		if v != "builtin" && v != "custom" {
			return nil, fault.Invalid.Errorf("invalid filter: 'type'='%s'", v)
		}
	}
	out := []apinetwork.Inspect{}
	for _, n := range m.List() {
		if m.matches(n, f) {
			out = append(out, n)
		}
	}
	return out, nil
}

func (m *Manager) matches(n apinetwork.Inspect, f model.Filters) bool {
	rec, ok := m.nets.Get(n.ID)
	if !ok {
		return false
	}
	kind := "custom"
	if rec.Predefined {
		kind = "builtin"
	}
	return f.Any("driver", func(v string) bool { return v == n.Driver }) &&
		f.Any("scope", func(v string) bool { return v == n.Scope }) &&
		f.Any("type", func(v string) bool { return v == kind }) &&
		f.Any("id", func(v string) bool { return strings.HasPrefix(n.ID, v) }) &&
		f.Any("name", func(v string) bool {
			re, err := regexp.Compile(v)
			return n.Name == v || err == nil && re.MatchString(n.Name)
		}) &&
		f.Any("dangling", func(v string) bool {
			return model.Truth(v) == (!rec.Predefined && len(m.endpoints(n.ID)) == 0)
		}) && f.Labels(n.Labels)
}

// netnsDir is where namespaces are bound.
func (m *Manager) netnsDir() string { return filepath.Join(m.o.ExecRoot, "netns") }
