package container

import (
	"context"
	"path/filepath"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"
)

// Inspect describes a container. The network's legacy fields, which clients
// of API 1.51 and before read, are for the API to add.
func (m *Manager) Inspect(ctx context.Context, ref string, size bool) (*container.InspectResponse, error) {
	c, err := m.find(ref)
	if err != nil {
		return nil, err
	}
	r := c.rec.Load()
	args := r.Args
	if args == nil {
		args = []string{}
	}
	out := &container.InspectResponse{
		ID: r.ID, Created: r.Created.Format(time.RFC3339Nano), Path: r.Path, Args: args,
		State: inspectState(&r.State), Image: string(r.ImageID),
		ResolvConfPath: filepath.Join(m.dir(r.ID), "resolv.conf"), HostnamePath: filepath.Join(m.dir(r.ID), "hostname"),
		HostsPath: filepath.Join(m.dir(r.ID), "hosts"), LogPath: m.logPath(r), Name: "/" + r.Name,
		RestartCount: r.RestartCount, Driver: "overlay2", Platform: "linux",
		HostConfig: r.HostConfig, Mounts: mountPoints(r), Config: r.Config,
		NetworkSettings: networkSettings(r), ExecIDs: c.liveExecs(),
	}
	if r.HostConfig.LogConfig.Type != "json-file" {
		out.LogPath = ""
	}
	sec, err := parseSecurity(r.HostConfig, m.o.Defaults)
	if err == nil {
		out.AppArmorProfile = appArmor(r.HostConfig, sec, m.o.Defaults.AppArmor)
	}
	if out.AppArmorProfile == "" && (r.HostConfig.Privileged || m.o.Defaults.AppArmor.Kernel) {
		out.AppArmorProfile = "unconfined"
	}
	if gd, err := m.o.Layers.GraphDriver(r.ID); err == nil {
		out.GraphDriver = &storage.DriverData{Name: "overlay2", Data: gd}
	}
	if size {
		rw, root := m.sizes(ctx, r)
		out.SizeRw, out.SizeRootFs = &rw, &root
	}
	return out, nil
}

// liveExecs are the ids of execs that have not ended; nil when there is none.
func (c *Container) liveExecs() []string {
	c.m.mu.RLock()
	defer c.m.mu.RUnlock()
	var out []string
	for id := range c.execIDs {
		e := c.m.execs[id]
		if e == nil {
			continue
		}
		e.mu.Lock()
		if !e.done {
			out = append(out, id)
		}
		e.mu.Unlock()
	}
	return out
}

func inspectState(s *State) *container.State {
	at := func(t time.Time) string { return t.Format(time.RFC3339Nano) }
	return &container.State{
		Status: s.Status, Running: s.Running(), Paused: s.Status == container.StatePaused,
		Restarting: s.Status == container.StateRestarting, OOMKilled: s.OOMKilled, Dead: s.Status == container.StateDead,
		Pid: s.Pid, ExitCode: s.ExitCode, Error: s.Error, StartedAt: at(s.StartedAt), FinishedAt: at(s.FinishedAt),
		Health: s.Health,
	}
}

func networkSettings(r *Record) *container.NetworkSettings {
	ns := &container.NetworkSettings{SandboxKey: r.SandboxKey, Networks: r.Networks, Ports: r.Ports}
	if r.SandboxKey != "" {
		ns.SandboxID = r.ID
	}
	if ns.Ports == nil {
		ns.Ports = network.PortMap{}
	}
	if ns.Networks == nil {
		ns.Networks = map[string]*network.EndpointSettings{}
	}
	return ns
}

// Counts are the numbers of docker info.
func (m *Manager) Counts() (running, paused, stopped int) {
	for _, c := range m.all() {
		switch c.rec.Load().State.Status {
		case container.StateRunning, container.StateRestarting:
			running++
		case container.StatePaused:
			paused++
		default:
			stopped++
		}
	}
	return
}

// UsesOfImage lists the containers made from an image; those that run first.
func (m *Manager) UsesOfImage(id string) (running, stopped []string) {
	for _, c := range m.all() {
		r := c.rec.Load()
		if string(r.ImageID) != id {
			continue
		}
		if r.State.Running() {
			running = append(running, r.ID)
		} else {
			stopped = append(stopped, r.ID)
		}
	}
	return
}

// RefersToNetwork tells whether a container that does not run will want a
// network when it starts.
func (m *Manager) RefersToNetwork(id, name string) bool {
	for _, c := range m.all() {
		for n, e := range c.rec.Load().Networks {
			if n == name || e.NetworkID == id {
				return true
			}
		}
	}
	return false
}
