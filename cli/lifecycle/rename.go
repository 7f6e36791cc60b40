package lifecycle

import (
	"context"
	"fmt"
	"os"
	"strings"

	"machine/cli/store"
	"machine/drivers"
)

// Rename gives a machine another name. Paths in its record that lie in its
// folder follow. The host keeps its own host name. A local machine must be
// stopped first: its files move.
func (m *Manager) Rename(ctx context.Context, from, to string) error {
	if !drivers.ValidName(to) {
		return ErrNameInvalid
	}
	if !m.Store.Exists(from) {
		return &store.NotExist{Name: from}
	}
	unlock, err := m.lockBoth(ctx, from, to)
	if err != nil {
		return err
	}
	defer unlock()
	mc, err := m.Load(from)
	if err != nil {
		return err
	}
	st, err := mc.Driver.State(ctx)
	_ = mc.Close()
	if err != nil {
		return err
	}
	if mc.DriverName == "local" && st != drivers.Stopped {
		return fmt.Errorf("machine %q runs: stop it first", from)
	}
	hasContext := m.HasContext(from)
	if hasContext {
		if err := m.contextFree(to); err != nil {
			return err
		}
		if err := m.dropContext(from); err != nil {
			return err
		}
	}
	if err := m.Store.Rename(from, to); err != nil {
		return err
	}
	rec, err := m.Store.Load(to)
	if err != nil {
		return err
	}
	if err := m.renameHost(from, to); err != nil {
		return err
	}
	if err := m.moved(rec, from, to); err != nil || !hasContext {
		return err
	}
	if mc, err = m.Load(to); err != nil {
		return err
	}
	defer func() { _ = mc.Close() }()
	return m.AddContext(ctx, mc)
}

// lockBoth locks two names, in one order for all: or two renames would wait for
// each other.
func (m *Manager) lockBoth(ctx context.Context, a, b string) (unlock func(), err error) {
	if b < a {
		a, b = b, a
	}
	unlock1, err := m.lock(ctx, a)
	if err != nil || a == b {
		return unlock1, err
	}
	unlock2, err := m.lock(ctx, b)
	if err != nil {
		unlock1()
		return nil, err
	}
	return func() { unlock2(); unlock1() }, nil
}

// moved adapts the record in its new folder.
func (m *Manager) moved(rec *store.Record, from, to string) error {
	oldDir, newDir := m.Store.MachineDir(from), m.Store.MachineDir(to)
	fix := func(s string) string {
		if s == oldDir || strings.HasPrefix(s, oldDir+"/") || strings.HasPrefix(s, oldDir+`\`) {
			return newDir + s[len(oldDir):]
		}
		return s
	}
	a := &rec.HostOptions.AuthOptions
	for _, s := range []*string{&a.StorePath, &a.ServerCertPath, &a.ServerKeyPath, &a.ClientCertPath, &a.ClientKeyPath, &a.CaCertPath, &a.CaPrivateKeyPath,
		&rec.HostOptions.CustomInstallScript} {
		*s = fix(*s)
	}
	var err error
	rec.Driver, err = renameDriver(rec.Driver, fix, to)
	if err != nil {
		return err
	}
	return m.Store.Save(rec)
}

// renameHost moves the recorded host key to the machine's new name; the file
// is in the new folder already.
func (m *Manager) renameHost(from, to string) error {
	hosts := m.Store.Path("machines", to, "known_hosts")
	data, err := os.ReadFile(hosts)
	if err != nil {
		return nil // none was recorded
	}
	lines := strings.SplitAfter(string(data), "\n")
	for i, l := range lines {
		if rest, ok := strings.CutPrefix(l, from+" "); ok {
			lines[i] = to + " " + rest
		}
	}
	return store.WriteFile(hosts, []byte(strings.Join(lines, "")), 0o600)
}
