// Package volume keeps named directories for containers: Docker's "local"
// volume driver. A volume is ROOT/NAME/_data; with the options type, device
// and o it is a mount there, made when a container first uses it and removed
// with its last user. Records are kept below ROOT/.records, apart from the
// data, one file each.
package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	apivolume "github.com/moby/moby/api/types/volume"
	"golang.org/x/sys/unix"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/state"
	"machine/agent/undo"
)

// AnonymousLabel marks volumes that were made without a name.
const AnonymousLabel = "com.docker.volume.anonymous"

// maxName leaves room for the record's ".json" in a file name of 255 bytes.
const maxName = 240

var nameRE = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// record is what is kept of a volume.
type record struct {
	Name    string
	Created time.Time
	Options map[string]string
	Labels  map[string]string
}

// volume is one volume in memory. mu is held through mounting and removal.
type volume struct {
	mu    sync.Mutex
	rec   record
	users map[string]bool // ids of containers that refer to it
	gone  bool            // removed while somebody waited for mu
}

// Options configure a Manager.
type Options struct {
	Root string
	Log  *slog.Logger
	// Publish tells the event feed (create, destroy);
	// may be nil.
	Publish func(action, name, driver, containerID string)
	// UID and GID own the folders of new volumes: containers' root.
	UID, GID int
}

// A Manager owns the volumes of a host. It is safe for concurrent use.
type Manager struct {
	root    string
	log     *slog.Logger
	publish func(action, name, driver, containerID string)
	recs    *state.Store[record]
	uid     int
	gid     int

	mu   sync.Mutex
	vols map[string]*volume
}

// Open reads the records below o.Root, which is made when absent. Folders that
// look like volumes but have no record (an older engine's) are taken up.
// Users are not recorded: containers claim their volumes again.
func Open(o Options) (*Manager, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Publish == nil {
		o.Publish = func(_, _, _, _ string) {}
	}
	if err := os.MkdirAll(o.Root, 0o701); err != nil {
		return nil, fmt.Errorf("open volumes: %w", err)
	}
	recs, broken, err := state.Open[record](filepath.Join(o.Root, ".records"))
	if err != nil {
		return nil, fmt.Errorf("open volumes: %w", err)
	}
	for _, err := range broken {
		o.Log.Error("broken volume record; the data is kept", "err", err)
	}
	m := &Manager{root: o.Root, log: o.Log, publish: o.Publish, recs: recs, uid: o.UID, gid: o.GID, vols: map[string]*volume{}}
	for name, r := range recs.All() {
		if r.Name != name || !nameRE.MatchString(name) {
			o.Log.Error("volume record is not of its name; left alone", "record", name)
			continue
		}
		m.vols[name] = &volume{rec: r, users: map[string]bool{}}
	}
	return m, m.adopt()
}

// adopt takes up data without a record.
func (m *Manager) adopt() error {
	list, err := os.ReadDir(m.root)
	if err != nil {
		return fmt.Errorf("open volumes: %w", err)
	}
	for _, e := range list {
		name := e.Name()
		if !e.IsDir() || m.vols[name] != nil || !nameRE.MatchString(name) || len(name) > maxName {
			continue
		}
		st, err := os.Lstat(m.data(name))
		if err != nil || !st.IsDir() {
			continue
		}
		m.vols[name] = &volume{users: map[string]bool{},
			rec: record{Name: name, Created: st.ModTime(), Options: map[string]string{}, Labels: map[string]string{}}}
	}
	return nil
}

func (m *Manager) data(name string) string { return filepath.Join(m.root, name, "_data") }

// get returns the volume, locked; unlock it. nil when there is none.
func (m *Manager) get(name string) *volume {
	for {
		m.mu.Lock()
		v := m.vols[name]
		m.mu.Unlock()
		if v == nil {
			return nil
		}
		v.mu.Lock()
		if !v.gone {
			return v
		}
		v.mu.Unlock()
	}
}

