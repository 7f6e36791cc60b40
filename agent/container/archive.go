package container

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"

	"machine/agent/fault"
	"machine/agent/model"
)

// root opens the container's file system: the live one through its init, or
// a detached mount of the layers when it does not run.
func (c *Container) root(ctx context.Context) (*os.File, func(), error) {
	if task, err := c.running(); err == nil {
		if f, err := task.Root(); err == nil {
			return f, func() { f.Close() }, nil
		}
	}
	f, done, err := c.m.o.Layers.OpenRoot(ctx, c.id)
	if err != nil {
		return nil, nil, err
	}
	return f, func() { f.Close(); done() }, nil
}

// at finds where a path of a stopped container lives: volumes are not mounted
// there, so a path below one is resolved in the volume itself. A running
// container's root has all of it.
func (c *Container) at(ctx context.Context, path string) (root *os.File, inside string, done func(), ro bool, err error) {
	r := c.rec.Load()
	clean := "/" + strings.Trim(path, "/")
	mounts := slices.Clone(r.Mounts)
	slices.SortFunc(mounts, func(a, b Mount) int { return len(b.Destination) - len(a.Destination) })
	for _, mt := range mounts {
		below := clean == mt.Destination || strings.HasPrefix(clean, mt.Destination+"/")
		if !below {
			continue
		}
		ro = !mt.RW
		if r.State.Running() || mt.Type == mount.TypeTmpfs || mt.Type == mount.TypeImage {
			break
		}
		st, err := os.Stat(mt.Source)
		if err != nil || !st.IsDir() {
			break
		}
		f, err := os.Open(mt.Source)
		if err != nil {
			return nil, "", nil, ro, fmt.Errorf("open mount %s: %w", mt.Destination, err)
		}
		rest := strings.TrimPrefix(path[min(len(mt.Destination), len(path)):], "/")
		return f, "/" + rest, func() { f.Close() }, ro, nil
	}
	root, done, err = c.root(ctx)
	return root, path, done, ro || r.HostConfig.ReadonlyRootfs, err
}

// StatPath describes a path in a container.
func (m *Manager) StatPath(ctx context.Context, ref, path string) (model.PathStat, error) {
	c, err := m.find(ref)
	if err != nil {
		return model.PathStat{}, err
	}
	root, inside, done, _, err := c.at(ctx, path)
	if err != nil {
		return model.PathStat{}, err
	}
	defer done()
	return c.statAt(root, inside, path)
}

func (c *Container) statAt(root *os.File, inside, path string) (model.PathStat, error) {
	st, err := c.m.o.Archive.Stat(root, inside)
	if err != nil {
		if fault.Is(err, fault.NotFound) {
			return st, fault.NotFound.Errorf("Could not find the file %s in container %s", path, c.id)
		}
		return st, err
	}
	return st, nil
}

// Archive writes a path of a container as a tar; begin gets its description
// before the first byte.
func (m *Manager) Archive(ctx context.Context, ref, path string, begin func(model.PathStat) io.Writer) error {
	c, err := m.find(ref)
	if err != nil {
		return err
	}
	root, inside, done, _, err := c.at(ctx, path)
	if err != nil {
		return err
	}
	defer done()
	st, err := c.statAt(root, inside, path)
	if err != nil {
		return err
	}
	c.event(events.ActionArchivePath)
	return m.o.Archive.Pack(ctx, begin(st), root, inside)
}

// Extract unpacks a tar into a directory of a container. With copyUIDGID what
// it holds belongs to the container's user, if that is set.
func (m *Manager) Extract(ctx context.Context, ref, path string, r io.Reader, noOverwriteDirNonDir, copyUIDGID bool) error {
	c, err := m.find(ref)
	if err != nil {
		return err
	}
	root, inside, done, ro, err := c.at(ctx, path)
	if err != nil {
		return err
	}
	defer done()
	st, err := c.statAt(root, inside, path)
	if err != nil {
		return err
	}
	if st.LinkTarget == "" && !st.Mode.IsDir() {
		return fault.Invalid.Errorf("extraction point is not a directory")
	}
	if ro {
		return fault.Forbidden.Errorf("container rootfs is marked read-only")
	}
	var owner *Owner
	if copyUIDGID {
		if owner, err = c.owner(ctx); err != nil {
			return err
		}
	}
	if err := m.o.Archive.Unpack(ctx, root, inside, r, noOverwriteDirNonDir, owner); err != nil {
		return err
	}
	c.event(events.ActionExtractToDir)
	return nil
}

// Export writes the whole root file system as a tar.
func (m *Manager) Export(ctx context.Context, ref string, w io.Writer) error {
	c, err := m.find(ref)
	if err != nil {
		return err
	}
	root, done, err := c.m.o.Layers.OpenRoot(ctx, c.id)
	if err != nil {
		root, done2, err2 := c.root(ctx)
		if err2 != nil {
			return err
		}
		defer done2()
		c.event(events.ActionExport)
		return m.o.Archive.Pack(ctx, w, root, "/.")
	}
	defer func() { root.Close(); done() }()
	c.event(events.ActionExport)
	return m.o.Archive.Pack(ctx, w, root, "/.")
}

// Changes lists what a container changed.
func (m *Manager) Changes(ctx context.Context, ref string) ([]model.Change, error) {
	c, err := m.find(ref)
	if err != nil {
		return nil, err
	}
	return m.o.Layers.Changes(ctx, c.id)
}

// Freeze pauses a running container for a commit; thaw undoes that.
func (m *Manager) Freeze(ctx context.Context, ref string) (r *Record, thaw func(), err error) {
	c, err := m.find(ref)
	if err != nil {
		return nil, nil, err
	}
	r = c.rec.Load()
	if r.State.Status != container.StateRunning {
		return r, func() {}, nil
	}
	task, err := c.running()
	if err != nil {
		return r, func() {}, nil
	}
	if err := task.Pause(); err != nil {
		return nil, nil, err
	}
	return r, func() { task.Resume() }, nil
}
