package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"

	"machine/agent/failpoint"
	"machine/agent/fault"
	"machine/agent/model"
)

// RemoveOptions are those of rm.
type RemoveOptions struct {
	Volumes bool // anonymous volumes too
	Force   bool // kill it first
	Link    bool // only the link: not supported
	auto    bool // by --rm: the run has ended already
}

// Remove deletes a container. A running one without Force is a Conflict.
func (m *Manager) Remove(ctx context.Context, ref string, o RemoveOptions) error {
	c, err := m.find(ref)
	if err != nil {
		return err
	}
	if o.Link {
		return fault.Invalid.Errorf("links are removed with their containers")
	}
	if o.Force {
		c.setStopping(true)
		c.cancelRestart()
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	c.mu.Lock()
	gone := c.removed
	c.mu.Unlock()
	if gone {
		if o.auto {
			return nil
		}
		return fault.NotFound.Errorf("No such container: %s", ref)
	}
	r := c.rec.Load()
	if r.State.Running() {
		if !o.Force {
			c.setStopping(false)
			state := string(r.State.Status)
			return fault.Conflict.Errorf("cannot remove container %q: container is %s: stop the container before removing or force remove", r.Name, state)
		}
		c.cancelRestart()
		if err := c.killForRemoval(ctx, r); err != nil {
			return err
		}
	}
	failpoint.Hit("rm.ready")
	return m.remove(ctx, c, o)
}

// killForRemoval ends the run at once.
func (c *Container) killForRemoval(ctx context.Context, r *Record) error {
	task, err := c.running()
	if err != nil {
		c.goneSoon(ctx)
		return nil
	}
	if r.State.Status == container.StatePaused {
		defer task.Resume()
	}
	if err := c.signal(task, syscall.SIGKILL); err != nil && !ending(err) {
		return err
	}
	if r.State.Status == container.StatePaused {
		task.Resume()
	}
	if !c.endsWithin(ctx, task, killGrace) {
		return fault.Internal.Errorf("could not kill container %s: its processes do not end", r.ID)
	}
	c.goneSoon(ctx)
	return nil
}

// remove deletes what a stopped container owns, its record last: an agent that
// dies in between finds the mark of the removal, and goes on.
func (m *Manager) remove(ctx context.Context, c *Container, o RemoveOptions) error {
	ctx = context.WithoutCancel(ctx)
	r := c.rec.Load()
	c.note(func(r *Record) { r.State.Status = container.StateRemoving })
	err := c.markRemoval(o.Volumes)
	failpoint.Hit("rm.marked")
	if err == nil {
		err = m.o.Layers.Remove(ctx, c.id)
	}
	failpoint.Hit("rm.layer")
	if err == nil {
		err = os.RemoveAll(m.dir(c.id))
		failpoint.Hit("rm.files")
	}
	if err == nil {
		m.releaseVolumes(ctx, r, o.Volumes)
		failpoint.Hit("rm.volumes")
		err = m.recs.Delete(c.id)
		failpoint.Hit("rm.record")
	}
	m.unmarkRemoval(c.id)
	if err != nil {
		c.set(func(r *Record) { r.State.Status, r.State.Error = container.StateDead, err.Error() })
		return fmt.Errorf("remove container %s: %w", r.Name, err)
	}
	c.mu.Lock()
	c.removed = true
	c.mu.Unlock()
	m.mu.Lock()
	delete(m.byID, c.id)
	if m.names[r.Name] == c.id {
		delete(m.names, r.Name)
	}
	for id := range c.execIDs {
		delete(m.execs, id)
	}
	m.mu.Unlock()
	c.event(events.ActionDestroy)
	c.mu.Lock()
	c.wake(condRemoved, c.exitCodeOf(r), "")
	c.mu.Unlock()
	return nil
}

// markRemoval is what an agent that comes later knows the removal by. It does
// not wait for the disk: what follows is written behind it.
func (c *Container) markRemoval(volumes bool) error {
	mark := markRemoving
	if volumes {
		mark = markVolumes
	}
	f, err := os.Create(c.m.dir(c.id) + mark)
	if err != nil {
		return err
	}
	return f.Close()
}

func (m *Manager) unmarkRemoval(id string) {
	os.Remove(m.dir(id) + markRemoving)
	os.Remove(m.dir(id) + markVolumes)
}

// removal tells whether a removal was cut short, and whether of the volumes.
func (c *Container) removal() (marked, volumes bool) {
	_, err := os.Lstat(c.m.dir(c.id) + markVolumes)
	if err == nil {
		return true, true
	}
	_, err = os.Lstat(c.m.dir(c.id) + markRemoving)
	return err == nil, false
}

// releaseVolumes drops the claims, and with anon the anonymous volumes.
func (m *Manager) releaseVolumes(ctx context.Context, r *Record, anon bool) {
	for _, mt := range r.Mounts {
		if mt.Type != mount.TypeVolume {
			continue
		}
		err := m.o.Volumes.Release(ctx, mt.Name, r.ID)
		if anon && mt.Anonymous {
			if e := m.o.Volumes.Remove(ctx, mt.Name); e != nil && !fault.Is(e, fault.Conflict) && !fault.Is(e, fault.NotFound) {
				err = errors.Join(err, e)
			}
		}
		if err != nil {
			m.o.Log.Error("release volume", "volume", mt.Name, "container", r.ID, "error", err)
		}
	}
}

// finishRemoval goes on with a removal that a crash cut short.
func (m *Manager) finishRemoval(ctx context.Context, c *Container) {
	_, volumes := c.removal()
	if err := m.remove(ctx, c, RemoveOptions{Volumes: volumes || c.rec.Load().HostConfig.AutoRemove}); err != nil {
		m.o.Log.Error("finish removal", "container", c.id, "error", err)
	}
}

// Prune removes stopped containers.
func (m *Manager) Prune(ctx context.Context, f model.Filters) (*container.PruneReport, error) {
	if err := f.Check("until", "label", "label!"); err != nil {
		return nil, err
	}
	until, err := f.Until(m.o.Clock.Now())
	if err != nil {
		return nil, err
	}
	rep := &container.PruneReport{ContainersDeleted: []string{}}
	for _, c := range m.all() {
		r := c.rec.Load()
		if r.State.Running() || !until.IsZero() && !r.Created.Before(until) || !f.Labels(r.Config.Labels) {
			continue
		}
		rw, _ := m.o.Layers.Size(ctx, r.ID)
		if err := m.Remove(ctx, c.id, RemoveOptions{}); err != nil {
			m.o.Log.Warn("prune container", "container", c.id, "error", err)
			continue
		}
		rep.ContainersDeleted = append(rep.ContainersDeleted, c.id)
		rep.SpaceReclaimed += uint64(rw)
	}
	m.o.Publish(events.ContainerEventType, events.ActionPrune, "", map[string]string{"reclaimed": strconv.FormatUint(rep.SpaceReclaimed, 10)})
	return rep, nil
}
