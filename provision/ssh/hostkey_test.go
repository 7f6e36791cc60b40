package ssh

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/crypto/ssh"
)

func newKey(t *testing.T) ssh.PublicKey {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func check(t *testing.T, c Config, key ssh.PublicKey) error {
	t.Helper()
	h, err := newHostKeys(c)
	if err != nil {
		return err
	}
	return h.check("", nil, key)
}

func TestS42HostKeys(t *testing.T) {
	file := filepath.Join(t.TempDir(), "known_hosts")
	told := 0
	c := Config{Host: "10.0.0.5", Alias: "web", KnownHosts: file, Say: func(string, ...any) { told++ }}
	first, other := newKey(t), newKey(t)
	if err := check(t, c, first); err != nil || told != 1 {
		t.Fatalf("first contact: %v, told %d times", err, told)
	}
	c.Host = "10.0.0.6" // the same machine at another address
	if err := check(t, c, first); err != nil || told != 1 {
		t.Errorf("same key: %v, told %d times", err, told)
	}
	var hk *HostKeyError
	if err := check(t, c, other); !errors.As(err, &hk) || hk.Want != ssh.FingerprintSHA256(first) {
		t.Errorf("other key: %v", err)
	}
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("file: %v %v", fi, err)
	}
	c.Alias = "db" // another machine in the same file knows nothing of web
	if err := check(t, c, other); err != nil {
		t.Errorf("another machine: %v", err)
	}
	line := "@revoked web " + string(ssh.MarshalAuthorizedKey(first))
	old, _ := os.ReadFile(file)
	if err := os.WriteFile(file, append([]byte(line), old...), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Alias = "web"
	if err := check(t, c, first); !errors.As(err, &hk) || hk.Want != "" {
		t.Errorf("revoked key: %v", err)
	}
	if err := os.WriteFile(file, []byte("web ssh-ed25519 garbage\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := check(t, c, other); err == nil {
		t.Error("a damaged file turned into trust")
	}
}

func TestKeyModes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "id")
	if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	var ke *KeyError
	if _, err := readKey(file); !errors.As(err, &ke) {
		t.Errorf("open key: %v", err)
	}
}

func FuzzKnownHosts(f *testing.F) {
	f.Add([]byte("web ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAID1n7nvuZpjsVTtBRIcQzFM+bwADvOdjG/uPcGK2AKSP\n@revoked * x\n"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		file := filepath.Join(dir, "k")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if h, err := newHostKeys(Config{KnownHosts: file, Host: "web"}); err == nil {
			_ = h.algorithms()
		}
	})
}
