package container

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/state"
)

// Options are what a Manager is made of. All fields but Clock are needed.
type Options struct {
	Root     string // data root: containers/ and records/ are below it
	ExecRoot string // run-time files: a task's directory is ExecRoot/tasks/ID
	Images   Images
	Layers   Layers
	Networks Networks
	Volumes  Volumes
	Tasks    Tasks
	Archive  Archive
	ReadLog  ReadLog
	Publish  func(t events.Type, a events.Action, id string, attrs map[string]string)
	Defaults Defaults
	Clock    Clock          // nil: the wall clock
	Reserve  *state.Reserve // may be nil
	Log      *slog.Logger
}

// Defaults are the engine's settings that a container inherits.
type Defaults struct {
	LogConfig    container.LogConfig
	Init         bool
	ShmSize      int64
	PidsLimit    int64
	CgroupParent string
	CgroupV2     bool
	Ulimits      []*container.Ulimit
	DNS          model.DNSConfig
	NoNewPrivs   bool
	AppArmor     AppArmor
	Seccomp      string       // "unconfined", a profile's JSON, or empty for the built-in one
	IPCMode      string       // private when empty
	CgroupnsMode string       // as Docker chooses when empty
	UsernsRemap  *model.IDMap // nil: containers run in the agent's user namespace
}

// AppArmor is what there is of it: support in the kernel, and Docker's default
// profile loaded.
type AppArmor struct{ Kernel, Default bool }

// A Manager keeps all containers of an engine. It is safe for concurrent use.
type Manager struct {
	o    Options
	recs *state.Store[Record]

	mu    sync.RWMutex
	byID  map[string]*Container
	names map[string]string // name -> id; also names being claimed
	execs map[string]*execState

	bg     sync.WaitGroup // monitors and other owned goroutines
	ctx    context.Context
	cancel context.CancelFunc
}

// A Container is one container, its record and what runs of it.
type Container struct {
	m   *Manager
	id  string
	op  chan struct{} // capacity 1: the op lock
	rec atomic.Pointer[Record]

	mu        sync.Mutex
	task      model.Task
	endpoints map[string]*model.Endpoint // by network name, while running
	waiters   []waiter
	run       *run // the present one or the last
	stopping  bool // an act wants it stopped: no restart
	stopRetry context.CancelFunc
	exitCode  int // of the last end, for waiters
	streak    int // restarts in a row, for the back-off
	health    *prober
	removed   bool
	execIDs   map[string]bool
	pending   []pendingAttach
}

// Open reads the records and re-attaches what runs; Restore must follow once
// networks know the sandboxes. Broken records are reported and set aside.
func Open(o Options) (*Manager, error) {
	if o.Clock == nil {
		o.Clock = wallClock{}
	}
	for _, d := range []string{"containers", "records"} {
		if err := os.MkdirAll(filepath.Join(o.Root, d), 0o700); err != nil {
			return nil, fmt.Errorf("open containers: %w", err)
		}
	}
	recs, broken, err := state.OpenChecked(filepath.Join(o.Root, "records", "containers"), CheckRecord)
	if err != nil {
		return nil, err
	}
	for _, b := range broken {
		o.Log.Error("container set aside", "error", b)
	}
	recs.SetReserve(o.Reserve)
	m := &Manager{o: o, recs: recs, byID: map[string]*Container{}, names: map[string]string{}, execs: map[string]*execState{}}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	for id, r := range recs.All() {
		c := m.newContainer(&r)
		m.byID[id] = c
		m.names[r.Name] = id
	}
	return m, nil
}

// CheckRecord refuses what is JSON but no container's record.
func CheckRecord(id string, r *Record) error {
	if r.ID != id || r.Name == "" || r.Config == nil || r.HostConfig == nil {
		return errors.New("the record is incomplete")
	}
	return nil
}

func (m *Manager) newContainer(r *Record) *Container {
	c := &Container{m: m, id: r.ID, op: make(chan struct{}, 1), execIDs: map[string]bool{}}
	c.rec.Store(r)
	return c
}

// Close stops watching; containers run on. It waits for the monitors.
func (m *Manager) Close() {
	m.cancel()
	for _, c := range m.all() {
		c.stopHealth()
	}
	m.bg.Wait()
}

// all returns the containers, in no order.
func (m *Manager) all() []*Container {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Collect(maps.Values(m.byID))
}

// find resolves a full id, an exact name or a unique id prefix.
func (m *Manager) find(ref string) (*Container, error) {
	name := strings.TrimPrefix(ref, "/")
	m.mu.RLock()
	defer m.mu.RUnlock()
	if c, ok := m.byID[ref]; ok {
		return c, nil
	}
	if c, ok := m.byID[m.names[name]]; ok && name != "" {
		return c, nil
	}
	var found *Container
	if ref != "" && model.IsHex(ref) {
		for id, c := range m.byID {
			if strings.HasPrefix(id, ref) {
				if found != nil {
					return nil, fault.Invalid.Errorf("multiple IDs found with provided prefix: %s", ref)
				}
				found = c
			}
		}
	}
	if found == nil {
		return nil, fault.NotFound.Errorf("No such container: %s", ref)
	}
	return found, nil
}

// Record returns what is known of a container.
func (m *Manager) Record(ref string) (*Record, error) {
	c, err := m.find(ref)
	if err != nil {
		return nil, err
	}
	return c.rec.Load(), nil
}

// hold finds a container and takes its op lock. The caller unlocks it.
func (m *Manager) hold(ctx context.Context, ref string) (*Container, error) {
	c, err := m.find(ref)
	if err != nil {
		return nil, err
	}
	return c, c.lock(ctx)
}

// lock takes the op lock, or fails when ctx ends first.
func (c *Container) lock(ctx context.Context) error {
	select {
	case c.op <- struct{}{}:
		return nil
	default:
	}
	select {
	case c.op <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fault.Unavailable.Errorf("container %s is busy: %w", c.rec.Load().Name, ctx.Err())
	}
}

func (c *Container) unlock() { <-c.op }

// set changes the record and stores it durably.
func (c *Container) set(f func(*Record)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.setLocked(f)
}

func (c *Container) setLocked(f func(*Record)) error {
	r := c.rec.Load().clone()
	f(r)
	if c.removed {
		c.rec.Store(r)
		return nil
	}
	if err := c.m.recs.Put(c.id, *r); err != nil {
		return err
	}
	c.rec.Store(r)
	return nil
}

// note changes the record in memory only: for what a restart finds out anew.
func (c *Container) note(f func(*Record)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rec.Load().clone()
	f(r)
	c.rec.Store(r)
}

// event publishes with the attributes that clients rely on.
func (c *Container) event(a events.Action, extra ...string) {
	r := c.rec.Load()
	attrs := maps.Clone(r.Config.Labels)
	if attrs == nil {
		attrs = map[string]string{}
	}
	attrs["image"], attrs["name"] = r.Config.Image, r.Name
	for i := 0; i+1 < len(extra); i += 2 {
		attrs[extra[i]] = extra[i+1]
	}
	c.m.o.Publish(events.ContainerEventType, a, c.id, attrs)
}

// dir is the container's own folder: hosts, hostname, resolv.conf, logs.
func (m *Manager) dir(id string) string { return filepath.Join(m.o.Root, "containers", id) }

func (m *Manager) taskDir(id string) string { return filepath.Join(m.o.ExecRoot, "tasks", id) }

// Dir returns the container's folder for a record.
func (m *Manager) Dir(id string) string { return m.dir(id) }
