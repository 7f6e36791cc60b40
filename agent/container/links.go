package container

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"

	"machine/agent/fault"
)

// splitLink reads "name:alias", "name" or Docker's stored "/name:/me/alias".
func splitLink(l string) (name, alias string) {
	name, alias, ok := strings.Cut(l, ":")
	if !ok {
		alias = name
	}
	if i := strings.LastIndexByte(alias, '/'); i >= 0 {
		alias = alias[i+1:]
	}
	return strings.TrimPrefix(name, "/"), alias
}

// checkLinks refuses links to containers that are not there.
func (m *Manager) checkLinks(hc *container.HostConfig) error {
	for _, l := range hc.Links {
		name, _ := splitLink(l)
		if _, err := m.find(name); err != nil {
			return fault.Invalid.Errorf("could not get container for %s: %w", name, err)
		}
	}
	return nil
}

// linkEnv is what --link on the default bridge tells a container of another:
// its addresses and ports by alias (Docker's legacy links).
func (m *Manager) linkEnv(r *Record) ([]string, error) {
	if r.HostConfig.NetworkMode != "bridge" {
		return nil, nil
	}
	var env []string
	for _, l := range r.HostConfig.Links {
		name, alias := splitLink(l)
		c, err := m.find(name)
		if err != nil {
			return nil, err
		}
		o := c.rec.Load()
		c.mu.Lock()
		ep := c.endpoints["bridge"]
		c.mu.Unlock()
		if ep == nil {
			return nil, fault.Conflict.Errorf("Cannot link to a non running container: /%s AS /%s/%s", o.Name, r.Name, alias)
		}
		env = append(env, linkVars(o, r.Name, alias, ep.IPv4.Addr().String())...)
	}
	return env, nil
}

// linkVars are the variables of one link.
func linkVars(o *Record, me, alias, ip string) []string {
	up := strings.ToUpper(strings.ReplaceAll(alias, "-", "_"))
	env := []string{fmt.Sprintf("%s_NAME=/%s/%s", up, me, alias)}
	type port struct {
		num   uint16
		proto string
	}
	var ports []port
	for p := range o.Config.ExposedPorts {
		ports = append(ports, port{p.Num(), string(p.Proto())})
	}
	slices.SortFunc(ports, func(a, b port) int { // tcp first, then by number
		if a.proto != b.proto {
			return strings.Compare(a.proto, b.proto)
		}
		return int(a.num) - int(b.num)
	})
	for i, p := range ports {
		url := fmt.Sprintf("%s://%s:%d", p.proto, ip, p.num)
		if i == 0 {
			env = append(env, up+"_PORT="+url)
		}
		pre := fmt.Sprintf("%s_PORT_%d_%s", up, p.num, strings.ToUpper(p.proto))
		env = append(env, pre+"="+url, pre+"_ADDR="+ip, fmt.Sprintf("%s_PORT=%d", pre, p.num), pre+"_PROTO="+p.proto)
	}
	for _, e := range o.Config.Env {
		if k, v, _ := strings.Cut(e, "="); k != "HOME" && k != "PATH" {
			env = append(env, fmt.Sprintf("%s_ENV_%s=%s", up, k, v))
		}
	}
	return env
}
