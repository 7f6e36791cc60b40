package lifecycle

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"machine/cli/store"
)

// contextMark is the file in a machine's folder that says that the machine has
// a docker context of its name.
const contextMark = "docker-context"

// A dockerContext is contexts/meta/SHA256(name)/meta.json of the docker
// client's folder (docker/cli, cli/context/store). The client keeps Metadata
// fields that it does not know; MachineStore says that the context is ours.
type dockerContext struct {
	Name     string
	Metadata struct {
		Description  string
		MachineStore string `json:",omitempty"`
	}
	Endpoints map[string]dockerEndpoint
}

type dockerEndpoint struct {
	Host          string
	SkipTLSVerify bool
}

func (m *Manager) contextPaths(name string) (meta, tls string) {
	sum := sha256.Sum256([]byte(name))
	id := hex.EncodeToString(sum[:])
	return filepath.Join(m.DockerDir, "contexts", "meta", id), filepath.Join(m.DockerDir, "contexts", "tls", id)
}

// contextFree refuses to take the name of a context that is not ours.
func (m *Manager) contextFree(name string) error {
	meta, _ := m.contextPaths(name)
	data, err := os.ReadFile(filepath.Join(meta, "meta.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("docker context %q: %w", name, err)
	}
	var c dockerContext
	if err := json.Unmarshal(data, &c); err != nil || c.Metadata.MachineStore != m.Store.Dir {
		return fmt.Errorf("docker has a context %q already, which is not this machine's: `docker context rm %s` removes it", name, name)
	}
	return nil
}

// AddContext gives a machine a docker context of its name, which follows it
// when it moves and goes when it is removed. Safe to repeat.
func (m *Manager) AddContext(ctx context.Context, mc *Machine) error {
	if err := m.contextFree(mc.Name); err != nil {
		return err
	}
	if err := m.markContext(mc.Name); err != nil {
		return err
	}
	return m.syncContext(ctx, mc)
}

// changeContext gives a machine a docker context, or takes it away.
func (m *Manager) changeContext(ctx context.Context, mc *Machine, want bool) error {
	if want {
		return m.AddContext(ctx, mc)
	}
	if err := m.dropContext(mc.Name); err != nil {
		return err
	}
	err := os.Remove(filepath.Join(m.Store.MachineDir(mc.Name), contextMark))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (m *Manager) markContext(name string) error {
	return store.WriteFile(filepath.Join(m.Store.MachineDir(name), contextMark), []byte(name+"\n"), 0o600)
}

// HasContext reports whether a machine has a docker context.
func (m *Manager) HasContext(name string) bool {
	_, err := os.Stat(filepath.Join(m.Store.MachineDir(name), contextMark))
	return err == nil
}

// syncContext writes the docker context of a machine that has one.
func (m *Manager) syncContext(ctx context.Context, mc *Machine) error {
	if !m.HasContext(mc.Name) {
		return nil
	}
	url, err := mc.URL(ctx)
	if err != nil {
		return nil // it is down: the next start tells the address
	}
	if err := m.contextFree(mc.Name); err != nil {
		return err
	}
	meta, tls := m.contextPaths(mc.Name)
	tls = filepath.Join(tls, "docker")
	for _, d := range []string{meta, tls} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("docker context %q: %w", mc.Name, err)
		}
	}
	for _, f := range []struct {
		name string
		mode os.FileMode
	}{{"ca.pem", 0o644}, {"key.pem", 0o600}, {"cert.pem", 0o644}} {
		data, err := os.ReadFile(filepath.Join(m.Store.MachineDir(mc.Name), f.name))
		if err == nil {
			err = writeChanged(filepath.Join(tls, f.name), data, f.mode)
		}
		if err != nil {
			return fmt.Errorf("docker context %q: %w", mc.Name, err)
		}
	}
	c := dockerContext{Name: mc.Name, Endpoints: map[string]dockerEndpoint{"docker": {Host: url}}}
	c.Metadata.Description, c.Metadata.MachineStore = "machine "+mc.Name, m.Store.Dir
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if err := writeChanged(filepath.Join(meta, "meta.json"), data, 0o644); err != nil {
		return fmt.Errorf("docker context %q: %w", mc.Name, err)
	}
	return nil
}

// dropContext removes a machine's docker context, if it has one. A client that
// has it selected goes back to its default.
func (m *Manager) dropContext(name string) error {
	if !m.HasContext(name) || m.contextFree(name) != nil {
		return nil
	}
	meta, tls := m.contextPaths(name)
	err := errors.Join(m.deselect(name), os.RemoveAll(meta), os.RemoveAll(tls))
	if err != nil {
		return fmt.Errorf("remove docker context %q: %w", name, err)
	}
	return nil
}

func (m *Manager) deselect(name string) error {
	file := filepath.Join(m.DockerDir, "config.json")
	data, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	conf := map[string]json.RawMessage{}
	var current string
	if json.Unmarshal(data, &conf) != nil || json.Unmarshal(conf["currentContext"], &current) != nil || current != name {
		return nil
	}
	delete(conf, "currentContext")
	if data, err = json.MarshalIndent(conf, "", "\t"); err != nil {
		return err
	}
	return store.WriteFile(file, data, 0o600)
}

func writeChanged(file string, data []byte, mode os.FileMode) error {
	if old, err := os.ReadFile(file); err == nil && string(old) == string(data) {
		return nil
	}
	return store.WriteFile(file, data, mode)
}
