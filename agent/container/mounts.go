package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/undo"
)

// resolveMounts decides what is mounted where, makes and claims the volumes,
// and fills empty ones from the image. Later sources win over earlier ones
// for one destination, in Docker's order: volumes-from, image and anonymous
// volumes, binds, mounts.
func (m *Manager) resolveMounts(ctx context.Context, r *Record, img *model.Image, u *undo.Stack) error {
	at := map[string]Mount{}
	if err := m.volumesFrom(r, at); err != nil {
		return err
	}
	explicit, err := explicitMounts(r)
	if err != nil {
		return err
	}
	for dst := range r.Config.Volumes {
		dst, err := mustAbs(dst)
		if err != nil {
			return err
		}
		if _, ok := at[dst]; !ok {
			at[dst] = Mount{Type: mount.TypeVolume, Destination: dst, RW: true, Anonymous: true, Driver: r.HostConfig.VolumeDriver}
		}
	}
	maps.Copy(at, explicit)
	for dst := range at {
		if err := checkProc(dst); err != nil {
			return err
		}
	}
	for _, dst := range slices.Sorted(maps.Keys(at)) {
		mt := at[dst]
		if err := m.prepareMount(ctx, r, &mt, img, u); err != nil {
			return err
		}
		r.Mounts = append(r.Mounts, mt)
	}
	return nil
}

// explicitMounts are -v, --mount and --tmpfs; a destination may come once.
func explicitMounts(r *Record) (map[string]Mount, error) {
	explicit := map[string]Mount{}
	add := func(mt Mount) error {
		if _, dup := explicit[mt.Destination]; dup {
			return fault.Invalid.Errorf("Duplicate mount point: %s", mt.Destination)
		}
		explicit[mt.Destination] = mt
		return nil
	}
	for _, b := range r.HostConfig.Binds {
		mt, err := parseBind(b, r.HostConfig.VolumeDriver)
		if err != nil {
			return nil, err
		}
		if err := add(mt); err != nil {
			return nil, err
		}
	}
	for _, spec := range r.HostConfig.Mounts {
		mt, err := parseMount(spec)
		if err != nil {
			return nil, err
		}
		if err := add(mt); err != nil {
			return nil, err
		}
	}
	for dst, opts := range r.HostConfig.Tmpfs {
		dst, err := mustAbs(dst)
		if err != nil {
			return nil, err
		}
		if err := checkTmpfs(opts); err != nil {
			return nil, err
		}
		if err := add(Mount{Type: mount.TypeTmpfs, Destination: dst, RW: true, TmpfsData: opts}); err != nil {
			return nil, err
		}
	}
	return explicit, nil
}

// checkProc refuses mounts over /proc and in it, but for the files that lxcfs
// stands in for: what the engine writes there must reach the kernel
// (CVE-2019-19921; runc has the same list).
func checkProc(dst string) error {
	if dst != "/proc" && !strings.HasPrefix(dst, "/proc/") {
		return nil
	}
	switch dst {
	case "/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/uptime", "/proc/loadavg", "/proc/slabinfo",
		"/proc/net/dev", "/proc/sys/kernel/ns_last_pid", "/proc/sys/crypto/fips_enabled":
		return nil
	}
	return fault.Invalid.Errorf("invalid mount: %q cannot be mounted because it is inside /proc", dst)
}

// volumesFrom takes over the mounts of other containers.
func (m *Manager) volumesFrom(r *Record, at map[string]Mount) error {
	for _, vf := range r.HostConfig.VolumesFrom {
		ref, mode, _ := strings.Cut(vf, ":")
		c, err := m.find(ref)
		if err != nil {
			return fault.Invalid.Errorf("volumes from %s: %w", ref, err)
		}
		for _, mt := range c.rec.Load().Mounts {
			if mt.Type == mount.TypeTmpfs {
				continue
			}
			switch mode {
			case "", "z", "Z":
			case "ro":
				mt.RW = false
			case "rw":
			default:
				return fault.Invalid.Errorf("invalid mode for volumes-from: %s", mode)
			}
			mt.NoCopy = true
			at[mt.Destination] = mt
		}
	}
	return nil
}

