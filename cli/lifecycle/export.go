package lifecycle

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/scrypt"

	"machine/cli/store"
	"machine/drivers"
)

// magic begins an export. Then come 16 bytes of salt, 12 of nonce, and an
// exported as JSON, sealed by AES-256-GCM under scrypt(passphrase, salt, 2^15,
// 8, 1) with magic as additional data.
const magic = "machine-export-1\n"

type exported struct {
	Name  string
	Store string // the store's folder on the computer of origin
	Files map[string][]byte
}

// Export returns a machine's record, keys and certificates, encrypted. The CA
// goes with it, so that the other computer can do all that this one can.
func (m *Manager) Export(name, passphrase string) ([]byte, error) {
	mc, err := m.Load(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = mc.Close() }()
	if mc.DriverName == "local" {
		return nil, fmt.Errorf("machine %q is a part of this computer: it cannot go to another one", name)
	}
	x := exported{Name: name, Store: m.Store.Dir, Files: map[string][]byte{}}
	dir := m.Store.MachineDir(name)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || !fi.Mode().IsRegular() || fi.Size() > 1<<20 || strings.HasPrefix(e.Name(), ".") || e.Name() == "journal.json" || e.Name() == contextMark {
			continue
		}
		if x.Files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			return nil, err
		}
	}
	p := m.pathsOf(mc)
	for file, from := range map[string]string{"ca.pem": p.CA, "ca-key.pem": p.CAKey, "cert.pem": p.Cert, "key.pem": p.Key} {
		if x.Files[file], err = os.ReadFile(from); err != nil {
			if file == "ca-key.pem" && mc.Kind.Bare && errors.Is(err, fs.ErrNotExist) {
				delete(x.Files, file) // the CA is somebody else's
				continue
			}
			return nil, fmt.Errorf("export %q: %w", name, err)
		}
	}
	plain, err := json.Marshal(x)
	if err != nil {
		return nil, err
	}
	return seal(plain, passphrase)
}

// Import makes a machine of an export, under its own name or another one.
func (m *Manager) Import(ctx context.Context, data []byte, passphrase, name string) (string, error) {
	plain, err := unseal(data, passphrase)
	if err != nil {
		return "", err
	}
	var x exported
	if err := json.Unmarshal(plain, &x); err != nil {
		return "", fmt.Errorf("import: %w", err)
	}
	if name == "" {
		name = x.Name
	}
	if !drivers.ValidName(name) {
		return "", ErrNameInvalid
	}
	unlock, err := m.lock(ctx, name)
	if err != nil {
		return "", err
	}
	defer unlock()
	if m.Store.Exists(name) {
		return "", m.exists(name)
	}
	if err := m.unpack(x, name); err != nil {
		return "", errors.Join(err, m.Store.Remove(name))
	}
	return name, nil
}

func (m *Manager) unpack(x exported, name string) error {
	dir := m.Store.MachineDir(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for file, data := range x.Files {
		if file != filepath.Base(file) || strings.HasPrefix(file, ".") || strings.ContainsAny(file, `/\`) {
			return fmt.Errorf("import: strange file name %q", file)
		}
		if err := store.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
			return err
		}
	}
	rec, err := m.Store.Load(name)
	if err != nil {
		return err
	}
	// Paths move from the other computer's folders to ours.
	from := strings.TrimRight(x.Store, `/\`)
	fix := func(s string) string {
		rest, ok := strings.CutPrefix(s, from)
		if !ok || from == "" {
			return s
		}
		rest = filepath.FromSlash(strings.ReplaceAll(rest, `\`, "/"))
		if old := filepath.Join(string(filepath.Separator), "machines", x.Name); strings.HasPrefix(rest, old) {
			rest = filepath.Join(string(filepath.Separator), "machines", name) + rest[len(old):]
		}
		return m.Store.Dir + rest
	}
	rec.HostOptions.AuthOptions = store.AuthOptions{
		CertDir: dir, CaCertPath: filepath.Join(dir, "ca.pem"), CaPrivateKeyPath: filepath.Join(dir, "ca-key.pem"),
		ClientCertPath: filepath.Join(dir, "cert.pem"), ClientKeyPath: filepath.Join(dir, "key.pem"),
		ServerCertPath: filepath.Join(dir, "server.pem"), ServerKeyPath: filepath.Join(dir, "server-key.pem"),
		ServerCertSANs: rec.HostOptions.AuthOptions.ServerCertSANs, StorePath: dir,
	}
	if rec.Driver, err = renameDriver(rec.Driver, fix, name); err != nil {
		return err
	}
	return errors.Join(m.renameHost(x.Name, name), m.Store.Save(rec))
}

func key(passphrase string, salt []byte) (cipher.AEAD, error) {
	if passphrase == "" {
		return nil, errors.New("an empty passphrase protects nothing")
	}
	k, err := scrypt.Key([]byte(passphrase), salt, 1<<15, 8, 1, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(k)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func seal(plain []byte, passphrase string) ([]byte, error) {
	head := make([]byte, 16+12)
	if _, err := rand.Read(head); err != nil {
		return nil, err
	}
	aead, err := key(passphrase, head[:16])
	if err != nil {
		return nil, err
	}
	out := append([]byte(magic), head...)
	return aead.Seal(out, head[16:], plain, []byte(magic)), nil
}

func unseal(data []byte, passphrase string) ([]byte, error) {
	data, ok := bytes.CutPrefix(data, []byte(magic))
	if !ok || len(data) < 28 {
		return nil, errors.New("import: this is no export of a machine")
	}
	aead, err := key(passphrase, data[:16])
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, data[16:28], data[28:], []byte(magic))
	if err != nil {
		return nil, errors.New("import: wrong passphrase, or the file was changed")
	}
	return plain, nil
}
