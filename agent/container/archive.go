package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"golang.org/x/sys/unix"

	"machine/agent/fault"
	"machine/agent/model"
)

// root opens the container's file system: the live one as open has it, or
// a detached mount of the layers when it does not run. ids are those that it
// shows: the disk holds the container's own.
func (c *Container) root(ctx context.Context, open func(model.Task) (*os.File, error)) (root *os.File, ids *model.IDMap, done func(), err error) {
	if task, err := c.running(); err == nil {
		ids := c.rec.Load().Remap
		f, err := open(task)
		if err == nil {
			return f, ids, func() { f.Close() }, nil
		}
		// It ended meanwhile, or its layers would be mounted twice.
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
			await(ctx, task.Done())
		}
		select {
		case <-task.Done():
		default:
			return nil, nil, nil, err
		}
	}
	f, release, err := c.m.o.Layers.OpenRoot(ctx, c.id)
	if err != nil {
		return nil, nil, nil, err
	}
	return f, nil, func() { f.Close(); release() }, nil
}

// A place is where a path of a container is found. done closes what was opened.
type place struct {
	root   *os.File
	inside string // the path below root
	as     string // its name, where root is what bears it
	done   func()
	ro     bool
	ids    *model.IDMap // with which root shows the container's ids
}

// at finds a container, and a path of it.
func (m *Manager) at(ctx context.Context, ref, path string) (*Container, *place, error) {
	c, err := m.find(ref)
	if err != nil {
		return nil, nil, err
	}
	p, err := c.at(ctx, path)
	return c, p, err
}

// at finds where a path of a container lives. In a stopped one volumes are not
// mounted, so a path below one is resolved in the volume itself. A running
// container's root has all of it.
func (c *Container) at(ctx context.Context, path string) (*place, error) {
	r := c.rec.Load()
	ro := false
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
			return nil, fmt.Errorf("open mount %s: %w", mt.Destination, err)
		}
		rest := strings.TrimPrefix(path[min(len(mt.Destination), len(path)):], "/")
		p := &place{root: f, inside: "/" + rest, done: func() { f.Close() }, ro: ro, ids: c.m.remap(r.HostConfig)}
		if p.as = filepath.Base(mt.Destination); rest == "." {
			p.as = "."
		} else if rest != "" {
			p.as = ""
		}
		return p, nil
	}
	root, ids, done, err := c.root(ctx, model.Task.Root)
	if err != nil {
		return nil, err
	}
	return &place{root: root, inside: path, done: done, ro: ro || r.HostConfig.ReadonlyRootfs, ids: ids}, nil
}

// StatPath describes a path in a container.
func (m *Manager) StatPath(ctx context.Context, ref, path string) (model.PathStat, error) {
	c, p, err := m.at(ctx, ref, path)
	if err != nil {
		return model.PathStat{}, err
	}
	defer p.done()
	return c.statAt(p, path)
}

func (c *Container) statAt(p *place, path string) (model.PathStat, error) {
	st, err := c.m.o.Archive.Stat(p.root, p.inside)
	if err != nil {
		if fault.Is(err, fault.NotFound) {
			return st, fault.NotFound.Errorf("Could not find the file %s in container %s", path, c.id)
		}
		return st, err
	}
	if p.as != "" && p.as != "." {
		st.Name = p.as
	}
	return st, nil
}

// Archive writes a path of a container as a tar; begin gets its description
// before the first byte.
func (m *Manager) Archive(ctx context.Context, ref, path string, begin func(model.PathStat) io.Writer) error {
	c, p, err := m.at(ctx, ref, path)
	if err != nil {
		return err
	}
	defer p.done()
	st, err := c.statAt(p, path)
	if err != nil {
		return err
	}
	c.event(events.ActionArchivePath)
	return m.o.Archive.Pack(ctx, begin(st), p.root, p.inside, p.as, p.ids)
}

// Extract unpacks a tar into a directory of a container. With copyUIDGID what
// it holds belongs to the container's user, if that is set.
func (m *Manager) Extract(ctx context.Context, ref, path string, r io.Reader, noOverwriteDirNonDir, copyUIDGID bool) error {
	c, p, err := m.at(ctx, ref, path)
	if err != nil {
		return err
	}
	defer p.done()
	st, err := c.statAt(p, path)
	if err != nil {
		return err
	}
	if st.LinkTarget == "" && !st.Mode.IsDir() {
		return fault.Invalid.Errorf("extraction point is not a directory")
	}
	if p.ro {
		return fault.Forbidden.Errorf("container rootfs is marked read-only")
	}
	o := UnpackOptions{NoOverwriteDirNonDir: noOverwriteDirNonDir, IDs: p.ids}
	if copyUIDGID {
		if o.Owner, err = c.owner(ctx); err != nil {
			return err
		}
	}
	if err := m.o.Archive.Unpack(ctx, p.root, p.inside, r, o); err != nil {
		return err
	}
	c.event(events.ActionExtractToDir)
	return nil
}

// Export writes the whole root file system as a tar, without what is mounted
// in it.
func (m *Manager) Export(ctx context.Context, ref string, w io.Writer) error {
	c, err := m.find(ref)
	if err != nil {
		return err
	}
	root, ids, done, err := c.root(ctx, model.Task.BareRoot)
	if err != nil {
		return err
	}
	defer done()
	c.event(events.ActionExport)
	return m.o.Archive.Pack(ctx, w, root, "/.", "", ids)
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
	c.event(events.ActionPause)
	return r, func() {
		task.Resume()
		c.event(events.ActionUnPause)
	}, nil
}
