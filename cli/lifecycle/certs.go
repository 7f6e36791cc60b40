package lifecycle

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"machine/certs"
	"machine/cli/store"
)

// CertPaths name the files of the shared certificates.
type CertPaths struct{ CA, CAKey, Cert, Key string }

// In fills empty paths with those in dir.
func (p CertPaths) In(dir string) CertPaths {
	or := func(s, name string) string {
		if s != "" {
			return s
		}
		return filepath.Join(dir, name)
	}
	return CertPaths{or(p.CA, "ca.pem"), or(p.CAKey, "ca-key.pem"), or(p.Cert, "cert.pem"), or(p.Key, "key.pem")}
}

// foreign says that the user named all that a client needs, and no key of the
// CA: the engine is not ours to give certificates to.
func (p CertPaths) foreign() bool {
	return p.CA != "" && p.Cert != "" && p.Key != "" && p.CAKey == ""
}

// checkForeign reads what the user named.
func (p CertPaths) checkForeign() error {
	ca, err := os.ReadFile(p.CA)
	if err != nil {
		return fmt.Errorf("--tls-ca-cert: %w", err)
	}
	pair, err := readPair(p.Cert, p.Key)
	if err != nil {
		return fmt.Errorf("--tls-client-cert, --tls-client-key: %w", err)
	}
	if !pair.Matches() {
		return fmt.Errorf("--tls-client-key %s is not the key of --tls-client-cert %s", p.Key, p.Cert)
	}
	_, err = certs.Client(ca, pair, "")
	return err
}

func (m *Manager) paths() CertPaths { return m.Certs.In(m.Store.Path("certs")) }

// pathsOf are the certificates for one machine: the shared ones, but for a
// machine that came from another computer, or was there before us, with its own.
func (m *Manager) pathsOf(mc *Machine) CertPaths {
	a := mc.HostOptions.AuthOptions
	if !m.hasOwn(mc) {
		return m.paths()
	}
	return CertPaths{CA: a.CaCertPath, CAKey: a.CaPrivateKeyPath, Cert: a.ClientCertPath, Key: a.ClientKeyPath}
}

func (m *Manager) hasOwn(mc *Machine) bool {
	return filepath.Dir(mc.HostOptions.AuthOptions.CaCertPath) == m.Store.MachineDir(mc.Name)
}

// Bootstrap makes the CA and the client certificate if they are missing,
// expired or do not fit each other. Any number of processes may do so at once:
// one makes them (F21). Those that end soon are renewed, the CA with its key:
// machines that have the old one work on.
func (m *Manager) Bootstrap(ctx context.Context) error { return m.bootstrap(ctx, false) }

// RenewClient makes the client's certificate anew.
func (m *Manager) RenewClient(ctx context.Context) error { return m.bootstrap(ctx, true) }

