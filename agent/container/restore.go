package container

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"machine/agent/failpoint"
	"machine/agent/fault"
	"machine/agent/model"
)

// Survivors asks the shim of each container that ran when the agent ended
// whether it still does, and returns the sandboxes of those that live. It
// must come before networks restore, and Restore after.
func (m *Manager) Survivors(ctx context.Context) map[string]string {
	live := map[string]string{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	failpoint.Hit("restore.records")
	for _, c := range m.all() {
		if marked, _ := c.removal(); marked {
			c.note(func(r *Record) { r.State.Status = container.StateRemoving })
		}
		r := c.rec.Load()
		if r.State.Status != container.StateRunning && r.State.Status != container.StatePaused {
			m.dropTask(ctx, c.id) // a start that the end of the agent cut short
			continue
		}
		wg.Go(func() {
			task, err := m.o.Tasks.Load(ctx, c.id, m.taskDir(c.id))
			if err != nil {
				if !fault.Is(err, fault.NotFound) {
					m.o.Log.Error("container's shim does not answer", "container", c.id, "error", err)
				}
				return
			}
			if task.Created() { // booked as running, but not let go yet
				if err := task.Start(ctx); err != nil {
					m.o.Log.Error("start", "container", c.id, "error", err)
				}
			}
			c.mu.Lock()
			c.task = task
			c.mu.Unlock()
			select {
			case <-task.Done():
			default:
				mu.Lock()
				live[c.id] = r.SandboxKey
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	failpoint.Hit("restore.asked")
	return live
}

// dropTask ends and removes a task that no run is booked for.
func (m *Manager) dropTask(ctx context.Context, id string) {
	dir := m.taskDir(id)
	if _, err := os.Lstat(dir); err != nil {
		return
	}
	if t, err := m.o.Tasks.Load(ctx, id, dir); err == nil {
		if err := t.Delete(ctx); err != nil {
			m.o.Log.Error("end a task that nobody started", "container", id, "error", err)
		}
	}
	os.RemoveAll(dir)
}

// Restore books what happened while the agent was away, cleans up after the
// dead, and starts what its policy wants started. Endpoints are those that
// networks restored, by container and network name.
func (m *Manager) Restore(ctx context.Context, endpoints func(id string) map[string]*model.Endpoint) {
	var restart []*Container
	for _, c := range m.all() { // before anything can remove a volume
		if r := c.rec.Load(); r.State.Status != container.StateRemoving {
			m.claimVolumes(r)
		}
	}
	failpoint.Hit("restore.volumes")
	for _, c := range m.all() {
		r := c.rec.Load()
		c.mu.Lock()
		task := c.task
		c.mu.Unlock()
		switch {
		case r.State.Status == container.StateRemoving:
			m.finishRemoval(ctx, c)
		case task != nil:
			c.adopt(task, endpoints(c.id))
			failpoint.Hit("restore.adopted")
		case r.State.Running():
			c.bury(ctx)
			fallthrough
		default:
			if c.wantsStart() {
				restart = append(restart, c)
			} else if r.HostConfig.AutoRemove && r.State.HasBeenStarted {
				m.finishRemoval(ctx, c)
			}
		}
	}
	failpoint.Hit("restore.booked")
	m.sweep(ctx)
	failpoint.Hit("restore.swept")
	m.startAll(ctx, restart)
}

// claimVolumes counts a container that was there before the agent as a user of
// its volumes.
func (m *Manager) claimVolumes(r *Record) {
	for _, mt := range r.Mounts {
		if mt.Type != mount.TypeVolume {
			continue
		}
		if err := m.o.Volumes.Claim(mt.Name, r.ID); err != nil {
			m.o.Log.Error("container's volume", "container", r.ID, "volume", mt.Name, "error", err)
		}
	}
}

// adopt takes a running or ended task over from the agent before.
func (c *Container) adopt(task model.Task, eps map[string]*model.Endpoint) {
	rn := newRun()
	c.mu.Lock()
	c.endpoints, c.run = eps, rn
	c.mu.Unlock()
	c.note(func(r *Record) { r.State.Pid = task.Pid() })
	c.watch(task, rn)
}

// bury books a container whose shim is gone: the host was rebooted, or the
// shim was killed.
func (c *Container) bury(ctx context.Context) {
	r := c.rec.Load()
	if r.SandboxKey != "" && !r.HostConfig.NetworkMode.IsContainer() {
		if err := c.m.o.Networks.RemoveSandbox(ctx, r.SandboxKey); err != nil {
			c.m.o.Log.Error("remove network namespace", "container", c.id, "error", err)
		}
	}
	err := c.set(func(r *Record) {
		r.State.Status, r.State.Pid, r.State.ExitCode = container.StateExited, 0, 255
		r.State.FinishedAt = c.m.o.Clock.Now().UTC()
		r.Networks, r.Ports, r.SandboxKey = clearEndpoints(r.Networks, nil), nil, ""
	})
	if err != nil {
		c.m.o.Log.Error("save container", "container", c.id, "error", err)
	}
}

// wantsStart applies the policy at the agent's start, as dockerd does at the
// host's boot.
func (c *Container) wantsStart() bool {
	r := c.rec.Load()
	if !r.State.HasBeenStarted {
		return false
	}
	switch r.HostConfig.RestartPolicy.Name {
	case "always":
		return true
	case "unless-stopped":
		return !r.State.ManuallyStopped
	case "on-failure":
		p := r.HostConfig.RestartPolicy
		return !r.State.ManuallyStopped && r.State.ExitCode != 0 && (p.MaximumRetryCount == 0 || r.RestartCount < p.MaximumRetryCount)
	}
	return false
}

// startAll starts containers, those that others depend on first.
func (m *Manager) startAll(ctx context.Context, list []*Container) {
	rank := func(c *Container) int {
		hc := c.rec.Load().HostConfig
		if hc.NetworkMode.IsContainer() || hc.PidMode.IsContainer() || hc.IpcMode.IsContainer() || len(hc.Links) > 0 {
			return 1
		}
		return 0
	}
	slices.SortFunc(list, func(a, b *Container) int {
		if d := rank(a) - rank(b); d != 0 {
			return d
		}
		return a.rec.Load().Created.Compare(b.rec.Load().Created)
	})
	for _, c := range list {
		m.bg.Go(func() {
			for rank(c) == 1 && !m.depsUp(c) {
				select {
				case <-m.ctx.Done():
					return
				case <-time.After(50 * time.Millisecond):
				}
			}
			if err := c.lock(m.ctx); err != nil {
				return
			}
			defer c.unlock()
			if c.rec.Load().State.Status == container.StateRunning {
				return
			}
			if err := c.start(context.WithoutCancel(ctx)); err != nil {
				m.o.Log.Error("start at boot", "container", c.id, "error", err)
			}
		})
	}
}

// depsUp tells whether the containers that c joins run, or never will.
func (m *Manager) depsUp(c *Container) bool {
	hc := c.rec.Load().HostConfig
	var refs []string
	for _, mode := range []string{string(hc.NetworkMode), string(hc.PidMode), string(hc.IpcMode)} {
		if id, ok := strings.CutPrefix(mode, "container:"); ok {
			refs = append(refs, id)
		}
	}
	for _, l := range hc.Links {
		n, _ := splitLink(l)
		refs = append(refs, n)
	}
	for _, ref := range refs {
		o, err := m.find(ref)
		if err != nil {
			continue
		}
		if o.rec.Load().State.Status != container.StateRunning && o.wantsStart() && o.rec.Load().State.Error == "" {
			return false
		}
	}
	return true
}

// sweep ends and removes what no record owns: what a crash left in the middle
// of create or remove, and the processes of a container whose record was set
// aside. The files of such a one are kept, for somebody to look at.
func (m *Manager) sweep(ctx context.Context) {
	for _, id := range unowned(filepath.Join(m.o.ExecRoot, "tasks"), m) {
		m.o.Log.Warn("what is left of an unknown container is ended", "container", id)
		m.dropTask(ctx, id)
	}
	for _, mark := range []string{markRemoving, markVolumes} {
		done, _ := filepath.Glob(m.dir("*") + mark)
		for _, f := range done {
			if !m.Known(strings.TrimSuffix(filepath.Base(f), mark)) {
				os.Remove(f)
			}
		}
	}
	for _, id := range unowned(filepath.Join(m.o.Root, "containers"), m) {
		if m.recs.Broken(id) {
			continue
		}
		if err := os.RemoveAll(m.dir(id)); err != nil {
			m.o.Log.Error("sweep", "container", id, "error", err)
		}
	}
}

// unowned lists the ids of a folder that are no container's.
func unowned(dir string, m *Manager) (ids []string) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, e := range list {
		if len(e.Name()) == 64 && !m.Known(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids
}

// Keep tells whether what belongs to an id must be left alone: a container's,
// or that of one whose record was set aside.
func (m *Manager) Keep(id string) bool { return m.Known(id) || m.recs.Broken(id) }

// Known tells whether an id is a container's, for sweeps of others.
func (m *Manager) Known(id string) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.byID[id] != nil
}
