package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"

	"machine/agent/api"
	"machine/agent/apparmor"
	"machine/agent/blob"
	"machine/agent/container"
	eventfeed "machine/agent/events"
	"machine/agent/image"
	"machine/agent/layer/overlay"
	"machine/agent/logs"
	"machine/agent/model"
	"machine/agent/network"
	"machine/agent/network/bridge"
	"machine/agent/network/firewall"
	"machine/agent/network/host"
	"machine/agent/network/ipam"
	"machine/agent/network/ipvlan"
	"machine/agent/network/link"
	"machine/agent/network/macvlan"
	"machine/agent/network/null"
	"machine/agent/registry"
	"machine/agent/shim"
	"machine/agent/state"
	"machine/agent/subid"
	"machine/agent/volume"
)

// An Agent is one engine: all its parts, and nothing of its own.
type Agent struct {
	c          *Config
	now        atomic.Pointer[Config] // c, but for what reload has changed
	level      *slog.LevelVar
	log        *slog.Logger
	id         string
	backing    string
	cgroupV2   bool
	swapLimit  bool
	events     *eventfeed.Feed
	blobs      *blob.Store
	layers     *overlay.Store
	images     *imageStore
	hub        *registry.Client
	volumes    *volume.Manager
	networks   *network.Manager
	tasks      *shim.Shim
	containers *container.Manager
	reserve    *state.Reserve
	armor      container.AppArmor
	remap      *model.IDMap // nil without --userns-remap
}

// reserved is the disk space that lets containers be stopped and removed when
// the disk is full.
const reserved = 16 << 20

// memoryGoal keeps the idle agent small: it is told to give memory back early.
const memoryGoal = 40

// Run serves until ctx ends. Containers run on afterwards. It answers only
// when all that ran before has been found again.
func Run(ctx context.Context, c *Config, stderr io.Writer) error {
	debug.SetGCPercent(memoryGoal)
	c.exportProxies()
	log, level := newLogger(c, stderr)
	unlock, err := lockRoot(c)
	if err != nil {
		return err
	}
	defer unlock()
	a, err := New(ctx, c, log)
	if err != nil {
		return err
	}
	defer a.Close()
	a.level = level
	k := &keys{c: c}
	if c.TLS {
		if err := k.load(); err != nil {
			return err
		}
	}
	listeners, err := listen(c, k)
	if err != nil {
		return err
	}
	stop := a.reload(ctx, k)
	defer stop()
	log.Info("agent is ready", "version", Version, "hosts", strings.Join(c.Hosts, " "))
	return serve(ctx, listeners, a.Handler(), log)
}

// New builds an engine from its configuration and brings back what ran.
// Close it when done.
func New(ctx context.Context, c *Config, log *slog.Logger) (a *Agent, err error) {
	a = &Agent{c: c, log: log, events: &eventfeed.Feed{}}
	a.now.Store(c)
	_, err = os.Stat("/sys/fs/cgroup/cgroup.controllers")
	a.cgroupV2 = err == nil
	_, err = os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
	a.swapLimit = err == nil || a.cgroupV2
	for _, d := range []string{c.DataRoot, c.ExecRoot} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, err
		}
	}
	if err := os.Chmod(c.DataRoot, 0o710); err != nil {
		return nil, err
	}
	a.backing = fsName(c.DataRoot)
	a.reserve = state.NewReserve(filepath.Join(c.DataRoot, ".reserve"), reserved)
	if a.id, err = engineID(c.DataRoot); err != nil {
		return nil, err
	}
	if a.layers, err = overlay.Open(c.DataRoot, log); err != nil {
		return nil, err
	}
	if a.blobs, err = blob.Open(filepath.Join(c.DataRoot, "image", "blobs")); err != nil {
		return nil, err
	}
	if err := a.openImages(); err != nil {
		return nil, err
	}
	if err := a.remapIDs(); err != nil {
		return nil, err
	}
	vo := volume.Options{Root: filepath.Join(c.DataRoot, "volumes"), Log: log, Publish: a.volumeEvent}
	if a.remap != nil {
		vo.UID, vo.GID = int(a.remap.UID), int(a.remap.GID)
	}
	if a.volumes, err = volume.Open(vo); err != nil {
		return nil, err
	}
	if err := a.openNetworks(ctx); err != nil {
		return nil, err
	}
	if err := a.openContainers(ctx); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *Agent) openImages() error {
	if err := a.openRegistry(); err != nil {
		return err
	}
	s, err := image.Open(image.Options{
		Root: filepath.Join(a.c.DataRoot, "image"), Layers: a.layers, Blobs: a.blobs, Source: a.hub, Log: a.log,
		Event: a.imageEvent, Version: Version, Parallel: a.c.MaxDownloads, Uploads: a.c.MaxUploads,
	})
	a.images = &imageStore{Store: s, a: a}
	return err
}

