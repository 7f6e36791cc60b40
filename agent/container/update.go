package container

import (
	"context"
	"fmt"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"machine/agent/fault"
)

// Rename gives a container another name.
func (m *Manager) Rename(ctx context.Context, ref, name string) error {
	c, err := m.find(ref)
	if err != nil {
		return err
	}
	if name == "" || name == "/" {
		return fault.Invalid.Errorf("neither old nor new names may be empty")
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	old := c.rec.Load().Name
	if "/"+old == name || old == name {
		return fault.Invalid.Errorf("renaming a container with the same name as its current name")
	}
	claimed, err := m.claimName(name, c.id)
	if err != nil {
		return err
	}
	if err := c.set(func(r *Record) { r.Name = claimed }); err != nil {
		m.releaseName(claimed, c.id)
		return err
	}
	m.releaseName(old, c.id)
	m.o.Networks.Rename(c.id, claimed)
	c.event(events.ActionRename, "oldName", "/"+old)
	return nil
}

// Update changes limits and the restart policy, of a running container too.
func (m *Manager) Update(ctx context.Context, ref string, res container.Resources, policy container.RestartPolicy) ([]string, error) {
	c, err := m.hold(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer c.unlock()
	r := c.rec.Load()
	hc := *r.HostConfig
	mergeResources(&hc.Resources, &res)
	if policy.Name != "" {
		if hc.AutoRemove && policy.Name != "no" {
			return nil, fault.Invalid.Errorf("restart policy cannot be updated because AutoRemove is enabled for the container")
		}
		hc.RestartPolicy = policy
	}
	if err := checkPolicy(&hc); err != nil {
		return nil, err
	}
	if err := checkResources(&hc.Resources); err != nil {
		return nil, err
	}
	if task, err := c.running(); err == nil {
		if err := task.Update(linuxResources(&hc.Resources)); err != nil {
			return nil, fmt.Errorf("Cannot update container %s: %w", r.ID, err)
		}
	}
	if err := c.set(func(r *Record) { r.HostConfig = &hc }); err != nil {
		return nil, err
	}
	c.event(events.ActionUpdate)
	return []string{}, nil
}

// mergeResources takes over what an update sets.
func mergeResources(to, from *container.Resources) {
	for _, p := range []struct{ to, from *int64 }{
		{&to.CPUShares, &from.CPUShares}, {&to.CPUPeriod, &from.CPUPeriod}, {&to.CPUQuota, &from.CPUQuota},
		{&to.MemoryReservation, &from.MemoryReservation}, {&to.Memory, &from.Memory}, {&to.MemorySwap, &from.MemorySwap},
	} {
		if *p.from != 0 {
			*p.to = *p.from
		}
	}
	if from.NanoCPUs != 0 {
		to.NanoCPUs, to.CPUPeriod, to.CPUQuota = from.NanoCPUs, 0, 0
	} else if from.CPUQuota != 0 || from.CPUPeriod != 0 {
		to.NanoCPUs = 0
	}
	if from.Memory != 0 && from.MemorySwap == 0 && to.MemorySwap > 0 && to.MemorySwap < from.Memory {
		to.MemorySwap = 2 * from.Memory
	}
	if from.BlkioWeight != 0 {
		to.BlkioWeight = from.BlkioWeight
	}
	if from.CpusetCpus != "" {
		to.CpusetCpus = from.CpusetCpus
	}
	if from.CpusetMems != "" {
		to.CpusetMems = from.CpusetMems
	}
	if from.PidsLimit != nil {
		to.PidsLimit = from.PidsLimit
	}
}
