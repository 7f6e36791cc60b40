package generic_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"machine/drivers"
	"machine/drivers/driverstest"
	"machine/drivers/generic"
)

func TestSuite(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	driverstest.Run(t, driverstest.Case{Kind: generic.Kind(), Options: drivers.Options{
		"generic-ip-address": "127.0.0.1", "generic-ssh-port": l.Addr().(*net.TCPAddr).Port,
	}})
}

func TestKeyIsChecked(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for key, want := range map[string]string{
		filepath.Join(dir, "none"):            "does not exist",
		write("id.pub", "ssh-ed25519 AAAA x"): "public half",
		write("id", "no key at all"):          "no key",
	} {
		d := generic.Kind().New(drivers.Env{Store: dir, Machine: "m"})
		err := d.Configure(drivers.Options{"generic-ip-address": "h", "generic-ssh-key": key, "generic-ssh-port": 22, "generic-engine-port": 2376})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.(drivers.Checker).PreCreateCheck(context.Background()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", key, err, want)
		}
	}
}
