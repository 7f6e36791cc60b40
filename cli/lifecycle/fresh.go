package lifecycle

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"machine/certs"
	"machine/provision"
)

// renewable reports whether a certificate should be renewed and another one
// from that CA would last longer: a leaf never outlives its authority.
func renewable(cert, ca []byte, now time.Time) bool {
	leaf, err := certs.Leaf(cert)
	if err != nil {
		return true
	}
	auth, err := certs.Leaf(ca)
	if err != nil || !certs.Stale(cert, now) {
		return false
	}
	return auth.NotAfter.Sub(leaf.NotAfter) > 24*time.Hour
}

// KeepFresh renews a machine's certificates before they end, or when its
// address is another one than they name, as part of any command that talks to
// the machine. The engine is not restarted. What fails is told and stops
// nothing: the certificates may do still.
func (m *Manager) KeepFresh(ctx context.Context, mc *Machine) {
	if mc.Kind.Bare || mc.m == nil {
		return
	}
	addr, err := mc.Driver.Address(ctx)
	if err != nil || addr.IP == "" || !m.due(mc, addr.IP) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	quiet := *m
	quiet.Say = func(format string, args ...any) { m.Log.Debug("renew certificates", "machine", mc.Name) }
	err = quiet.Bootstrap(ctx)
	if err == nil {
		err = quiet.With(ctx, mc.Name, func(locked *Machine) error {
			if !quiet.due(locked, addr.IP) {
				return nil // another command was faster
			}
			_, err := quiet.provision(ctx, locked, provisionOptions{certsOnly: true, needAgent: true})
			return err
		})
	}
	if err != nil && !errors.Is(err, provision.ErrNoAgentThere) { // docker-machine's own machine is left as it is
		m.Log.Warn("the certificates of a machine should be renewed, and that failed: try `regenerate-certs`", "machine", mc.Name, "error", err)
	}
}

// due reports whether the machine's certificates need work.
func (m *Manager) due(mc *Machine, ip string) bool {
	dir, p := m.Store.MachineDir(mc.Name), m.pathsOf(mc)
	if in := m.Store.Pending(mc.Name); in != nil && in.Op != changeOp {
		return false // half made: resume or rm is what it needs
	}
	if _, err := os.Stat(filepath.Join(dir, "server.pem")); err != nil {
		return false
	}
	if !m.bootstrapped() || !m.certFits(mc, ip) {
		return true
	}
	for from, copied := range map[string]string{p.CA: "ca.pem", p.Cert: "cert.pem"} {
		a, err1 := os.ReadFile(from)
		b, err2 := os.ReadFile(filepath.Join(dir, copied))
		if err1 != nil || err2 != nil || !bytes.Equal(a, b) {
			return true
		}
	}
	return false
}

// keepPair remembers a machine's server certificate; restore puts it back.
func (m *Manager) keepPair(name string) (restore func()) {
	dir := m.Store.MachineDir(name)
	cert, key := filepath.Join(dir, "server.pem"), filepath.Join(dir, "server-key.pem")
	old, err := readPair(cert, key)
	return func() {
		if err == nil {
			_ = writePair(old, cert, key)
		}
	}
}
