package agent

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	apinetwork "github.com/moby/moby/api/types/network"
	apivolume "github.com/moby/moby/api/types/volume"

	"machine/agent/archive"
	"machine/agent/container"
	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/network"
	"machine/agent/volume"
)

// archiver gives containers the archive package.
type archiver struct{}

func (archiver) Pack(ctx context.Context, w io.Writer, root *os.File, path string) error {
	if path == "/." { // export: names relative to the root, which is not named
		return archive.Pack(ctx, w, root, "/", archive.PackOptions{Flat: true})
	}
	return archive.Pack(ctx, w, root, path, archive.PackOptions{})
}

func (archiver) Unpack(ctx context.Context, root *os.File, dir string, r io.Reader, noOverwriteDirNonDir bool, owner *container.Owner) error {
	o := archive.UnpackOptions{NoOverwriteDirNonDir: noOverwriteDirNonDir}
	if owner != nil {
		o.Owner = &archive.Owner{UID: owner.UID, GID: owner.GID}
	}
	return archive.Unpack(ctx, root, dir, r, o)
}

func (archiver) Stat(root *os.File, path string) (model.PathStat, error) {
	return archive.Stat(root, path)
}

// CopyTree pipes a tree from one root to another.
func (archiver) CopyTree(ctx context.Context, root *os.File, path string, dst *os.File) error {
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
	err = archive.Unpack(ctx, dst, "/", pr, archive.UnpackOptions{})
	pr.CloseWithError(err)
	return err
}

// networkAPI gives the API the networks.
type networkAPI struct{ a *Agent }

func (n networkAPI) List(_ context.Context, f container.Filters) ([]apinetwork.Inspect, error) {
	list, err := n.a.networks.ListFiltered(network.Filters(f))
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

func (n networkAPI) Prune(ctx context.Context, f container.Filters) ([]string, error) {
	rep, err := n.a.networks.Prune(ctx, network.Filters(f), n.a.containers.RefersToNetwork)
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
type volumeAPI struct{ m *volume.Manager }

func (v volumeAPI) List(_ context.Context, f container.Filters) ([]apivolume.Volume, error) {
	rep, err := v.m.List(volume.Filters(f))
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

func (v volumeAPI) Prune(ctx context.Context, f container.Filters) ([]string, uint64, error) {
	rep, err := v.m.Prune(ctx, volume.Filters(f))
	return rep.VolumesDeleted, rep.SpaceReclaimed, err
}

func (v volumeAPI) Usage(ctx context.Context) ([]apivolume.Volume, error) { return v.m.Usage(ctx) }

// usernsRemap looks up the subordinate ids of --userns-remap, subuid(5).
func usernsRemap(s string) (*container.IDMap, error) {
	if s == "" {
		return nil, nil
	}
	user, group, _ := strings.Cut(s, ":")
	if user == "default" {
		user = "dockremap"
	}
	if group == "" || group == "default" {
		group = user
	}
	uid, size, err := subordinate("/etc/subuid", user)
	if err != nil {
		return nil, err
	}
	gid, gsize, err := subordinate("/etc/subgid", group)
	if err != nil {
		return nil, err
	}
	return &container.IDMap{UID: uid, GID: gid, Size: min(size, gsize)}, nil
}

func subordinate(file, name string) (start, size uint32, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, 0, fmt.Errorf("userns-remap: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 3 || f[0] != name {
			continue
		}
		a, err1 := strconv.ParseUint(f[1], 10, 32)
		n, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 == nil && err2 == nil && n > 0 {
			return uint32(a), uint32(n), nil
		}
	}
	return 0, 0, fmt.Errorf("userns-remap: %s has no range for %s", file, name)
}
