// Package lifecycle makes, changes and removes machines as sequences that are
// written into the machine's journal before each step, so that one that was
// cut off, by a signal or by the power, can be resumed or cleaned up.
package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"machine/cli/store"
	"machine/drivers"
	"machine/provision"
	"machine/provision/ssh"
)

// Manager is what all commands work with.
type Manager struct {
	Store *store.Store
	Kinds []drivers.Kind
	// Find looks for drivers that are not built in (plugins). May be nil.
	Find func(name string) (drivers.Kind, bool)
	Log  *slog.Logger
	// Say tells the user one line of progress; it may be called by several
	// goroutines.
	Say func(format string, args ...any)
	// Certs are the shared certificates, when not in the store's certs/.
	Certs CertPaths
	// AgentVersion is that of the agent inside this program.
	AgentVersion string
	// DockerDir is the docker client's folder, ~/.docker, for contexts.
	DockerDir string

	agents *provision.Agents // unpacked once for all machines
}

// KeepAgents unpacks agents once for all machines, and not for each.
func (m *Manager) KeepAgents() { m.agents = &provision.Agents{} }

// Named returns a manager that puts a machine's name before each line of
// progress, for work on many machines at once.
func (m *Manager) Named(name string) *Manager {
	one := *m
	one.Say = func(format string, args ...any) { m.Say("%s | %s", name, fmt.Sprintf(format, args...)) }
	return &one
}

// A PreCreateError is a driver's refusal before anything was made.
type PreCreateError struct{ Err error }

func (e *PreCreateError) Error() string { return fmt.Sprintf("Error with pre-create check: %q", e.Err) }

func (e *PreCreateError) Unwrap() error { return e.Err }

// A DriverError says that no such driver is there.
type DriverError struct{ Name string }

func (e *DriverError) Error() string {
	return fmt.Sprintf("Driver %q not found. Do you have the plugin binary %q accessible in your PATH?", e.Name, "docker-machine-driver-"+e.Name)
}

// HostKeyChanged reports whether err is about a host that shows another key
// than at first contact.
func HostKeyChanged(err error) bool {
	var hk *ssh.HostKeyError
	return errors.As(err, &hk)
}

// ExitStatus returns the status of a command that ran on a host and failed.
func ExitStatus(err error) (int, bool) {
	var e *ssh.ExitError
	if errors.As(err, &e) {
		return e.Status, true
	}
	return 0, false
}

// Kind finds a driver, built in or plugin.
func (m *Manager) Kind(name string) (drivers.Kind, error) {
	for _, k := range m.Kinds {
		if k.Name == name {
			return k, nil
		}
	}
	if m.Find != nil {
		if k, ok := m.Find(name); ok {
			return k, nil
		}
	}
	return drivers.Kind{}, &DriverError{name}
}

// A Machine is a record with its driver.
type Machine struct {
	*store.Record
	Driver drivers.Driver
	Kind   drivers.Kind

	m *Manager
}

// Load reads a machine. The caller closes it.
func (m *Manager) Load(name string) (*Machine, error) {
	rec, err := m.Store.Load(name)
	if err != nil {
		return nil, err
	}
	return m.open(rec)
}

func (m *Manager) open(rec *store.Record) (*Machine, error) {
	kind, err := m.Kind(rec.DriverName)
	if err != nil {
		return nil, err
	}
	mc := &Machine{Record: rec, Kind: kind, m: m}
	mc.Driver = kind.New(m.env(mc))
	if len(rec.Driver) > 0 {
		if err := json.Unmarshal(rec.Driver, mc.Driver); err != nil {
			_ = mc.Close()
			return nil, fmt.Errorf("load machine %q: driver's part of config.json: %w", rec.Name, err)
		}
	}
	return mc, nil
}

func (m *Manager) env(mc *Machine) drivers.Env {
	return drivers.Env{
		Machine: mc.Name, Store: m.Store.Dir, Log: m.Log,
		Say:   func(format string, args ...any) { m.Say("(%s) %s", mc.Name, fmt.Sprintf(format, args...)) },
		Save:  mc.Save,
		Agent: func() (string, error) { return AgentFile(m.Store.Dir) },
	}
}

// Save writes the record with the driver's part as it is now.
func (mc *Machine) Save() error {
	raw, err := json.Marshal(mc.Driver)
	if err != nil {
		return fmt.Errorf("save machine %q: %w", mc.Name, err)
	}
	mc.Record.Driver = raw
	return mc.m.Store.Save(mc.Record)
}