// Create makes a volume; an empty name makes an anonymous one. It is
// idempotent: the volume of this name is returned when there is one, unless
// the request has other options (fault.Conflict). A bad name or option is
// fault.Invalid, an unknown driver fault.NotFound. Source: Docker Engine API,
// VolumeCreate.
func (m *Manager) Create(ctx context.Context, r apivolume.CreateRequest) (apivolume.Volume, error) {
	if r.ClusterVolumeSpec != nil {
		return apivolume.Volume{}, fault.Unavailable.Errorf("cluster volumes need a swarm: this node is not a swarm manager")
	}
	v, err := m.make(ctx, model.VolumeRequest{Name: r.Name, Driver: r.Driver, Options: r.DriverOpts, Labels: r.Labels})
	if err != nil {
		return apivolume.Volume{}, err
	}
	defer v.mu.Unlock()
	return m.describe(v), nil
}

// make returns the volume of the request, locked.
func (m *Manager) make(ctx context.Context, r model.VolumeRequest) (*volume, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if r.Driver != "" && r.Driver != "local" {
		return nil, fault.NotFound.Errorf("error looking up volume plugin %s: plugin %q not found", r.Driver, r.Driver)
	}
	if r.Name == "" {
		r.Name = model.NewID()
		r.Labels = maps.Clone(r.Labels)
		if r.Labels == nil {
			r.Labels = map[string]string{}
		}
		r.Labels[AnonymousLabel] = ""
	}
	if len(r.Name) < 2 || !nameRE.MatchString(r.Name) {
		return nil, fault.Invalid.Errorf("create %s: %q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", r.Name, r.Name)
	}
	if len(r.Name) > maxName {
		return nil, fault.Invalid.Errorf("create volume: the name is longer than %d characters", maxName)
	}
	if err := checkOptions(r.Options); err != nil {
		return nil, err
	}
	for {
		if v := m.get(r.Name); v != nil {
			if len(r.Options) > 0 && !maps.Equal(r.Options, v.rec.Options) {
				v.mu.Unlock()
				return nil, fault.Conflict.Errorf("a volume named %s already exists with other options; remove it or choose another name", r.Name)
			}
			return v, nil
		}
		v := &volume{users: map[string]bool{}, rec: record{Name: r.Name, Created: time.Now(),
			Options: orEmpty(r.Options), Labels: orEmpty(r.Labels)}}
		v.mu.Lock()
		m.mu.Lock()
		if m.vols[r.Name] != nil { // somebody else was faster
			m.mu.Unlock()
			v.mu.Unlock()
			continue
		}
		m.vols[r.Name] = v
		m.mu.Unlock()
		if err := m.create(v); err != nil {
			m.drop(v)
			v.mu.Unlock()
			return nil, fmt.Errorf("create volume %s: %w", r.Name, err)
		}
		m.publish("create", v.rec.Name, "local", "")
		return v, nil
	}
}

// create writes the record and makes the folder.
func (m *Manager) create(v *volume) (err error) {
	var u undo.Stack
	defer u.Run(&err)
	if err := m.recs.Put(v.rec.Name, v.rec); err != nil {
		return err
	}
	u.Add(func() error { return m.recs.Delete(v.rec.Name) })
	dir := filepath.Join(m.root, v.rec.Name)
	if err := os.Mkdir(dir, 0o701); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	u.Add(func() error { return os.Remove(dir) })
	if err := os.Mkdir(m.data(v.rec.Name), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// The umask is not to decide what a container's user may do.
	err = os.Chmod(m.data(v.rec.Name), 0o755)
	if err == nil && m.uid|m.gid != 0 {
		err = os.Lchown(m.data(v.rec.Name), m.uid, m.gid)
	}
	if err != nil {
		u.Add(func() error { return os.Remove(m.data(v.rec.Name)) })
		return err
	}
	u.Keep()
	return nil
}

// drop takes a locked volume out of the table.
func (m *Manager) drop(v *volume) {
	v.gone = true
	m.mu.Lock()
	delete(m.vols, v.rec.Name)
	m.mu.Unlock()
}

// describe is the API's view of a locked volume.
func (m *Manager) describe(v *volume) apivolume.Volume {
	return apivolume.Volume{Name: v.rec.Name, Driver: "local", Scope: "local", Mountpoint: m.data(v.rec.Name),
		CreatedAt: v.rec.Created.Format(time.RFC3339), Labels: maps.Clone(v.rec.Labels), Options: maps.Clone(v.rec.Options)}
}

// Get returns one volume; fault.NotFound, with Docker's words, without it.
func (m *Manager) Get(name string) (apivolume.Volume, error) {
	v := m.get(name)
	if v == nil {
		return apivolume.Volume{}, notFound(name)
	}
	defer v.mu.Unlock()
	return m.describe(v), nil
}

func notFound(name string) error { return fault.NotFound.Errorf("get %s: no such volume", name) }

// names lists the volumes in order.
func (m *Manager) names() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.vols))
}

