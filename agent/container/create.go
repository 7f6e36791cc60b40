package container

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"

	"machine/agent/failpoint"
	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/oci"
	"machine/agent/undo"
)

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// maxName bounds names, as host names and file names are bounded.
const maxName = 128

// Create makes a container from an image, ready to start. An error leaves
// nothing behind. The kinds: NotFound for the image (clients then pull),
// Conflict for the name, Invalid for the settings.
func (m *Manager) Create(ctx context.Context, name, platform string, req *container.CreateRequest) (resp container.CreateResponse, err error) {
	if req.Config == nil {
		return resp, fault.Invalid.Errorf("config cannot be empty in order to create a container")
	}
	if err := checkNUL(req); err != nil {
		return resp, err
	}
	hc := req.HostConfig
	if hc == nil {
		hc = &container.HostConfig{}
	}
	img, err := m.o.Images.Get(ctx, req.Config.Image)
	if err != nil {
		return resp, err
	}
	foreign, err := checkPlatform(platform, img, req.Config.Image)
	if err != nil {
		return resp, err
	}
	warn, err := m.settle(req.Config, hc, img)
	if err != nil {
		return resp, err
	}
	warn = append(foreign, warn...)
	var u undo.Stack
	defer u.Run(&err)
	id := model.NewID()
	name, err = m.claimName(name, id)
	if err != nil {
		return resp, err
	}
	u.Add(func() error { m.releaseName(name, id); return nil })
	failpoint.Hit("create.named")
	r := &Record{
		ID: id, Name: name, Created: m.o.Clock.Now().UTC(), Config: req.Config, HostConfig: hc,
		ImageID: img.ID,
		State:   State{Status: container.StateCreated}, Warnings: warn,
	}
	r.Path, r.Args = command(req.Config)
	if err = m.settleNetworks(r, req.NetworkingConfig); err != nil {
		return resp, err
	}
	if r.Config.Hostname == "" {
		r.Config.Hostname = defaultHostname(r)
	}
	if err = m.build(ctx, r, img, &u); err != nil {
		return resp, err
	}
	failpoint.Hit("create.built")
	c := m.newContainer(r)
	if err = c.set(func(*Record) {}); err != nil {
		return resp, err
	}
	m.mu.Lock()
	m.byID[id] = c
	m.mu.Unlock()
	failpoint.Hit("create.saved")
	u.Keep()
	c.event(events.ActionCreate)
	return container.CreateResponse{ID: id, Warnings: append([]string{}, warn...)}, nil // never null
}

// checkNUL refuses NUL bytes anywhere in the request: the kernel would take
// what comes before one for the whole.
func checkNUL(req *container.CreateRequest) error {
	b, err := json.Marshal(req)
	if err != nil {
		return fault.Invalid.Errorf("invalid config: %w", err)
	}
	if bytes.Contains(b, []byte(`\u0000`)) && !bytes.Contains(b, []byte(`\\u0000`)) {
		return fault.Invalid.Errorf("invalid config: a value contains a NUL byte")
	}
	return nil
}

// build makes what a container owns on disk: its folder, its writable layer,
// its volumes.
func (m *Manager) build(ctx context.Context, r *Record, img *model.Image, u *undo.Stack) error {
	if err := os.Mkdir(m.dir(r.ID), 0o710); err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	u.Add(func() error { return os.RemoveAll(m.dir(r.ID)) })
	failpoint.Hit("create.dir")
	if err := m.o.Layers.Create(ctx, r.ID, img.TopLayer); err != nil {
		return err
	}
	clean := context.WithoutCancel(ctx)
	u.Add(func() error { return m.o.Layers.Remove(clean, r.ID) })
	failpoint.Hit("create.layer")
	return m.resolveMounts(ctx, r, img, u)
}

// checkPlatform refuses an image of another platform than was asked for, and
// warns of one that is for another platform than the host's.
func checkPlatform(platform string, img *model.Image, ref string) (warn []string, err error) {
	have := img.Config.Platform
	if platform == "" {
		if host := oci.Host(); !oci.Matches(host, have) {
			warn = append(warn, fmt.Sprintf("The requested image's platform (%s) does not match the detected host platform (%s) and no specific platform was requested", oci.FormatPlatform(have), oci.FormatPlatform(host)))
		}
		return warn, nil
	}
	want, err := oci.ParsePlatform(platform)
	if err != nil {
		return nil, err
	}
	if !oci.Matches(want, have) {
		return nil, fault.NotFound.Errorf("image with reference %s was found but its platform (%s) does not match the specified platform (%s)", ref, oci.FormatPlatform(have), oci.FormatPlatform(want))
	}
	return nil, nil
}

