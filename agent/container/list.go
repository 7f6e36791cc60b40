package container

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"machine/agent/fault"
	"machine/agent/model"
)

// ListOptions are those of ps.
type ListOptions struct {
	All     bool
	Size    bool
	Limit   int
	Filters model.Filters
}

// listKeys are the filters that a container list knows.
var listKeys = []string{"ancestor", "before", "exited", "expose", "health", "id", "is-task", "label", "name", "network", "publish", "since", "status", "volume", "isolation"}

// List answers ps: newest first.
func (m *Manager) List(ctx context.Context, o ListOptions) ([]*container.Summary, error) {
	match, err := m.matcher(ctx, o)
	if err != nil {
		return nil, err
	}
	recs := make([]*Record, 0, 16)
	for _, c := range m.all() {
		recs = append(recs, c.rec.Load())
	}
	slices.SortFunc(recs, func(a, b *Record) int { return b.Created.Compare(a.Created) })
	now := m.o.Clock.Now()
	out := []*container.Summary{}
	means := map[string]string{}
	for _, r := range recs {
		if !match(r) {
			continue
		}
		s := m.summary(r, now)
		s.Image = m.imageName(ctx, r, means)
		if o.Size {
			s.SizeRw, s.SizeRootFs = m.sizes(ctx, r)
		}
		out = append(out, s)
		if o.Limit > 0 && len(out) == o.Limit {
			break
		}
	}
	return out, nil
}

// imageName is the name that a container was made by while it still stands
// for the same image, and else that image's id. means remembers for one list
// which image a name stands for.
func (m *Manager) imageName(ctx context.Context, r *Record, means map[string]string) string {
	name, id := r.Config.Image, string(r.ImageID)
	if name == id || id == "" {
		return name
	}
	now, known := means[name]
	if !known {
		if img, err := m.o.Images.Get(ctx, name); err == nil {
			now = string(img.ID)
		}
		means[name] = now
	}
	if now == id {
		return name
	}
	return id
}

// sizes are what the container wrote, and that with its image.
func (m *Manager) sizes(ctx context.Context, r *Record) (rw, root int64) {
	rw, err := m.o.Layers.Size(ctx, r.ID)
	if err != nil {
		return 0, 0
	}
	root = rw
	if img, err := m.o.Images.Get(ctx, string(r.ImageID)); err == nil {
		root += img.Size
	}
	return rw, root
}

// matcher compiles the filters.
func (m *Manager) matcher(ctx context.Context, o ListOptions) (func(*Record) bool, error) {
	f := o.Filters
	if err := f.Check(listKeys...); err != nil {
		return nil, err
	}
	var tests []func(*Record) bool
	test := func(t func(*Record) bool) { tests = append(tests, t) }
	all := o.All || o.Limit > 0 || len(f["status"]) > 0 || len(f["exited"]) > 0
	if len(f["before"]) > 0 || len(f["since"]) > 0 {
		all = true
	}
	if !all {
		test(func(r *Record) bool { return r.State.Running() })
	}
	if v := f["status"]; len(v) > 0 {
		for _, s := range v {
			if err := container.ValidateContainerState(container.ContainerState(s)); err != nil {
				return nil, fault.Invalid.Errorf("invalid filter 'status=%s'", s)
			}
		}
		test(func(r *Record) bool { return slices.Contains(v, string(r.State.Status)) })
	}
	if len(f["label"]) > 0 {
		test(func(r *Record) bool { return f.Labels(r.Config.Labels) })
	}
	if v := f["id"]; len(v) > 0 {
		test(func(r *Record) bool {
			return slices.ContainsFunc(v, func(p string) bool { return strings.HasPrefix(r.ID, p) })
		})
	}
	for _, add := range []func() error{
		func() error { return m.nameFilters(f, test) },
		func() error { return m.timeFilters(f, test) },
		func() error { return m.objectFilters(ctx, f, test) },
		func() error { return portFilters(f, test) },
	} {
		if err := add(); err != nil {
			return nil, err
		}
	}
	return func(r *Record) bool {
		for _, t := range tests {
			if !t(r) {
				return false
			}
		}
		return true
	}, nil
}

