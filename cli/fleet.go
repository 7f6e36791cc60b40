package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v4"

	"machine/cli/lifecycle"
	"machine/cli/store"
	"machine/drivers"
)

// A fleetFile says which machines there should be:
//
//	machines:
//	  web:
//	    driver: generic
//	    count: 3                # web-1, web-2, web-3
//	    options:                # the driver's flags, {n} is the number
//	      generic-ip-address: 10.0.0.{n}
//	    labels: [role=web]
//	    engine: [log-level=debug]
//	    context: true           # a docker context for each
//	    hostname: web{n}        # what the hosts are to be called
//	    install-script: host.sh # run on each host before the engine; a path from the file's folder
type fleetFile struct {
	Machines map[string]fleetGroup `yaml:"machines"`
}

type fleetGroup struct {
	Driver     string         `yaml:"driver"`
	Count      *int           `yaml:"count"`
	Options    map[string]any `yaml:"options"`
	Labels     []string       `yaml:"labels"`
	Engine     []string       `yaml:"engine"`
	Env        []string       `yaml:"env"`
	Insecure   []string       `yaml:"insecure-registries"`
	Mirrors    []string       `yaml:"registry-mirrors"`
	StorageDrv string         `yaml:"storage-driver"`
	SANs       []string       `yaml:"tls-sans"`
	Context    bool           `yaml:"context"`
	Hostname   string         `yaml:"hostname"`
	Script     string         `yaml:"install-script"`
}

func fleetFlags(more ...cli.Flag) []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "file", Aliases: []string{"f"}, Value: "fleet.yaml", Usage: "File that declares the machines"},
		&cli.IntFlag{Name: "parallel", Aliases: []string{"p"}, Value: 16, Usage: "How many machines at once"},
	}, more...)
}

const applyText = `Makes what is missing, goes on with what was cut off, starts what is stopped, changes what
differs, and leaves the rest alone. What is taken out of the file goes back to its default.
Machines that the file does not name are not touched. A file:

machines:
  web:
    driver: generic
    count: 3                          # web-1 to web-3
    options:                          # of the driver; {n} is the number
      generic-ip-address: 10.0.0.{n}
    labels: [role=web]
    engine: [log-level=debug]
    context: true

Further: env, insecure-registries, registry-mirrors, storage-driver, tls-sans, hostname, install-script.`

func (p *program) applyCommand() *cli.Command {
	return &cli.Command{Name: "apply", Aliases: []string{"up"}, Usage: "Bring all machines of a fleet file to the state that it declares", ArgsUsage: " ",
		Description: applyText,
		Flags:       fleetFlags(&cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "Only tell what would be done"}),
		Action:      p.up}
}

func (p *program) downCommand() *cli.Command {
	return &cli.Command{Name: "down", Usage: "Stop, or remove, all machines of a fleet file", ArgsUsage: " ",
		Flags:  fleetFlags(&cli.BoolFlag{Name: "rm", Usage: "Remove the machines"}, &cli.BoolFlag{Name: "y", Usage: "Do not ask"}),
		Action: p.down}
}

func (p *program) planCommand() *cli.Command {
	return &cli.Command{Name: "plan", Usage: "Show what apply would do", ArgsUsage: " ", Flags: fleetFlags(),
		Action: func(c *cli.Context) error { return p.fleet(c, true) }}
}

func (p *program) up(c *cli.Context) error { return p.fleet(c, c.Bool("dry-run")) }

// fleet brings all machines to their state, or only tells what that would be.
func (p *program) fleet(c *cli.Context, dry bool) error {
	fleet, names, err := p.readFleet(c.String("file"))
	if err != nil {
		return err
	}
	var mu sync.Mutex
	count := map[string]int{}
	err = lifecycle.Each(c.Context, names, c.Int("parallel"), func(ctx context.Context, name string) error {
		did, err := p.upOne(ctx, name, fleet[name], dry)
		if err != nil {
			did = "failed"
			err = fmt.Errorf("%s: %w", name, err)
		}
		mu.Lock()
		defer mu.Unlock()
		count[did]++
		return err
	})
	var parts []string
	for _, did := range []string{"created", "changed", "started", "unchanged", "failed"} {
		if count[did] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", count[did], did))
		}
	}
	what := "Fleet"
	if dry {
		what = "Plan"
	}
	p.say("%s: %s", what, strings.Join(parts, ", "))
	return err
}

// upOne brings one machine to its state, and says in a word what that took.
func (p *program) upOne(ctx context.Context, name string, want lifecycle.Create, dry bool) (string, error) {
	m := p.m.Named(name)
	if p.m.Store.Exists(name) {
		if in := p.m.Store.Pending(name); in == nil || in.Op != "create" {
			return p.upThere(ctx, m, name, want, dry)
		}
		want.Resume = true
	}
	if dry {
		p.say("%s: would be created", name)
		return "created", nil
	}
	return "created", m.Create(ctx, want)
}