// Close lets the driver go. Safe to repeat.
func (mc *Machine) Close() error {
	if c, ok := mc.Driver.(drivers.Closer); ok {
		return c.Close()
	}
	return nil
}

// URL returns the engine's URL; ErrNotRunning when the machine is down.
func (mc *Machine) URL(ctx context.Context) (string, error) {
	a, err := mc.Driver.Address(ctx)
	if err != nil {
		return "", err
	}
	if a.URL == "" {
		return "", drivers.ErrNotRunning
	}
	return a.URL, nil
}

// IP returns the machine's address.
func (mc *Machine) IP(ctx context.Context) (string, error) {
	a, err := mc.Driver.Address(ctx)
	if a.IP != "" {
		err = nil
	}
	return a.IP, err
}

// SSH returns how to log in.
func (mc *Machine) SSH(ctx context.Context) (ssh.Config, error) {
	if mc.Kind.Bare {
		return ssh.Config{}, fmt.Errorf("machine %q is only a URL (driver %q): there is no host to log in to", mc.Name, mc.DriverName)
	}
	a, err := mc.Driver.Address(ctx)
	if err != nil {
		return ssh.Config{}, err
	}
	conf := ssh.Config{
		Host: a.SSH.Host, Port: a.SSH.Port, User: a.SSH.User, Key: a.SSH.Key,
		KnownHosts: mc.m.Store.Path("machines", mc.Name, "known_hosts"), Alias: mc.Name,
		Say: func(format string, args ...any) { mc.m.Log.Info(fmt.Sprintf(format, args...)) },
	}
	return conf.Via(a.SSH.Jump)
}

// engineDial returns how to reach the engine: nil for straight, and through
// the jump hosts of a machine that has such. The caller releases it.
func (mc *Machine) engineDial(ctx context.Context) (provision.Dial, func(), error) {
	if mc.Kind.Bare {
		return nil, func() {}, nil
	}
	conf, err := mc.SSH(ctx)
	if err != nil || len(conf.Jumps) == 0 {
		return nil, func() {}, err
	}
	cl, err := ssh.Dial(ctx, conf)
	if err != nil {
		return nil, nil, err
	}
	return cl.DialContext, func() { _ = cl.Close() }, nil
}

// EngineURL splits tcp://host:port into host:port.
func EngineURL(url string) string {
	_, rest, ok := strings.Cut(url, "://")
	if !ok {
		rest = url
	}
	return strings.TrimSuffix(rest, "/")
}

// With loads the machine under its lock, calls f, and saves what f changed.
func (m *Manager) With(ctx context.Context, name string, f func(*Machine) error) error {
	unlock, err := m.lockKnown(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	mc, err := m.Load(name)
	if err != nil {
		return err
	}
	defer func() { _ = mc.Close() }()
	if err := f(mc); err != nil {
		return err
	}
	if err := mc.Save(); err != nil {
		return err
	}
	return m.syncContext(ctx, mc)
}

// lockKnown is lock for a machine that is there.
func (m *Manager) lockKnown(ctx context.Context, name string) (func(), error) {
	if !m.Store.Exists(name) {
		return nil, &store.NotExist{Name: name}
	}
	return m.lock(ctx, name)
}

func (m *Manager) lock(ctx context.Context, name string) (func(), error) {
	return m.Store.Lock(ctx, name, func() {
		m.Say("Waiting for another command that works on machine %q...", name)
	})
}

// Each calls f for every name at once, limit at a time (0: all), and joins the
// errors by lines, in the order of the names.
func Each(ctx context.Context, names []string, limit int, f func(ctx context.Context, name string) error) error {
	if limit <= 0 || limit > len(names) {
		limit = max(len(names), 1)
	}
	errs := make([]error, len(names))
	slots := make(chan struct{}, limit)
	var wg sync.WaitGroup
	for i, name := range names {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			errs[i] = f(ctx, name)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// AgentFile writes the agent for this computer into a store's cache, and
// returns its path. Safe to repeat.
func AgentFile(storeDir string) (string, error) {
	return provision.AgentFile(filepath.Join(storeDir, "cache"), runtime.GOARCH)
}

// username is whom certificates are for.
func username() string {
	for _, v := range []string{"USER", "USERNAME"} {
		if u := os.Getenv(v); u != "" {
			return u
		}
	}
	return "unknown"
}