func (a *Agent) openNetworks(ctx context.Context) (err error) {
	b := a.c.Bridge
	fw := firewall.New(a.log)
	var pools []ipam.Pool
	for _, p := range b.Pools {
		pools = append(pools, ipam.Pool{Base: p.Base, Size: p.Size})
	}
	var bind, gw netip.Addr
	if b.DefaultIP != "" {
		if bind, err = netip.ParseAddr(b.DefaultIP); err != nil {
			return fmt.Errorf("--ip: %w", err)
		}
	}
	if b.DefaultGateway != "" {
		if gw, err = netip.ParseAddr(b.DefaultGateway); err != nil {
			return fmt.Errorf("--default-gateway: %w", err)
		}
	}
	var dns []string
	for _, d := range a.c.DNS {
		dns = append(dns, d.String())
	}
	a.networks, err = network.Open(ctx, network.Options{
		Root: filepath.Join(a.c.DataRoot, "network"), ExecRoot: a.c.ExecRoot, Log: a.log, Publish: a.networkEvent,
		Drivers: []network.Driver{bridge.New(fw), &host.Driver{}, &null.Driver{}, &macvlan.Driver{}, ipvlan.New()},
		Bridge: network.BridgeOptions{
			Disabled: b.Name == "none", Name: b.Name, BIP: b.BIP, FixedCIDR: b.FixedCIDR, MTU: b.MTU, NoICC: !b.ICC,
			NoIPMasq: !b.IPMasq, DefaultBindIP: bind, DefaultGW: gw,
		},
		AddressPools: pools, IPForward: b.IPForward, HostID: a.id, Remap: a.remap, DNS: dns, DNSOpts: a.c.DNSOpts, DNSSearch: a.c.DNSSearch,
	})
	return err
}

func (a *Agent) openContainers(ctx context.Context) (err error) {
	c := a.c
	a.armor.Kernel, a.armor.Default = apparmor.SetUp(ctx, c.ExecRoot, a.log)
	a.tasks, err = shim.New(shim.Options{Root: filepath.Join(c.ExecRoot, "tasks"), CgroupParent: c.CgroupParent, Log: a.log, Remapped: a.remap != nil})
	if err != nil {
		return err
	}
	a.containers, err = container.Open(container.Options{
		Root: c.DataRoot, ExecRoot: c.ExecRoot, Images: a.images, Layers: a.containerLayers(), Networks: a.networks,
		Volumes: a.volumes, Tasks: a.tasks, Archive: archiver{}, ReadLog: logs.Read, Publish: a.events.Publish,
		Defaults: container.Defaults{
			LogConfig: apicontainer.LogConfig{Type: c.LogDriver, Config: c.LogOpts}, Init: c.Init, ShmSize: c.ShmSize, PidsLimit: c.PidsLimit,
			CgroupParent: c.CgroupParent, CgroupV2: a.cgroupV2, Ulimits: c.Ulimits, NoNewPrivs: c.NoNewPrivileges, UsernsRemap: a.remap, AppArmor: a.armor,
			Seccomp: c.Seccomp, IPCMode: c.IPCMode, CgroupnsMode: c.CgroupnsMode,
			DNS: model.DNSConfig{Servers: c.DNS, Options: c.DNSOpts, Search: c.DNSSearch},
		},
		Log: a.log, Reserve: a.reserve,
	})
	if err != nil {
		return err
	}
	a.sweepLayers(ctx)
	live := a.containers.Survivors(ctx)
	if err := a.networks.Restore(ctx, live); err != nil {
		a.log.Error("restore networks", "error", err)
	}
	a.containers.Restore(ctx, a.networks.Endpoints)
	return nil
}

