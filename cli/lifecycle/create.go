package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"machine/cli/store"
	"machine/drivers"
	"machine/provision"
)

// A Create says what machine to make.
type Create struct {
	Name    string
	Driver  string
	Options drivers.Options // the driver's flags and the shared ones
	Engine  store.EngineOptions
	Swarm   store.SwarmOptions
	SANs    []string
	// Script is run on the host as root before the agent comes; nil: none.
	Script []byte
	// Hostname is the host's name; empty: it keeps its own.
	Hostname string
	// Resume goes on with a machine whose creation was cut off.
	Resume bool
	// Context makes a docker context of the machine's name, too.
	Context bool
}

// ErrNameInvalid is docker-machine's refusal of a name.
var ErrNameInvalid = errors.New("Error creating machine: Invalid hostname specified. Allowed hostname chars are: 0-9a-zA-Z . -") //nolint:staticcheck // docker-machine's words

// Create makes a machine: it reserves the name, and each further step is in
// the journal before it begins. A failure leaves the record, for resume or rm.
func (m *Manager) Create(ctx context.Context, c Create) error {
	if !drivers.ValidName(c.Name) {
		return ErrNameInvalid
	}
	kind, err := m.Kind(c.Driver)
	if err != nil {
		return err
	}
	if m.Store.Exists(c.Name) && !c.Resume {
		return m.exists(c.Name)
	}
	unlock, err := m.lock(ctx, c.Name)
	if err != nil {
		return err
	}
	defer unlock()
	if c.Resume {
		return m.resume(ctx, c.Name)
	}
	if err := c.checkHostname(); err != nil {
		return err
	}
	if c.Context {
		if err := m.contextFree(c.Name); err != nil {
			return err
		}
	}
	if m.Store.Exists(c.Name) { // another one was faster (F19)
		return m.exists(c.Name)
	}
	mc, err := m.newMachine(c, kind)
	if err != nil {
		return err
	}
	defer func() { _ = mc.Close() }()
	if kind.Bare && m.Certs.foreign() {
		err = m.Certs.checkForeign()
	} else {
		err = m.Bootstrap(ctx)
	}
	if err != nil {
		return err
	}
	m.Say("Running pre-create checks...")
	if ch, ok := mc.Driver.(drivers.Checker); ok {
		if err := ch.PreCreateCheck(ctx); err != nil {
			return &PreCreateError{err}
		}
	}
	in := store.Intent{Op: "create", Step: "driver", Started: time.Now()}
	if err := errors.Join(m.Store.Begin(c.Name, in), m.keepScript(mc, c.Script), m.keepOptions(mc, c.Options), mc.Save()); err != nil {
		return errors.Join(err, m.Store.Remove(c.Name))
	}
	if c.Context {
		if err := m.markContext(c.Name); err != nil {
			return errors.Join(err, m.Store.Remove(c.Name))
		}
	}
	return m.finish(ctx, mc, in)
}

func (m *Manager) exists(name string) error {
	if p := m.Store.Pending(name); p != nil && p.Op == "create" {
		return fmt.Errorf("Docker machine %q already exists\nIts creation was cut off: go on with `create --resume %s`, or remove it with `rm %s`", name, name, name) //nolint:staticcheck // docker-machine's words
	}
	return fmt.Errorf("Docker machine %q already exists", name) //nolint:staticcheck // docker-machine's words
}

func (m *Manager) newMachine(c Create, kind drivers.Kind) (*Machine, error) {
	p, dir := m.paths(), m.Store.MachineDir(c.Name)
	if kind.Bare && m.Certs.foreign() { // the machine keeps copies
		p = CertPaths{}.In(dir)
	}
	rec := &store.Record{Name: c.Name, DriverName: c.Driver, HostOptions: store.HostOptions{
		EngineOptions: c.Engine,
		SwarmOptions:  c.Swarm,
		AuthOptions: store.AuthOptions{
			CertDir: m.Store.Path("certs"), CaCertPath: p.CA, CaPrivateKeyPath: p.CAKey,
			ClientCertPath: p.Cert, ClientKeyPath: p.Key,
			ServerCertPath: dir + string(os.PathSeparator) + "server.pem",
			ServerKeyPath:  dir + string(os.PathSeparator) + "server-key.pem",
			StorePath:      dir, ServerCertSANs: c.SANs,
		},
		HostnameOverride: c.Hostname,
	}}
	mc, err := m.open(rec)
	if err != nil {
		return nil, err
	}
	if err := mc.Driver.Configure(c.Options); err != nil {
		_ = mc.Close()
		return nil, fmt.Errorf("Error setting machine configuration from flags provided: %w", err) //nolint:staticcheck // docker-machine's words
	}
	return mc, nil
}

// resume goes on where an earlier create stopped. The caller holds the lock.
func (m *Manager) resume(ctx context.Context, name string) error {
	mc, err := m.Load(name)
	if err != nil {
		return err
	}
	defer func() { _ = mc.Close() }()
	in := m.Store.Pending(name)
	if in == nil || in.Op != "create" {
		return fmt.Errorf("machine %q is whole: there is nothing to resume", name)
	}
	if err := m.Bootstrap(ctx); err != nil {
		return err
	}
	return m.finish(ctx, mc, *in)
}