// Use makes the volume when it is absent, mounts it where it has options for
// that, and counts the container as its user. Safe to repeat.
func (m *Manager) Use(ctx context.Context, r model.VolumeRequest, containerID string) (model.Volume, error) {
	v, err := m.make(ctx, r)
	if err != nil {
		return model.Volume{}, err
	}
	defer v.mu.Unlock()
	if err := m.mount(v); err != nil {
		return model.Volume{}, err
	}
	v.users[containerID] = true
	_, anonymous := v.rec.Labels[AnonymousLabel]
	out := model.Volume{Name: v.rec.Name, Driver: "local", Mountpoint: m.data(v.rec.Name), Anonymous: anonymous}
	if out.Empty, err = isEmpty(out.Mountpoint); err != nil {
		return model.Volume{}, fmt.Errorf("volume %s: %w", v.rec.Name, err)
	}
	return out, nil
}

// Claim counts a container as a user of a volume without mounting it: what an
// agent that starts does for all containers there are. Safe to repeat; an
// absent volume is fault.NotFound.
func (m *Manager) Claim(name, containerID string) error {
	v := m.get(name)
	if v == nil {
		return notFound(name)
	}
	defer v.mu.Unlock()
	v.users[containerID] = true
	return nil
}

// Release drops a container's claim; with the last one a mount ends. Safe to
// repeat.
func (m *Manager) Release(_ context.Context, name, containerID string) error {
	v := m.get(name)
	if v == nil {
		return nil
	}
	defer v.mu.Unlock()
	delete(v.users, containerID)
	if len(v.users) == 0 {
		return m.unmount(v)
	}
	return nil
}

// Users returns the ids of the containers that refer to the volume.
func (m *Manager) Users(name string) []string {
	v := m.get(name)
	if v == nil {
		return nil
	}
	defer v.mu.Unlock()
	return slices.Sorted(maps.Keys(v.users))
}

// Remove deletes a volume and its data. In use it is fault.Conflict, absent
// fault.NotFound.
func (m *Manager) Remove(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	v := m.get(name)
	if v == nil {
		return notFound(name)
	}
	defer v.mu.Unlock()
	if len(v.users) > 0 {
		return fault.Conflict.Errorf("remove %s: volume is in use - [%s]", name,
			strings.Join(slices.Sorted(maps.Keys(v.users)), ", "))
	}
	return m.remove(v)
}

func (m *Manager) remove(v *volume) error {
	if err := m.unmount(v); err != nil {
		return err
	}
	// os.RemoveAll works by descriptors and follows no symbolic link.
	if err := os.RemoveAll(filepath.Join(m.root, v.rec.Name)); err != nil {
		return fmt.Errorf("remove volume %s: %w", v.rec.Name, err)
	}
	if err := m.recs.Delete(v.rec.Name); err != nil {
		return err
	}
	m.drop(v)
	m.publish("destroy", v.rec.Name, "local", "")
	return nil
}

// isEmpty reports whether a folder has no entries; lost+found does not count.
func isEmpty(dir string) (bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer f.Close()
	list, err := f.Readdirnames(2)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	return len(list) == 0 || len(list) == 1 && list[0] == "lost+found", nil
}

func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return maps.Clone(m)
}

// notMounted reports the errors of unmounting what is no mount.
func notMounted(err error) bool { return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) }
