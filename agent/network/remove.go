package network

import (
	"context"
	"fmt"
	"strings"
	"time"

	apinetwork "github.com/moby/moby/api/types/network"

	"machine/agent/fault"
	"machine/agent/model"
)

// Remove deletes a network. One with endpoints and the predefined ones are
// fault.Forbidden, with Docker's words.
func (m *Manager) Remove(ctx context.Context, ref string) error {
	n, err := m.Get(ref)
	if err != nil {
		return err
	}
	if n.Predefined {
		return fault.Forbidden.Errorf("%s is a pre-defined network and cannot be removed", n.Name)
	}
	if n.ConfigOnly {
		for _, o := range m.nets.All() {
			if o.ConfigFrom.Network == n.Name {
				return fault.Forbidden.Errorf("configuration network %q is in use", n.Name)
			}
		}
	}
	if err := m.reserve(n.ID); err != nil { // two removals at once
		return err
	}
	defer m.unreserve(n.ID)
	var active []string
	for _, ep := range m.endpoints(n.ID) {
		active = append(active, fmt.Sprintf("name:%q id:%q", ep.ContainerName, ep.ID[:12]))
	}
	if len(active) > 0 {
		return fault.Forbidden.Errorf("error while removing network: network %s has active endpoints (%s)", n.Name, strings.Join(active, ", "))
	}
	if d := m.drivers[n.Driver]; d != nil && !n.ConfigOnly {
		if err := d.DeleteNetwork(ctx, n); err != nil {
			return fmt.Errorf("remove network %s: %w", n.Name, err)
		}
	}
	if err := m.nets.Delete(n.ID); err != nil {
		return err
	}
	m.releaseSubnets(n)
	m.o.Publish("destroy", n.ID, n.Name, n.Driver, "")
	return nil
}

// Prune removes the networks of the user's that no container is attached to.
// Filters: until (duration or time), label, label!. used tells of networks
// that containers which do not run refer to; nil means none.
func (m *Manager) Prune(ctx context.Context, f model.Filters, used func(id, name string) bool) (apinetwork.PruneReport, error) {
	report := apinetwork.PruneReport{NetworksDeleted: []string{}}
	if err := f.Check("until", "label", "label!"); err != nil {
		return report, err
	}
	until, err := f.Until(time.Now())
	if err != nil {
		return report, err
	}
	for _, n := range m.List() {
		rec, ok := m.nets.Get(n.ID)
		if !ok || rec.Predefined || len(m.endpoints(n.ID)) > 0 || used != nil && used(n.ID, n.Name) {
			continue
		}
		if !until.IsZero() && !n.Created.Before(until) || !f.Labels(n.Labels) {
			continue
		}
		err := m.Remove(ctx, n.ID)
		switch {
		case ctx.Err() != nil:
			return report, ctx.Err()
		case err != nil:
			m.log.Warn("prune: network not removed", "network", n.Name, "err", err)
		default:
			report.NetworksDeleted = append(report.NetworksDeleted, n.Name)
		}
	}
	return report, nil
}