// nameFilters: name is an unanchored regular expression, tried with and
// without the leading slash; exited and health are values.
func (m *Manager) nameFilters(f model.Filters, test func(func(*Record) bool)) error {
	var res []*regexp.Regexp
	for _, p := range f["name"] {
		re, err := regexp.Compile(p)
		if err != nil {
			return fault.Invalid.Errorf("invalid filter 'name=%s': %w", p, err)
		}
		res = append(res, re)
	}
	if len(res) > 0 {
		test(func(r *Record) bool {
			return slices.ContainsFunc(res, func(re *regexp.Regexp) bool { return re.MatchString(r.Name) || re.MatchString("/"+r.Name) })
		})
	}
	var codes []int
	for _, s := range f["exited"] {
		n, err := strconv.Atoi(s)
		if err != nil {
			return fault.Invalid.Errorf("invalid filter 'exited=%s'", s)
		}
		codes = append(codes, n)
	}
	if len(codes) > 0 {
		test(func(r *Record) bool {
			return !r.State.Running() && r.State.HasBeenStarted && slices.Contains(codes, r.State.ExitCode)
		})
	}
	if v := f["health"]; len(v) > 0 {
		for _, s := range v {
			if err := container.ValidateHealthStatus(container.HealthStatus(s)); err != nil {
				return fault.Invalid.Errorf("invalid filter 'health=%s'", s)
			}
		}
		test(func(r *Record) bool { return slices.Contains(v, string(healthOf(r))) })
	}
	return nil
}

func healthOf(r *Record) container.HealthStatus {
	if r.State.Health == nil {
		return container.NoHealthcheck
	}
	return r.State.Health.Status
}

func (m *Manager) timeFilters(f model.Filters, test func(func(*Record) bool)) error {
	for key, keep := range map[string]func(r, than *Record) bool{
		"before": func(r, than *Record) bool { return r.Created.Before(than.Created) },
		"since":  func(r, than *Record) bool { return r.Created.After(than.Created) },
	} {
		for _, ref := range f[key] {
			c, err := m.find(ref)
			if err != nil {
				return err
			}
			than := c.rec.Load()
			test(func(r *Record) bool { return keep(r, than) })
		}
	}
	return nil
}

// objectFilters: ancestor, network, volume.
func (m *Manager) objectFilters(ctx context.Context, f model.Filters, test func(func(*Record) bool)) error {
	if v := f["ancestor"]; len(v) > 0 {
		var ids []string
		for _, ref := range v {
			if img, err := m.o.Images.Get(ctx, ref); err == nil {
				ids = append(ids, string(img.ID))
			}
		}
		test(func(r *Record) bool { return slices.Contains(ids, string(r.ImageID)) })
	}
	if v := f["network"]; len(v) > 0 {
		test(func(r *Record) bool {
			for name, e := range r.Networks {
				if slices.Contains(v, name) || slices.ContainsFunc(v, func(p string) bool { return e.NetworkID != "" && strings.HasPrefix(e.NetworkID, p) }) {
					return true
				}
			}
			return false
		})
	}
	if v := f["volume"]; len(v) > 0 {
		test(func(r *Record) bool {
			return slices.ContainsFunc(r.Mounts, func(mt Mount) bool {
				return mt.Name != "" && slices.Contains(v, mt.Name) || slices.Contains(v, mt.Destination) || slices.Contains(v, mt.Source)
			})
		})
	}
	return nil
}