// upThere changes and starts a machine that there is.
func (p *program) upThere(ctx context.Context, m *lifecycle.Manager, name string, want lifecycle.Create, dry bool) (string, error) {
	diffs, err := m.Diff(want)
	if err != nil {
		return "", err
	}
	if len(diffs) > 0 {
		if dry {
			p.say("%s: would be changed: %s", name, strings.Join(diffs, "; "))
			return "changed", nil
		}
		if err := m.Change(ctx, want); err != nil {
			return "", err
		}
		p.say("%s: changed: %s", name, strings.Join(diffs, "; "))
		return "changed", nil
	}
	mc, err := m.Load(name)
	if err != nil {
		return "", err
	}
	st, err := mc.Driver.State(ctx)
	_ = mc.Close()
	switch {
	case err != nil:
		return "", err
	case st == drivers.Running:
		p.say("%s: runs", name)
		return "unchanged", nil
	case dry:
		p.say("%s: would be started", name)
		return "started", nil
	}
	if err = m.Start(ctx, name); errors.Is(err, lifecycle.ErrAlready) {
		err = nil
	}
	return "started", err
}

func (p *program) down(c *cli.Context) error {
	_, names, err := p.readFleet(c.String("file"))
	if err != nil {
		return err
	}
	var there []string
	for _, n := range names {
		if p.m.Store.Exists(n) {
			there = append(there, n)
		}
	}
	if c.Bool("rm") && !c.Bool("y") && len(there) > 0 {
		p.say("About to remove %s", strings.Join(there, ", "))
		if ok, _ := p.confirm("Are you sure? (y/n): "); !ok {
			return nil
		}
	}
	return lifecycle.Each(c.Context, there, c.Int("parallel"), func(ctx context.Context, name string) error {
		if c.Bool("rm") {
			return p.m.Remove(ctx, name, false)
		}
		err := p.m.Stop(ctx, name)
		if errors.Is(err, lifecycle.ErrAlready) {
			return nil
		}
		return err
	})
}

// readFleet returns the machines of a file by name, and the names sorted.
func (p *program) readFleet(file string) (map[string]lifecycle.Create, []string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, err
	}
	var f fleetFile
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&f); err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, fmt.Errorf("%s: %w", file, err)
	}
	all := map[string]lifecycle.Create{}
	for group, g := range f.Machines {
		kind, err := p.m.Kind(g.Driver)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %s: %w", file, group, err)
		}
		for _, m := range g.members(group) {
			cr, err := g.create(filepath.Dir(file), m, kind)
			if err != nil {
				return nil, nil, fmt.Errorf("%s: %s: %w", file, m.name, err)
			}
			if _, twice := all[m.name]; twice {
				return nil, nil, fmt.Errorf("%s: machine %q is named twice", file, m.name)
			}
			all[m.name] = cr
		}
	}
	var names []string
	for n := range all {
		names = append(names, n)
	}
	sort.Slice(names, func(i, j int) bool { return naturalLess(names[i], names[j]) })
	return all, names, nil
}

type member struct {
	name   string
	number int
}

func (g fleetGroup) members(group string) []member {
	if g.Count == nil {
		return []member{{group, 1}}
	}
	var list []member
	for i := 1; i <= min(*g.Count, 10000); i++ {
		list = append(list, member{fmt.Sprintf("%s-%d", group, i), i})
	}
	return list
}

// create is what one machine of the group is made with. dir is where the
// fleet's file is.
func (g fleetGroup) create(dir string, who member, kind drivers.Kind) (lifecycle.Create, error) {
	number := who.number
	o := drivers.Options{}
	for _, f := range kind.Flags {
		o[f.Name] = f.Value
		if s, ok := f.Value.(string); ok && f.Env != "" && s == "" {
			o[f.Name] = os.Getenv(f.Env)
		}
	}
	for k, v := range g.Options {
		def, known := o[k]
		if !known {
			return lifecycle.Create{}, fmt.Errorf("driver %q has no option %q", kind.Name, k)
		}
		value, err := fleetValue(v, def, number)
		if err != nil {
			return lifecycle.Create{}, fmt.Errorf("option %q: %w", k, err)
		}
		o[k] = value
	}
	var script []byte
	if g.Script != "" {
		file, err := g.Script, error(nil)
		if !filepath.IsAbs(file) {
			file = filepath.Join(dir, file)
		}
		if script, err = lifecycle.ReadScript(file); err != nil {
			return lifecycle.Create{}, err
		}
	}
	hostname := strings.ReplaceAll(g.Hostname, "{n}", fmt.Sprint(number))
	return lifecycle.Create{Name: who.name, Driver: kind.Name, Options: o, SANs: g.SANs, Context: g.Context, Hostname: hostname, Script: script, Engine: store.EngineOptions{
		Labels: g.Labels, ArbitraryFlags: g.Engine, Env: g.Env, InsecureRegistry: g.Insecure, RegistryMirror: g.Mirrors,
		StorageDriver: g.StorageDrv, TlsVerify: true,
	}}, nil
}

// fleetValue gives v the type of the flag's default.
func fleetValue(v, def any, number int) (any, error) {
	n := fmt.Sprint(number)
	switch def.(type) {
	case string:
		return strings.ReplaceAll(fmt.Sprint(v), "{n}", n), nil
	case int:
		if i, ok := v.(int); ok {
			return i, nil
		}
	case bool:
		if b, ok := v.(bool); ok {
			return b, nil
		}
	case []string:
		list, ok := v.([]any)
		if !ok {
			break
		}
		out := make([]string, 0, len(list))
		for _, e := range list {
			out = append(out, strings.ReplaceAll(fmt.Sprint(e), "{n}", n))
		}
		return out, nil
	}
	return nil, fmt.Errorf("%v should be a %T", v, def)
}
