package provision

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"machine/provision/ssh"
)

//go:embed embed
var embedded embed.FS

// AgentVar names the environment variable with the path of an agent that is
// used in place of the one inside the program, for development.
const AgentVar = "MACHINE_AGENT"

// ErrNoAgent says that the program was built without agents.
var ErrNoAgent = errors.New("agent not built: make build")

// Agent returns the agent's binary for linux on arch (amd64 or arm64).
func Agent(arch string) ([]byte, error) {
	if path := os.Getenv(AgentVar); path != "" {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", AgentVar, err)
		}
		if err := checkArch(data, arch); err != nil {
			return nil, fmt.Errorf("%s=%s: %w", AgentVar, path, err)
		}
		return data, nil
	}
	packed, err := embedded.ReadFile("embed/agent-linux-" + arch + ".zst")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoAgent
	}
	if err != nil {
		return nil, err
	}
	r, err := zstd.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("unpack agent: %w", err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("unpack agent: %w", err)
	}
	return data, nil
}

// Unpacked is an agent's binary with its SHA-256.
type Unpacked struct {
	Data []byte
	Sum  string
}

// Agents keep what was unpacked: many hosts at once shall not hold as many
// copies. The zero value is ready, and for use by many goroutines.
type Agents struct {
	mu    sync.Mutex
	known map[string]Unpacked
}

// get returns the agent for a processor; a nil Agents keeps nothing.
func (a *Agents) get(arch string) (Unpacked, error) {
	if a == nil {
		a = &Agents{}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if u, ok := a.known[arch]; ok {
		return u, nil
	}
	data, err := Agent(arch)
	if err != nil {
		return Unpacked{}, err
	}
	if a.known == nil {
		a.known = map[string]Unpacked{}
	}
	u := Unpacked{data, ssh.Sum(data)}
	a.known[arch] = u
	return u, nil
}

// AgentFile writes the agent for arch into dir as agent-<sha12>, unless it is
// there, and returns its path. Older ones are left for machines that run them.
func AgentFile(dir, arch string) (string, error) {
	key := ""
	if path := os.Getenv(AgentVar); path == "" {
		packed, err := embedded.ReadFile("embed/agent-linux-" + arch + ".zst")
		if err != nil {
			return "", ErrNoAgent
		}
		// The name is of the packed bytes: no unpacking to find the file.
		key = sum12(packed)
		file := filepath.Join(dir, "agent-"+key)
		if _, err := os.Stat(file); err == nil {
			return file, nil
		}
	}
	data, err := Agent(arch)
	if err != nil {
		return "", err
	}
	if key == "" {
		key = sum12(data)
	}
	file := filepath.Join(dir, "agent-"+key)
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	sweep(dir, time.Now().Add(-time.Hour))
	f, err := os.CreateTemp(dir, ".agent-*")
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o755), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return "", fmt.Errorf("write agent: %w", err)
	}
	return file, nil
}

// sweep removes what writers that were killed long ago have left.
func sweep(dir string, before time.Time) {
	left, _ := filepath.Glob(filepath.Join(dir, ".agent-*"))
	for _, f := range left {
		if fi, err := os.Stat(f); err == nil && fi.ModTime().Before(before) {
			_ = os.Remove(f)
		}
	}
}

func sum12(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])[:12]
}

func checkArch(data []byte, arch string) error {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("not a program for Linux: %w", err)
	}
	want := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[arch]
	if f.Machine != want {
		return fmt.Errorf("is for %v, the host is %s", f.Machine, arch)
	}
	return nil
}