func (m *Manager) bootstrap(ctx context.Context, newClient bool) error {
	if !newClient && m.bootstrapped() {
		return nil
	}
	unlock, err := m.Store.LockAll(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	p := m.paths()
	store.Sweep(m.Store.Path("certs"))
	for _, f := range []string{p.CA, p.CAKey, p.Cert, p.Key} {
		if err := os.MkdirAll(filepath.Dir(f), 0o700); err != nil {
			return fmt.Errorf("certificates: %w", err)
		}
	}
	now := time.Now()
	ca, err := readPair(p.CA, p.CAKey)
	if err != nil || !ca.Matches() || expired(ca.Cert, now) {
		if err := m.makeCA(p, ca, now); err != nil {
			return err
		}
		if ca, err = readPair(p.CA, p.CAKey); err != nil {
			return err
		}
	}
	if m.ownCA() && certs.Stale(ca.Cert, now) {
		m.Say("Renewing CA: %s", p.CA)
		if ca, err = certs.Renew(ca, now); err != nil {
			return err
		}
		if err := store.WriteFile(p.CA, ca.Cert, 0o644); err != nil {
			return fmt.Errorf("write %s: %w", p.CA, err)
		}
	}
	cl, err := readPair(p.Cert, p.Key)
	if err == nil && !newClient && cl.Matches() && !renewable(cl.Cert, ca.Cert, now) && certs.Check(ca.Cert, cl.Cert, x509.ExtKeyUsageClientAuth, nil, now) == nil {
		return nil
	}
	if m.Certs.Cert != "" && len(cl.Cert) > 0 {
		return fmt.Errorf("client certificate %s, which --tls-client-cert names, is not good with CA %s: it is left as it is", p.Cert, p.CA)
	}
	m.Say("Creating client certificate: %s", p.Cert)
	cl, err = certs.Issue(ca, certs.Request{Org: username() + ".<bootstrap>", Client: true}, now)
	if err != nil {
		return fmt.Errorf("client certificate: %w", err)
	}
	return writePair(cl, p.Cert, p.Key)
}

// ownCA tells our CA from one that the user named by a flag.
func (m *Manager) ownCA() bool { return m.Certs.CA == "" && m.Certs.CAKey == "" }

// makeCA refuses to replace half of a CA: its machines would be lost.
func (m *Manager) makeCA(p CertPaths, old certs.Pair, now time.Time) error {
	if len(old.Cert) > 0 && len(old.Key) == 0 && !expired(old.Cert, now) {
		return fmt.Errorf("CA key %s is missing beside %s: put it back, or remove both and run regenerate-certs on every machine", p.CAKey, p.CA)
	}
	m.Say("Creating CA: %s", p.CA)
	ca, err := certs.NewCA(username(), now)
	if err != nil {
		return err
	}
	return writePair(ca, p.CA, p.CAKey)
}

// bootstrapped looks without a lock whether all is well.
func (m *Manager) bootstrapped() bool {
	p := m.paths()
	ca, err := readPair(p.CA, p.CAKey)
	if err != nil || !ca.Matches() {
		return false
	}
	now := time.Now()
	if m.ownCA() && certs.Stale(ca.Cert, now) {
		return false
	}
	cl, err := readPair(p.Cert, p.Key)
	return err == nil && cl.Matches() && !renewable(cl.Cert, ca.Cert, now) && certs.Check(ca.Cert, cl.Cert, x509.ExtKeyUsageClientAuth, nil, now) == nil
}

func expired(certPEM []byte, now time.Time) bool {
	leaf, err := certs.Leaf(certPEM)
	return err != nil || now.After(leaf.NotAfter)
}

func readPair(cert, key string) (p certs.Pair, err error) {
	var err1, err2 error
	p.Cert, err1 = os.ReadFile(cert)
	p.Key, err2 = os.ReadFile(key)
	return p, errors.Join(err1, err2)
}

// writePair writes the key first: a certificate's presence says that both are
// there.
func writePair(p certs.Pair, cert, key string) error {
	if err := store.WriteFile(key, p.Key, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	if err := store.WriteFile(cert, p.Cert, 0o644); err != nil {
		return fmt.Errorf("write %s: %w", cert, err)
	}
	return nil
}

// serverPair returns the machine's server certificate, issued anew when force
// is set, a name is missing, another CA signed it, or a third of its life is
// all that is left.
func (m *Manager) serverPair(mc *Machine, ip string, force bool) (ca []byte, srv certs.Pair, err error) {
	p, dir := m.pathsOf(mc), m.Store.MachineDir(mc.Name)
	auth, err := readPair(p.CA, p.CAKey)
	if err != nil {
		return nil, srv, fmt.Errorf("CA: %w", err)
	}
	cert, key := filepath.Join(dir, "server.pem"), filepath.Join(dir, "server-key.pem")
	names := append([]string{}, mc.HostOptions.AuthOptions.ServerCertSANs...)
	names = append(names, "localhost", mc.Name, "127.0.0.1")
	if ip != "" {
		names = append(names, ip)
	}
	now := time.Now()
	srv, err = readPair(cert, key)
	good := err == nil && srv.Matches() && !renewable(srv.Cert, auth.Cert, now) &&
		certs.Check(auth.Cert, srv.Cert, x509.ExtKeyUsageServerAuth, names, now) == nil
	if !good || force {
		srv, err = certs.Issue(auth, certs.Request{
			Org: username() + "." + mc.Name, Server: true, SANs: names,
			Client: mc.HostOptions.SwarmOptions.Master,
		}, now)
		if err != nil {
			return nil, srv, fmt.Errorf("server certificate of %q: %w", mc.Name, err)
		}
		if err := writePair(srv, cert, key); err != nil {
			return nil, srv, err
		}
	}
	return auth.Cert, srv, m.copyClient(mc.Name, p)
}

// copyClient copies CA and client certificate beside the machine, where
// DOCKER_CERT_PATH points to.
func (m *Manager) copyClient(name string, p CertPaths) error {
	dir := m.Store.MachineDir(name)
	for _, f := range []struct {
		from, to string
		mode     os.FileMode
	}{{p.CA, "ca.pem", 0o644}, {p.Key, "key.pem", 0o600}, {p.Cert, "cert.pem", 0o644}} {
		data, err := os.ReadFile(f.from)
		if err != nil {
			return fmt.Errorf("client certificate: %w", err)
		}
		to := filepath.Join(dir, f.to)
		if old, err := os.ReadFile(to); err == nil && bytes.Equal(old, data) {
			continue
		}
		if err := store.WriteFile(to, data, f.mode); err != nil {
			return fmt.Errorf("client certificate: %w", err)
		}
	}
	return nil
}

// ClientTLS returns how to talk to a machine's engine at host:port.
func (m *Manager) ClientTLS(mc *Machine, endpoint string) (*tls.Config, error) {
	p := m.pathsOf(mc)
	ca, err := os.ReadFile(p.CA)
	if err != nil {
		return nil, err
	}
	pair, err := readPair(p.Cert, p.Key)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(endpoint)
	if err != nil {
		host = endpoint
	}
	return certs.Client(ca, pair, host)
}

// CheckTLS does a whole handshake with the engine at endpoint.
func (m *Manager) CheckTLS(ctx context.Context, mc *Machine, endpoint string) error {
	conf, err := m.ClientTLS(mc, endpoint)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	dial, release, err := mc.engineDial(ctx)
	if err != nil {
		return err
	}
	defer release()
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	raw, err := dial(ctx, "tcp", endpoint)
	if err != nil {
		return err
	}
	conn := tls.Client(raw, conf)
	return errors.Join(conn.HandshakeContext(ctx), raw.Close())
}

// certFits reports whether the certificate that the host has is good for ip.
func (m *Manager) certFits(mc *Machine, ip string) bool {
	ca, err := os.ReadFile(m.pathsOf(mc).CA)
	if err != nil {
		return false
	}
	cert, err := os.ReadFile(filepath.Join(m.Store.MachineDir(mc.Name), "server.pem"))
	if err != nil {
		return false
	}
	now := time.Now()
	return !renewable(cert, ca, now) && certs.Check(ca, cert, x509.ExtKeyUsageServerAuth, []string{ip}, now) == nil
}

// A CertInfo tells how long a certificate is good.
type CertInfo struct {
	Name    string // "CA", "client", or the machine's name
	Machine string // the machine's name, if it is one's
	Ends    time.Time
	Stale   bool // it should be renewed
	Err     error
}

// Certificates lists the CA, the client's certificate and those of machines.
func (m *Manager) Certificates(names []string) []CertInfo {
	p := m.paths()
	list := []CertInfo{certInfo("CA", p.CA), certInfo("client", p.Cert)}
	for _, n := range names {
		ci := certInfo(n, filepath.Join(m.Store.MachineDir(n), "server.pem"))
		if errors.Is(ci.Err, os.ErrNotExist) {
			continue // none's
		}
		ci.Machine = n
		list = append(list, ci)
	}
	return list
}

// CertEnds tells when a machine's server certificate ends.
func (m *Manager) CertEnds(name string) (time.Time, error) {
	ci := certInfo(name, filepath.Join(m.Store.MachineDir(name), "server.pem"))
	return ci.Ends, ci.Err
}

func certInfo(name, file string) CertInfo {
	data, err := os.ReadFile(file)
	if err != nil {
		return CertInfo{Name: name, Err: err}
	}
	leaf, err := certs.Leaf(data)
	if err != nil {
		return CertInfo{Name: name, Err: err}
	}
	return CertInfo{Name: name, Ends: leaf.NotAfter, Stale: certs.Stale(data, time.Now())}
}