func portFilters(f model.Filters, test func(func(*Record) bool)) error {
	parse := func(key string) (map[network.Port]bool, error) {
		out := map[network.Port]bool{}
		for _, s := range f[key] {
			pr, err := network.ParsePortRange(s)
			if err != nil {
				return nil, fault.Invalid.Errorf("invalid filter '%s=%s': %w", key, s, err)
			}
			for p := range pr.All() {
				out[p] = true
			}
		}
		return out, nil
	}
	pub, err := parse("publish")
	if err != nil {
		return err
	}
	exp, err := parse("expose")
	if err != nil {
		return err
	}
	if len(pub) > 0 {
		test(func(r *Record) bool {
			for p := range r.HostConfig.PortBindings {
				if pub[p] {
					return true
				}
			}
			return false
		})
	}
	if len(exp) > 0 {
		test(func(r *Record) bool {
			for p := range r.Config.ExposedPorts {
				if exp[p] {
					return true
				}
			}
			return false
		})
	}
	return nil
}

// summary is one line of ps.
func (m *Manager) summary(r *Record, now time.Time) *container.Summary {
	s := &container.Summary{
		ID: r.ID, Names: []string{"/" + r.Name}, Image: r.Config.Image, ImageID: string(r.ImageID),
		Command: commandText(r), Created: r.Created.Unix(), Ports: portSummary(r), Labels: r.Config.Labels,
		State: r.State.Status, Status: statusText(&r.State, now), Mounts: mountPoints(r),
		NetworkSettings: &container.NetworkSettingsSummary{Networks: r.Networks},
	}
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	s.HostConfig.NetworkMode = string(r.HostConfig.NetworkMode)
	s.HostConfig.Annotations = r.HostConfig.Annotations
	if h := r.State.Health; h != nil {
		s.Health = &container.HealthSummary{Status: h.Status, FailingStreak: h.FailingStreak}
	}
	return s
}

func commandText(r *Record) string {
	parts := []string{r.Path}
	for _, a := range r.Args {
		if strings.ContainsAny(a, " \t\n'") {
			a = "'" + a + "'"
		}
		parts = append(parts, a)
	}
	return strings.Join(parts, " ")
}

// portSummary lists published and exposed ports; an all-addresses binding
// shows once for each family, as Docker has it.
func portSummary(r *Record) []container.PortSummary {
	out := []container.PortSummary{}
	for p, bs := range r.Ports {
		if len(bs) == 0 {
			out = append(out, container.PortSummary{PrivatePort: p.Num(), Type: string(p.Proto())})
		}
		for _, b := range bs {
			n, _ := strconv.ParseUint(b.HostPort, 10, 16)
			out = append(out, container.PortSummary{IP: b.HostIP, PrivatePort: p.Num(), PublicPort: uint16(n), Type: string(p.Proto())})
		}
	}
	slices.SortFunc(out, func(a, b container.PortSummary) int {
		if d := int(a.PrivatePort) - int(b.PrivatePort); d != 0 {
			return d
		}
		return a.IP.Compare(b.IP)
	})
	return out
}

// statusText is the STATUS column of docker ps.
func statusText(s *State, now time.Time) string {
	switch s.Status {
	case container.StateRunning, container.StatePaused:
		up := "Up " + units.HumanDuration(now.Sub(s.StartedAt))
		if s.Status == container.StatePaused {
			return up + " (Paused)"
		}
		if h := s.Health; h != nil && h.Status != container.NoHealthcheck && h.Status != "" {
			if h.Status == container.Starting {
				return up + " (health: starting)"
			}
			return fmt.Sprintf("%s (%s)", up, h.Status)
		}
		return up
	case container.StateRestarting:
		return fmt.Sprintf("Restarting (%d) %s ago", s.ExitCode, units.HumanDuration(now.Sub(s.FinishedAt)))
	case container.StateRemoving:
		return "Removal In Progress"
	case container.StateDead:
		return "Dead"
	case container.StateCreated:
		return "Created"
	}
	if s.FinishedAt.IsZero() {
		return "Created"
	}
	return fmt.Sprintf("Exited (%d) %s ago", s.ExitCode, units.HumanDuration(now.Sub(s.FinishedAt)))
}