// finish does the steps from in.Step on.
func (m *Manager) finish(ctx context.Context, mc *Machine, in store.Intent) (err error) {
	defer func() {
		if err != nil {
			in.Error = err.Error()
			err = errors.Join(fmt.Errorf("Error creating machine: %w", err), m.Store.Begin(mc.Name, in)) //nolint:staticcheck // docker-machine's words
		}
	}()
	in.Error = ""
	if in.Step == "driver" {
		m.Say("Creating machine...")
		createErr := mc.Driver.Create(ctx)
		// What the driver has learnt is kept also when it failed.
		if err := errors.Join(createErr, mc.Save()); err != nil {
			return fmt.Errorf("Error in driver during machine creation: %w", err) //nolint:staticcheck // docker-machine's words
		}
	}
	if !mc.Kind.Bare {
		in.Step = "provision"
		if err := m.Store.Begin(mc.Name, in); err != nil {
			return err
		}
		if err := m.waitRunning(ctx, mc); err != nil {
			return err
		}
		if _, err := m.provision(ctx, mc, provisionOptions{}); err != nil {
			return err
		}
		m.Say("Docker is up and running!")
	} else if err := m.copyBare(mc); err != nil {
		return err
	}
	if err := errors.Join(mc.Save(), m.syncContext(ctx, mc)); err != nil {
		return err
	}
	return m.Store.Done(mc.Name)
}

// copyBare gives a machine that is only a URL its client certificate.
func (m *Manager) copyBare(mc *Machine) error {
	p := m.paths()
	if m.hasOwn(mc) && !m.Certs.foreign() {
		p = m.pathsOf(mc)
	}
	return m.copyClient(mc.Name, p)
}

// provider is the driver's name in the engine's label; a driver may be named by
// the path of its program.
func provider(driver string) string {
	if filepath.IsAbs(driver) {
		driver = strings.TrimSuffix(filepath.Base(driver), ".exe")
		driver = strings.TrimPrefix(driver, "docker-machine-driver-")
	}
	return driver
}

// waitRunning waits until the driver says that the machine runs.
func (m *Manager) waitRunning(ctx context.Context, mc *Machine) error {
	m.Say("Waiting for machine to be running, this may take a few minutes...")
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	pause := 50 * time.Millisecond
	start, told := time.Now(), false
	for {
		st, err := mc.Driver.State(ctx)
		if err == nil && st == drivers.Running {
			return nil
		}
		if !told && time.Since(start) > 4*time.Second {
			told = true
			m.Say("(%s) It is %q still%s. Waiting up to 3 minutes, Ctrl-C stops.", mc.Name, st, m.whereSSH(ctx, mc))
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("machine %q does not come up: it is %q%s", mc.Name, st, m.whereSSH(ctx, mc)), err)
		case <-time.After(pause):
		}
		pause = min(2*pause, 3*time.Second)
	}
}

// whereSSH names the address that a host should answer at.
func (m *Manager) whereSSH(ctx context.Context, mc *Machine) string {
	a, _ := mc.Driver.Address(ctx)
	if a.SSH.Host == "" {
		return ""
	}
	return fmt.Sprintf(" (is an SSH server running at %s?)", net.JoinHostPort(a.SSH.Host, strconv.Itoa(a.SSH.Port)))
}

type provisionOptions struct {
	newCert   bool // issue a server certificate anew
	certsOnly bool
	needAgent bool
	newer     provision.Newer
}

// provision brings the host up to date. The caller holds the lock and saves.
func (m *Manager) provision(ctx context.Context, mc *Machine, o provisionOptions) (res provision.Result, err error) {
	addr, err := mc.Driver.Address(ctx)
	if err != nil {
		return provision.Result{}, err
	}
	conf, err := mc.SSH(ctx)
	if err != nil {
		return provision.Result{}, err
	}
	restore := m.keepPair(mc.Name)
	ca, srv, err := m.serverPair(mc, addr.IP, o.newCert)
	if err != nil {
		return provision.Result{}, err
	}
	defer func() {
		if err != nil { // what is here is what the host has
			restore()
		}
	}()
	endpoint := EngineURL(addr.URL)
	tlsConf, err := m.ClientTLS(mc, endpoint)
	if err != nil {
		return provision.Result{}, err
	}
	script, err := m.script(mc)
	if err != nil {
		return provision.Result{}, err
	}
	eo := mc.HostOptions.EngineOptions
	p := provision.Provisioner{Log: m.Log, Say: m.Say, CertsOnly: o.certsOnly, NeedAgent: o.needAgent, Agents: m.agents, Version: m.AgentVersion, Newer: o.newer}
	res, err = p.Run(ctx, provision.Target{
		Machine: mc.Name, Driver: provider(mc.DriverName), SSH: conf, CA: ca, Cert: srv.Cert, Key: srv.Key,
		Endpoint: endpoint, TLS: tlsConf, Script: script, Hostname: mc.HostOptions.HostnameOverride,
		Engine: provision.Engine{
			Port: portOf(endpoint), IPv6: strings.HasPrefix(endpoint, "["), Labels: eo.Labels, Options: eo.ArbitraryFlags, InsecureRegistry: eo.InsecureRegistry,
			RegistryMirror: eo.RegistryMirror, StorageDriver: eo.StorageDriver, Env: eo.Env,
		},
	})
	if in := m.Store.Pending(mc.Name); err == nil && !o.certsOnly && in != nil && in.Op == changeOp {
		err = m.Store.Done(mc.Name) // the host has what the record says
	}
	return res, err
}

func portOf(endpoint string) int {
	_, port, err := net.SplitHostPort(endpoint)
	if err != nil {
		return 2376
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return 2376
	}
	return n
}
