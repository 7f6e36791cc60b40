package network

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"machine/agent/failpoint"
	"machine/agent/model"
	"machine/agent/network/link"
)

// Restore takes up what a former agent left: live maps the ids of containers
// that run to the keys of their sandboxes. Their endpoints are kept, ports are
// held and published again, resolvers re-opened; all other endpoints and
// namespaces of ours are released, and the kernel is swept of what belongs to
// nobody. Call it once, after Open. What fails is reported and the rest done.
func (m *Manager) Restore(ctx context.Context, live map[string]string) error {
	m.mu.Lock()
	all := make([]*sandbox, 0, len(m.sandboxes))
	for _, sb := range m.sandboxes {
		all = append(all, sb)
	}
	m.mu.Unlock()
	var errs []error
	var kept []*Endpoint
	used := map[string]bool{} // also by containers that joined another's network
	for container, key := range live {
		used[key], used["container:"+container] = true, true
	}
	for _, sb := range all {
		if !used[sb.key] {
			errs = append(errs, m.dropSandbox(ctx, sb))
			continue
		}
		eps, err := m.restoreSandbox(ctx, sb)
		kept = append(kept, eps...)
		errs = append(errs, err)
	}
	failpoint.Hit("restore.endpoints")
	known := map[string]bool{}
	for container, key := range live {
		known[filepath.Base(key)] = true
		if key != "" && key != "host" {
			m.sandbox(key, container)
		}
	}
	errs = append(errs, m.sweepNamespaces(known))
	failpoint.Hit("restore.namespaces")
	var nets []*Network
	for _, n := range m.nets.All() {
		nets = append(nets, n)
	}
	for _, d := range m.drivers {
		if h, ok := d.(Healer); ok {
			errs = append(errs, h.Sweep(ctx, nets, kept))
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) dropSandbox(ctx context.Context, sb *sandbox) error {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	errs := []error{m.stopResolver(sb)}
	for _, ep := range sb.eps {
		errs = append(errs, m.release(ctx, sb, ep, nil))
	}
	if filepath.Dir(sb.key) == m.netnsDir() {
		errs = append(errs, link.RemoveNS(sb.key))
	}
	m.forget(sb)
	return errors.Join(errs...)
}

// restoreSandbox holds and publishes the ports of a live container again.
func (m *Manager) restoreSandbox(ctx context.Context, sb *sandbox) ([]*Endpoint, error) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	var errs []error
	var kept []*Endpoint
	for _, ep := range sb.eps {
		if ep.HostIf != "" && !link.Exists(ep.HostIf) { // a detach was cut short
			errs = append(errs, m.release(ctx, sb, ep, nil))
			continue
		}
		kept = append(kept, ep)
		if len(ep.Ports) == 0 {
			continue
		}
		was := ep.Ports
		ep.Ports = nil
		if err := m.publish(ctx, ep, pinned(was)); err != nil {
			// The container runs on, unreachable at these ports: another
			// program took them while the agent was away.
			errs = append(errs, err)
		}
	}
	return kept, errors.Join(append(errs, m.restoreResolver(sb))...)
}

func (m *Manager) restoreResolver(sb *sandbox) error {
	sb.dnsConf, _ = m.dnsConfs.Get(sb.container)
	for _, ep := range sb.eps {
		n, ok := m.nets.Get(ep.NetworkID)
		if !ok || !n.UserDefined() || ep.Sandbox == "" {
			continue
		}
		ns, err := link.OpenNS(ep.Sandbox)
		if err != nil {
			return err
		}
		defer ns.Close()
		return m.startResolver(sb, ns)
	}
	return nil
}

// sweepNamespaces removes bound namespaces of containers that are no more.
func (m *Manager) sweepNamespaces(known map[string]bool) error {
	list, err := os.ReadDir(m.netnsDir())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range list {
		// Ours are 12 hexadecimal digits; others' names are left alone.
		if name := e.Name(); len(name) == 12 && !known[name] && model.IsHex(name) {
			errs = append(errs, link.RemoveNS(filepath.Join(m.netnsDir(), name)))
		}
	}
	return errors.Join(errs...)
}