// parseBind reads "src:dst[:mode]"; src is a host path or a volume's name.
func parseBind(b, driver string) (Mount, error) {
	parts := strings.Split(b, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" {
		return Mount{}, fault.Invalid.Errorf("invalid volume specification: '%s'", b)
	}
	dst, err := mustAbs(parts[1])
	if err != nil {
		return Mount{}, fault.Invalid.Errorf("invalid volume specification: '%s': %w", b, err)
	}
	mt := Mount{Destination: dst, RW: true, Source: parts[0]}
	if filepath.IsAbs(parts[0]) {
		mt.Type, mt.Source, mt.Propagation = mount.TypeBind, filepath.Clean(parts[0]), mount.PropagationRPrivate
	} else {
		mt.Type, mt.Name, mt.Source, mt.Driver = mount.TypeVolume, parts[0], "", driver
	}
	if len(parts) == 3 {
		mt.Mode = parts[2]
	}
	for o := range strings.SplitSeq(mt.Mode, ",") {
		switch o {
		case "", "rw", "z", "Z", "consistent", "cached", "delegated":
		case "ro":
			mt.RW = false
		case "nocopy":
			mt.NoCopy = true
		case "private", "rprivate", "shared", "rshared", "slave", "rslave":
			if mt.Type != mount.TypeBind {
				return Mount{}, fault.Invalid.Errorf("invalid volume specification: '%s': propagation is for bind mounts", b)
			}
			mt.Propagation = mount.Propagation(o)
		default:
			return Mount{}, fault.Invalid.Errorf("invalid mode: %s", mt.Mode)
		}
	}
	return mt, nil
}

func invalidMount(t mount.Type, format string, a ...any) error {
	return fault.Invalid.Errorf("invalid mount config for type %q: %w", t, fmt.Errorf(format, a...))
}

// parseMount reads a --mount specification.
func parseMount(s mount.Mount) (Mount, error) {
	if s.Target == "" {
		return Mount{}, invalidMount(s.Type, "field Target must not be empty")
	}
	dst, err := mustAbs(s.Target)
	if err != nil {
		return Mount{}, invalidMount(s.Type, "%w", err)
	}
	mt := Mount{Type: s.Type, Destination: dst, RW: !s.ReadOnly}
	switch s.Type {
	case mount.TypeBind:
		if err := bindMount(&mt, s); err != nil {
			return mt, err
		}
	case mount.TypeVolume:
		mt.Name = s.Source
		mt.Anonymous = s.Source == ""
		if o := s.VolumeOptions; o != nil {
			mt.NoCopy, mt.Subpath = o.NoCopy, o.Subpath
			if o.DriverConfig != nil {
				mt.Driver, mt.Opts = o.DriverConfig.Name, o.DriverConfig.Options
			}
			if len(o.Labels) > 0 {
				mt.Opts = maps.Clone(mt.Opts)
			}
		}
	case mount.TypeTmpfs:
		if s.Source != "" {
			return mt, invalidMount(s.Type, "field Source must not be specified")
		}
		mt.TmpfsData = tmpfsData(s)
	case mount.TypeImage:
		if s.Source == "" {
			return mt, invalidMount(s.Type, "field Source must not be empty")
		}
		mt.Image, mt.RW = s.Source, false
		if s.ImageOptions != nil {
			mt.Subpath = s.ImageOptions.Subpath
		}
	default:
		return mt, invalidMount(s.Type, "mount type unknown")
	}
	return mt, nil
}

func bindMount(mt *Mount, s mount.Mount) error {
	if s.Source == "" {
		return invalidMount(s.Type, "field Source must not be empty")
	}
	if !filepath.IsAbs(s.Source) {
		return invalidMount(s.Type, "invalid mount path: '%s' mount path must be absolute", s.Source)
	}
	mt.Source, mt.Propagation = filepath.Clean(s.Source), mount.PropagationRPrivate
	create := false
	if o := s.BindOptions; o != nil {
		if o.Propagation != "" {
			mt.Propagation = o.Propagation
		}
		mt.NonRec, mt.RONonRec, mt.ROForceRec = o.NonRecursive, o.ReadOnlyNonRecursive, o.ReadOnlyForceRecursive
		create = o.CreateMountpoint
	}
	if _, err := os.Lstat(mt.Source); errors.Is(err, fs.ErrNotExist) && !create {
		return invalidMount(s.Type, "bind source path does not exist: %s", mt.Source)
	}
	return nil
}