// sweepLayers removes writable layers that no container owns: what a crash
// left in the middle of create.
func (a *Agent) sweepLayers(ctx context.Context) {
	for _, id := range a.layers.Containers() {
		if !a.containers.Keep(id) {
			if err := a.containerLayers().Remove(ctx, id); err != nil {
				a.log.Error("sweep layer", "id", id, "error", err)
			}
		}
	}
}

// Handler is the engine's API.
func (a *Agent) Handler() http.Handler {
	return api.New(api.Options{
		Backend: api.Backend{
			Create: a.containers, Life: a.containers, Info: a.containers, Streams: a.containers, Files: a.containers, Execs: a.containers,
			Images: a.images, Registry: a.hub, Networks: networkAPI{a}, Volumes: volumeAPI{a.volumes, a}, Events: a.events, System: a,
		},
		EngineVersion: Version, Log: a.log,
	})
}

// Close lets go of everything; containers run on.
func (a *Agent) Close() error {
	a.containers.Close()
	a.tasks.Close()
	return errors.Join(a.networks.Close(), a.layers.Close())
}

// lockRoot makes sure that one engine alone works on a data root, and writes
// the pid file.
func lockRoot(c *Config) (func(), error) {
	if err := os.MkdirAll(c.DataRoot, 0o711); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(c.DataRoot, ".lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	// A lock of the process (F_SETLK, fcntl(2)), which children do not share: one
	// that was being made when the agent was killed would hold flock(2)'s on.
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		f.Close()
		return nil, fmt.Errorf("data root %s is in use by another engine", c.DataRoot)
	}
	if c.PidFile != "" {
		err := os.MkdirAll(filepath.Dir(c.PidFile), 0o755) // an image may have no /var/run
		if err == nil {
			err = os.WriteFile(c.PidFile, fmt.Appendf(nil, "%d", os.Getpid()), 0o644)
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("pid file: %w", err)
		}
	}
	return func() {
		if c.PidFile != "" {
			os.Remove(c.PidFile)
		}
		f.Close()
	}, nil
}

// engineID is made once and kept.
func engineID(root string) (string, error) {
	name := filepath.Join(root, "engine-id")
	if b, err := os.ReadFile(name); err == nil && len(strings.TrimSpace(string(b))) > 0 {
		return strings.TrimSpace(string(b)), nil
	}
	var b [16]byte
	rand.Read(b[:])
	h := hex.EncodeToString(b[:])
	id := h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
	return id, state.WriteFile(name, []byte(id), 0o600)
}

func (a *Agent) volumeEvent(action, name, driver, containerID string) {
	attrs := map[string]string{"driver": driver}
	if containerID != "" {
		attrs["container"] = containerID
	}
	a.events.Publish(events.VolumeEventType, events.Action(action), name, attrs)
}

// pruned tells of a prune and the bytes that it freed.
func (a *Agent) pruned(what events.Type, freed uint64) {
	a.events.Publish(what, events.ActionPrune, "", map[string]string{"reclaimed": strconv.FormatUint(freed, 10)})
}

func (a *Agent) networkEvent(action, id, name, driver, containerID string) {
	attrs := map[string]string{"name": name, "type": driver}
	if containerID != "" {
		attrs["container"] = containerID
	}
	a.events.Publish(events.NetworkEventType, events.Action(action), id, attrs)
}

// remapIDs settles --userns-remap before anything uses it, and refuses it where
// layers cannot be mounted so.
func (a *Agent) remapIDs() error {
	m, err := subid.Find(a.c.UsernsRemap)
	if m == nil || err != nil {
		return err
	}
	ns, err := link.MakeUserNS(m)
	if err != nil {
		return fmt.Errorf("userns-remap: %w", err)
	}
	defer ns.Close()
	if err := a.layers.CanMap(ns, m); err != nil {
		return fmt.Errorf("userns-remap: %w", err)
	}
	a.remap = m
	a.log.Info("containers run in user namespaces", "uid", m.UID, "gid", m.GID, "size", m.Size)
	return nil
}
