package lifecycle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sort"
	"strings"
	"time"

	"machine/cli/store"
	"machine/drivers"
)

// changeOp is in the journal from a changed record on until the host is so, too.
const changeOp = "change"

// A difference is one thing in which a machine is not as it is wanted.
type difference struct {
	what     string
	from, to string
	driver   bool // of the driver's options
}

func (d difference) String() string {
	if secret(d.what) {
		return d.what + ": changed"
	}
	return fmt.Sprintf("%s: %s -> %s", d.what, d.from, d.to)
}

func secret(name string) bool {
	name = strings.ToLower(name)
	for _, w := range []string{"token", "secret", "password", "accesskey", "apikey", "env"} {
		if strings.Contains(name, w) {
			return true
		}
	}
	return false
}

// Diff tells in what a machine differs from what is wanted of it, a line for
// each thing. It asks no host. What Change could not do is an error here, too.
func (m *Manager) Diff(want Create) ([]string, error) {
	mc, err := m.Load(want.Name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = mc.Close() }()
	diffs, err := m.diff(mc, want)
	var lines []string
	for _, d := range diffs {
		lines = append(lines, d.String())
	}
	return lines, err
}

func (m *Manager) diff(mc *Machine, want Create) ([]difference, error) {
	if mc.DriverName != want.Driver {
		return nil, fmt.Errorf("machine %q is of driver %q, not %q: remove it first", mc.Name, mc.DriverName, want.Driver)
	}
	diffs, err := m.diffDriver(mc, want)
	if err != nil {
		return nil, err
	}
	if in := m.Store.Pending(mc.Name); in != nil && in.Op == changeOp {
		diffs = append(diffs, difference{what: "the host", from: "as before a change that was cut off", to: "as its record"})
	}
	is, should := mc.HostOptions.EngineOptions, want.Engine
	lists := []struct {
		what     string
		from, to []string
	}{
		{"labels", is.Labels, should.Labels}, {"engine options", is.ArbitraryFlags, should.ArbitraryFlags},
		{"engine env", is.Env, should.Env}, {"insecure registries", is.InsecureRegistry, should.InsecureRegistry},
		{"registry mirrors", is.RegistryMirror, should.RegistryMirror},
		{"TLS names", mc.HostOptions.AuthOptions.ServerCertSANs, want.SANs},
	}
	for _, l := range lists {
		from, to := slices.Sorted(slices.Values(l.from)), slices.Sorted(slices.Values(l.to))
		if !slices.Equal(from, to) {
			diffs = append(diffs, difference{what: l.what, from: fmt.Sprint(from), to: fmt.Sprint(to)})
		}
	}
	if is.StorageDriver != should.StorageDriver {
		diffs = append(diffs, difference{what: "storage driver", from: is.StorageDriver, to: should.StorageDriver})
	}
	if from, to := mc.HostOptions.HostnameOverride, want.Hostname; from != to {
		if to == "" {
			to = "none (the host keeps it)"
		}
		diffs = append(diffs, difference{what: "hostname", from: from, to: to})
	}
	script, err := m.script(mc)
	if err != nil || !bytes.Equal(script, want.Script) {
		diffs = append(diffs, difference{what: "install script", from: scriptName(script), to: scriptName(want.Script)})
	}
	if has := m.HasContext(mc.Name); has != want.Context {
		d := difference{what: "docker context", from: "none", to: mc.Name}
		if has {
			d.from, d.to = d.to, d.from
		}
		diffs = append(diffs, d)
	}
	return diffs, nil
}

// diffDriver compares what the flags set in a fresh driver with the machine's.
// What they leave empty, creation has filled in.
func (m *Manager) diffDriver(mc *Machine, want Create) ([]difference, error) {
	should, err := m.configured(mc, want.Options)
	if err != nil {
		return nil, err
	}
	is, err := fieldsOf(mc.Driver)
	if err != nil {
		return nil, err
	}
	diffs, err := m.diffReset(mc, want, is, should)
	if err != nil {
		return nil, err
	}
	for k, v := range should {
		if k == "MachineName" || k == "StorePath" || strings.HasPrefix(k, "Swarm") || empty(v) || reflect.DeepEqual(v, is[k]) {
			continue
		}
		diffs = append(diffs, difference{k, fmt.Sprint(is[k]), fmt.Sprint(v), true})
	}
	sort.Slice(diffs, func(i, j int) bool { return diffs[i].what < diffs[j].what })
	if _, ok := mc.Driver.(drivers.Changer); !ok && len(diffs) > 0 {
		return nil, fmt.Errorf("%s: driver %q cannot change a machine that is there: remove it, and it is made anew", diffs[0], mc.DriverName)
	}
	return diffs, nil
}

func fieldsOf(d drivers.Driver) (map[string]any, error) {
	raw, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	fields := map[string]any{}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	return fields, dec.Decode(&fields)
}

func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case bool:
		return !v
	case json.Number:
		return v == "0"
	case []any:
		return len(v) == 0
	}
	return false
}

// Change makes a machine what is wanted of it: its record, and its host where
// it runs. Containers run on. Safe to repeat.
func (m *Manager) Change(ctx context.Context, want Create) error {
	if err := m.Bootstrap(ctx); err != nil {
		return err
	}
	return m.With(ctx, want.Name, func(mc *Machine) error {
		diffs, err := m.diff(mc, want)
		if err != nil || len(diffs) == 0 {
			return err
		}
		if i := slices.IndexFunc(diffs, func(d difference) bool { return d.driver }); i >= 0 {
			if err := mc.Driver.(drivers.Changer).Change(ctx, want.Options); err != nil { // diff has looked for it
				return err
			}
		}
		installURL := mc.HostOptions.EngineOptions.InstallURL
		mc.HostOptions.EngineOptions, mc.HostOptions.AuthOptions.ServerCertSANs = want.Engine, want.SANs
		mc.HostOptions.EngineOptions.InstallURL = installURL
		mc.HostOptions.HostnameOverride = want.Hostname
		if err := m.keepScript(mc, want.Script); err != nil {
			return err
		}
		in := store.Intent{Op: changeOp, Step: "provision", Started: time.Now()}
		if err := errors.Join(m.Store.Begin(mc.Name, in), mc.Save(), m.keepOptions(mc, want.Options)); err != nil {
			return err
		}
		if err := m.changeContext(ctx, mc, want.Context); err != nil {
			return err
		}
		if mc.Kind.Bare {
			return m.Store.Done(mc.Name)
		}
		st, err := mc.Driver.State(ctx)
		if err != nil {
			return err
		}
		if st == drivers.Running {
			_, err = m.provision(ctx, mc, provisionOptions{})
			return err
		}
		if _, ok := mc.Driver.(drivers.Starter); !ok {
			return fmt.Errorf("machine %q does not answer%s: the change is noted, and `apply` or `provision` takes it there", mc.Name, m.whereSSH(ctx, mc))
		}
		// The start may find all as it was: provision it in any case.
		if err := m.start(ctx, mc); err != nil {
			return err
		}
		_, err = m.provision(ctx, mc, provisionOptions{})
		return err
	})
}