func tmpfsData(s mount.Mount) string {
	var o []string
	if s.ReadOnly {
		o = append(o, "ro")
	}
	if t := s.TmpfsOptions; t != nil {
		if t.Mode != 0 {
			o = append(o, fmt.Sprintf("mode=%o", t.Mode))
		}
		if t.SizeBytes != 0 {
			o = append(o, "size="+strconv.FormatInt(t.SizeBytes, 10))
		}
		for _, kv := range t.Options {
			o = append(o, strings.Join(kv, "="))
		}
	}
	return strings.Join(o, ",")
}

// checkTmpfs refuses options that are not tmpfs's, so that none reaches the
// kernel as something else.
func checkTmpfs(opts string) error {
	for o := range strings.SplitSeq(opts, ",") {
		k, _, _ := strings.Cut(o, "=")
		switch k {
		case "", "ro", "rw", "exec", "noexec", "suid", "nosuid", "dev", "nodev", "sync", "async", "dirsync",
			"remount", "mand", "nomand", "atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime",
			"strictatime", "nostrictatime", "bind", "rbind", "private", "rprivate", "shared", "rshared", "slave", "rslave",
			"mode", "uid", "gid", "nr_inodes", "nr_blocks", "size", "mpol":
		default:
			return fault.Invalid.Errorf("invalid tmpfs option %q", o)
		}
	}
	return nil
}

// prepareMount makes the source of a mount: claims a volume, makes a missing
// directory of -v, finds an image.
func (m *Manager) prepareMount(ctx context.Context, r *Record, mt *Mount, img *model.Image, u *undo.Stack) error {
	switch mt.Type {
	case mount.TypeBind:
		if _, err := os.Lstat(mt.Source); errors.Is(err, fs.ErrNotExist) {
			if err := os.MkdirAll(mt.Source, 0o755); err != nil {
				return fault.Invalid.Errorf("error while creating mount source path '%s': %w", mt.Source, err)
			}
		}
		return nil
	case mount.TypeImage:
		_, err := m.o.Images.Get(ctx, mt.Image)
		return err
	case mount.TypeVolume:
	default:
		return nil
	}
	req := model.VolumeRequest{Name: mt.Name, Driver: mt.Driver, Options: mt.Opts, Labels: volumeLabels(r, mt)}
	v, err := m.o.Volumes.Use(ctx, req, r.ID)
	if err != nil {
		return err
	}
	clean := context.WithoutCancel(ctx)
	name, made := v.Name, mt.Name == ""
	u.Add(func() error {
		err := m.o.Volumes.Release(clean, name, r.ID)
		if made {
			err = errors.Join(err, m.o.Volumes.Remove(clean, name))
		}
		return err
	})
	mt.Name, mt.Driver, mt.Source = v.Name, v.Driver, v.Mountpoint
	mt.Anonymous = made
	if v.Empty && !mt.NoCopy && img.TopLayer != "" {
		return m.fillVolume(ctx, img, mt, m.remap(r.HostConfig))
	}
	return nil
}

// volumeLabels are the labels that a --mount asked for.
func volumeLabels(r *Record, mt *Mount) map[string]string {
	for _, s := range r.HostConfig.Mounts {
		if s.Type == mount.TypeVolume && filepath.Clean(s.Target) == mt.Destination && s.VolumeOptions != nil {
			return s.VolumeOptions.Labels
		}
	}
	return nil
}

// fillVolume copies what the image has at the mount point into the empty
// volume, with the owner and mode of the directory itself.
func (m *Manager) fillVolume(ctx context.Context, img *model.Image, mt *Mount, ids *model.IDMap) error {
	root, done, err := m.o.Layers.OpenImage(ctx, img.TopLayer)
	if err != nil {
		return err
	}
	defer func() { root.Close(); done() }()
	dst, err := os.Open(mt.Source)
	if err != nil {
		return fmt.Errorf("fill volume %s: %w", mt.Name, err)
	}
	defer dst.Close()
	if err := m.o.Archive.CopyTree(ctx, root, mt.Destination, dst, ids); err != nil && !fault.Is(err, fault.NotFound) {
		return fmt.Errorf("fill volume %s from %s of the image: %w", mt.Name, mt.Destination, err)
	}
	return nil
}

// mountPoints is how inspect and list show the mounts.
func mountPoints(r *Record) []container.MountPoint {
	out := []container.MountPoint{}
	for _, mt := range r.Mounts {
		out = append(out, container.MountPoint{
			Type: mt.Type, Name: mt.Name, Source: mt.Source, Destination: mt.Destination, Driver: mt.Driver,
			Mode: mt.Mode, RW: mt.RW, Propagation: mt.Propagation,
		})
	}
	return out
}