// claimName reserves a name, or makes one up.
func (m *Manager) claimName(name, id string) (string, error) {
	name = strings.TrimPrefix(name, "/")
	m.mu.Lock()
	defer m.mu.Unlock()
	if name == "" {
		for try := range 6 {
			if n := randomName(try); m.names[n] == "" {
				m.names[n] = id
				return n, nil
			}
		}
		m.names[id[:12]] = id
		return id[:12], nil
	}
	if len(name) > maxName {
		return "", fault.Invalid.Errorf("Invalid container name: %d characters are too many, %d are allowed", len(name), maxName)
	}
	if !validName.MatchString(name) {
		return "", fault.Invalid.Errorf("Invalid container name (%s), only %s are allowed", name, "[a-zA-Z0-9][a-zA-Z0-9_.-]")
	}
	if other, ok := m.names[name]; ok {
		return "", fault.Conflict.Errorf("Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+name, other)
	}
	m.names[name] = id
	return name, nil
}

// releaseName gives a name back if it is still that container's.
func (m *Manager) releaseName(name, id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names[name] == id {
		delete(m.names, name)
	}
}

// settle merges the image's config into the request's, fills in defaults,
// and checks the result.
func (m *Manager) settle(cfg *container.Config, hc *container.HostConfig, img *model.Image) ([]string, error) {
	if err := mergeImage(cfg, img); err != nil {
		return nil, err
	}
	if len(cfg.Entrypoint) == 0 && len(cfg.Cmd) == 0 {
		return nil, fault.Invalid.Errorf("no command specified")
	}
	if cfg.WorkingDir != "" && !strings.HasPrefix(cfg.WorkingDir, "/") {
		return nil, fault.Invalid.Errorf("the working directory '%s' is invalid, it needs to be an absolute path", cfg.WorkingDir)
	}
	for _, s := range slices.Concat([]string(cfg.Entrypoint), []string(cfg.Cmd), []string{cfg.WorkingDir, cfg.User, cfg.Hostname, cfg.Domainname}) {
		if strings.ContainsRune(s, 0) { // the kernel would take it for the end
			return nil, fault.Invalid.Errorf("invalid value %q: it contains a NUL byte", s)
		}
	}
	for _, e := range cfg.Env {
		if e == "" || e[0] == '=' || strings.ContainsRune(e, 0) {
			return nil, fault.Invalid.Errorf("invalid environment variable: %s", e)
		}
	}
	if cfg.StopSignal != "" {
		if _, err := model.ParseSignal(cfg.StopSignal); err != nil {
			return nil, err
		}
	}
	if err := checkHealth(cfg.Healthcheck); err != nil {
		return nil, err
	}
	return m.settleHost(hc)
}

// mergeImage gives the container what the image says and the request leaves
// open (moby's daemon.merge).
func mergeImage(cfg *container.Config, img *model.Image) error {
	ic := img.Config.Config
	if cfg.User == "" {
		cfg.User = ic.User
	}
	if len(cfg.ExposedPorts) == 0 {
		cfg.ExposedPorts = nil // shown as Docker shows none
	}
	for p := range ic.ExposedPorts {
		port, err := network.ParsePort(p)
		if err != nil {
			return fault.Invalid.Errorf("image exposes port %q: %w", p, err)
		}
		if cfg.ExposedPorts == nil {
			cfg.ExposedPorts = network.PortSet{}
		}
		cfg.ExposedPorts[port] = struct{}{}
	}
	cfg.Env = mergeEnv(cfg.Env, ic.Env)
	labels := maps.Clone(ic.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, cfg.Labels)
	cfg.Labels = labels
	if len(cfg.Entrypoint) == 0 {
		if len(cfg.Cmd) == 0 {
			cfg.Cmd = ic.Cmd
		}
		if cfg.Entrypoint == nil {
			cfg.Entrypoint = ic.Entrypoint
		}
	}
	if len(cfg.Entrypoint) == 1 && cfg.Entrypoint[0] == "" {
		cfg.Entrypoint = nil
	}
	if cfg.WorkingDir == "" {
		cfg.WorkingDir = ic.WorkingDir
	}
	if len(cfg.Volumes) == 0 {
		cfg.Volumes = nil
	}
	for v := range ic.Volumes {
		if cfg.Volumes == nil {
			cfg.Volumes = map[string]struct{}{}
		}
		cfg.Volumes[v] = struct{}{}
	}
	if cfg.StopSignal == "" {
		cfg.StopSignal = ic.StopSignal
	}
	cfg.Healthcheck = mergeHealth(cfg.Healthcheck, ic.Healthcheck)
	return nil
}

// mergeEnv adds the image's variables that the request does not set.
func mergeEnv(env, image []string) []string {
	set := map[string]bool{}
	for _, e := range env {
		k, _, _ := strings.Cut(e, "=")
		set[k] = true
	}
	var out []string
	for _, e := range image {
		if k, _, _ := strings.Cut(e, "="); !set[k] {
			out = append(out, e)
		}
	}
	return append(slices.Clone(env), out...)
}

// command is what inspect shows as Path and Args.
func command(cfg *container.Config) (string, []string) {
	all := slices.Concat([]string(cfg.Entrypoint), []string(cfg.Cmd))
	if len(all) == 0 {
		return "", []string{}
	}
	return all[0], append([]string{}, all[1:]...)
}

// defaultHostname is the short id, or the host's own name in its network or
// UTS namespace.
func defaultHostname(r *Record) string {
	if r.HostConfig.NetworkMode.IsHost() || r.HostConfig.UTSMode.IsHost() {
		if h, err := os.Hostname(); err == nil {
			return h
		}
	}
	return r.ID[:12]
}

// settleNetworks turns the request's networking into the record's table.
// Names are resolved at start: a missing network is no reason to pull.
func (m *Manager) settleNetworks(r *Record, nc *network.NetworkingConfig) error {
	hc := r.HostConfig
	mode := string(hc.NetworkMode)
	if mode == "" || mode == "default" {
		mode = "bridge"
	}
	if other, ok := strings.CutPrefix(mode, "container:"); ok {
		c, err := m.find(other)
		if err != nil {
			return fault.Invalid.Errorf("network of container %s: %w", other, err)
		}
		hc.NetworkMode = container.NetworkMode("container:" + c.id)
		r.Networks = map[string]*network.EndpointSettings{}
		if r.Config.Hostname != "" {
			return fault.Invalid.Errorf("conflicting options: hostname and the network mode")
		}
		r.Config.Hostname = c.rec.Load().Config.Hostname
		return nil
	}
	hc.NetworkMode = container.NetworkMode(mode)
	r.Networks = map[string]*network.EndpointSettings{}
	if nc != nil {
		for name, ep := range nc.EndpointsConfig {
			if ep == nil {
				ep = &network.EndpointSettings{}
			}
			if _, real, _, err := m.o.Networks.Resolve(name); err == nil {
				name = real
			}
			r.Networks[name] = ep
		}
	}
	if _, real, _, err := m.o.Networks.Resolve(mode); err == nil && real != mode {
		mode = real
	}
	if mode == "default" {
		mode = "bridge"
	}
	if _, ok := r.Networks[mode]; !ok && (len(r.Networks) == 0 || mode != "bridge" || hc.NetworkMode == "bridge") {
		r.Networks[mode] = &network.EndpointSettings{}
	}
	return checkEndpoints(r)
}

// checkEndpoints refuses what cannot be had on a network.
func checkEndpoints(r *Record) error {
	for name, ep := range r.Networks {
		if name == "host" || name == "none" {
			if len(r.Networks) > 1 {
				return fault.Invalid.Errorf("container cannot be connected to %s network and others at once", name)
			}
		}
		builtin := name == "bridge" || name == "host" || name == "none"
		if builtin && ep.IPAMConfig != nil && (ep.IPAMConfig.IPv4Address.IsValid() || ep.IPAMConfig.IPv6Address.IsValid()) {
			return fault.Invalid.Errorf("invalid config for network %s: user specified IP address is supported on user defined networks only", name)
		}
		if name == "bridge" && len(ep.Aliases) > 0 {
			return fault.Invalid.Errorf("invalid endpoint settings for network bridge: network-scoped aliases are only supported for user-defined networks")
		}
	}
	return nil
}
