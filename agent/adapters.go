package agent

import (
	"context"
	"io"
	"os"
	"strings"

	"github.com/moby/moby/api/types/events"
	apinetwork "github.com/moby/moby/api/types/network"
	apivolume "github.com/moby/moby/api/types/volume"

	"machine/agent/archive"
	"machine/agent/aside"
	"machine/agent/container"
	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/volume"
)

// archiver gives containers the archive package.
type archiver struct{}

func (archiver) Pack(ctx context.Context, w io.Writer, root *os.File, path, as string, ids *model.IDMap) error {
	o := archive.PackOptions{IDs: ids, RebaseName: as}
	if path == "/." && as == "" { // export: names relative to the root, which is not named
		path, o.Flat = "/", true
	}
	return archive.Pack(ctx, w, root, path, o)
}

func (archiver) Unpack(ctx context.Context, root *os.File, dir string, r io.Reader, o container.UnpackOptions) error {
	ao := archive.UnpackOptions{NoOverwriteDirNonDir: o.NoOverwriteDirNonDir, IDs: o.IDs}
	if o.Owner != nil {
		ao.Owner = &archive.Owner{UID: o.Owner.UID, GID: o.Owner.GID}
	}
	return unpackAs(o.IDs, func() error { return archive.Unpack(ctx, root, dir, r, ao) })
}

// unpackAs runs f as one who may make files where ids are in force.
func unpackAs(ids *model.IDMap, f func() error) error {
	if ids == nil {
		return f()
	}
	return aside.As(ids.UID, ids.GID, f)
}

func (archiver) Stat(root *os.File, path string) (model.PathStat, error) {
	return archive.Stat(root, path)
}

// CopyTree pipes a tree from one root to another.
func (archiver) CopyTree(ctx context.Context, root *os.File, path string, dst *os.File, ids *model.IDMap) error {
	st, err := archive.Stat(root, path)
	if err != nil {
		return err
	}
	if !st.Mode.IsDir() && st.LinkTarget == "" {
		return fault.NotFound.Errorf("%s is no directory", path)
	}
	pr, pw := io.Pipe()
	go func() {
		pw.CloseWithError(archive.Pack(ctx, pw, root, strings.TrimSuffix(path, "/")+"/.", archive.PackOptions{}))
	}()
	err = unpackAs(ids, func() error { return archive.Unpack(ctx, dst, "/", pr, archive.UnpackOptions{IDs: ids, Root: true}) })
	pr.CloseWithError(err)
	return err
}

// networkAPI gives the API the networks.
type networkAPI struct{ a *Agent }

func (n networkAPI) List(_ context.Context, f model.Filters) ([]apinetwork.Inspect, error) {
	list, err := n.a.networks.ListFiltered(f)
	for i := range list {
		list[i].Containers = map[string]apinetwork.EndpointResource{}
	}
	return list, err
}

func (n networkAPI) Inspect(_ context.Context, ref string) (apinetwork.Inspect, error) {
	return n.a.networks.Inspect(ref)
}

func (n networkAPI) Create(ctx context.Context, r apinetwork.CreateRequest) (apinetwork.CreateResponse, error) {
	return n.a.networks.Create(ctx, r)
}

func (n networkAPI) Remove(ctx context.Context, ref string) error {
	return n.a.networks.Remove(ctx, ref)
}

func (n networkAPI) Prune(ctx context.Context, f model.Filters) ([]string, error) {
	rep, err := n.a.networks.Prune(ctx, f, n.a.containers.RefersToNetwork)
	if err == nil {
		n.a.pruned(events.NetworkEventType, 0)
	}
	return rep.NetworksDeleted, err
}

func (n networkAPI) Connect(ctx context.Context, ref, id string, cfg *apinetwork.EndpointSettings) error {
	_, name, _, err := n.a.networks.Resolve(ref)
	if err != nil {
		return err
	}
	return n.a.containers.Connect(ctx, id, name, cfg)
}

func (n networkAPI) Disconnect(ctx context.Context, ref, id string, force bool) error {
	nid, name, _, err := n.a.networks.Resolve(ref)
	if err != nil {
		return err
	}
	return n.a.containers.Disconnect(ctx, id, name, nid, force)
}

// volumeAPI gives the API the volumes.
type volumeAPI struct {
	m *volume.Manager
	a *Agent
}

func (v volumeAPI) List(_ context.Context, f model.Filters) ([]apivolume.Volume, error) {
	rep, err := v.m.List(f)
	return rep.Volumes, err
}

func (v volumeAPI) Inspect(_ context.Context, name string) (*apivolume.Volume, error) {
	vol, err := v.m.Get(name)
	return &vol, err
}

func (v volumeAPI) Create(ctx context.Context, r apivolume.CreateRequest) (*apivolume.Volume, error) {
	vol, err := v.m.Create(ctx, r)
	return &vol, err
}

func (v volumeAPI) Remove(ctx context.Context, name string, force bool) error {
	err := v.m.Remove(ctx, name)
	if force && fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

func (v volumeAPI) Prune(ctx context.Context, f model.Filters) ([]string, uint64, error) {
	rep, err := v.m.Prune(ctx, f)
	if err == nil {
		v.a.pruned(events.VolumeEventType, rep.SpaceReclaimed)
	}
	return rep.VolumesDeleted, rep.SpaceReclaimed, err
}

func (v volumeAPI) Usage(ctx context.Context) ([]apivolume.Volume, error) { return v.m.Usage(ctx) }
