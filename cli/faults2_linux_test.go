package cli_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"machine/acceptance/hosts"
)

// TestF8DeletedBehindOurBack: a machine whose host is gone is removed without
// an error, as is one whose files were thrown away.
func TestF8DeletedBehindOurBack(t *testing.T) {
	hosts.Isolated(t)
	t.Setenv("MACHINE_AGENT", hosts.FakeAgent(t, "fake-1"))
	store := newStore(t)
	h := hosts.New(t)
	must(t, "create", "-d", "generic", "--generic-ip-address", h.IP, "--generic-ssh-key", h.Key, "web")
	must(t, "create", "-d", "local", "dev")
	h.Kill()
	must(t, "kill", "dev")
	if err := os.RemoveAll(filepath.Join(store, "machines/dev/root")); err != nil {
		t.Fatal(err)
	}
	if out := must(t, "ls", "-t", "3"); !strings.Contains(out, "web") || !strings.Contains(out, "dev") {
		t.Errorf("ls: %s", out)
	}
	must(t, "rm", "-y", "web", "dev")
	noTrace(t)
}

// TestF16ClockSkew: minutes do not matter, days are told.
func TestF16ClockSkew(t *testing.T) {
	hosts.Isolated(t)
	t.Setenv("MACHINE_AGENT", hosts.FakeAgent(t, "fake-1"))
	newStore(t)
	// The host's date, a program that lies.
	date := func(off string) hosts.Options {
		return hosts.Options{Setup: "cat >/usr/local/bin/date <<'E'\n#!/bin/sh\necho $(($(/bin/date +%s) " + off + "))\nE\nchmod 755 /usr/local/bin/date\n"}
	}
	for _, c := range []struct {
		off  string
		want int
	}{{"- 600", 0}, {"+ 600", 0}, {"- 172800", 1}, {"+ 172800", 1}} {
		h := hosts.New(t, date(c.off))
		code, _, errs := machine(t, "create", "-d", "generic", "--generic-ip-address", h.IP, "--generic-ssh-key", h.Key, "web")
		if code != c.want || code != 0 && !strings.Contains(errs, "clock is") {
			t.Errorf("clock %s: exit %d, %s", c.off, code, errs)
		}
		must(t, "rm", "-y", "web")
		h.Kill()
	}
}

// TestF7RemoveFails: a machine whose removal failed stays, is told by ls, and
// can be removed later.
func TestF7RemoveFails(t *testing.T) {
	hosts.Isolated(t)
	bin, store := build(t), newStore(t)
	// A foreign driver whose Remove fails: one that is not there any more.
	dir := filepath.Join(store, "machines/web")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	conf := `{"ConfigVersion":3,"Driver":{},"DriverName":"vanished","HostOptions":{},"Name":"web"}`
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(bin, "rm", "-y", "web").CombinedOutput()
	if err == nil || !strings.Contains(string(out), `Error removing host "web"`) {
		t.Errorf("rm: %v %s", err, out)
	}
	if got := must(t, "ls"); !strings.Contains(got, "web") || !strings.Contains(got, `Driver "vanished" not found`) {
		t.Errorf("ls: %s", got)
	}
	if data, _ := os.ReadFile(filepath.Join(dir, "config.json")); string(data) != conf {
		t.Errorf("config.json was changed: %s", data)
	}
	must(t, "rm", "-f", "web")
	if _, err := os.Stat(dir); err == nil {
		t.Error("rm -f left the folder")
	}
}

// TestF23DiskFull: on a full disk the old bytes stay, and the store is sound
// when there is room again.
func TestF23DiskFull(t *testing.T) {
	hosts.Isolated(t)
	store := newStore(t)
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", store).CombinedOutput(); err != nil {
		t.Skipf("mount: %s", out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", store).Run() })
	must(t, "create", "-d", "none", "--url", "tcp://127.0.0.1:1", "web")
	before, err := os.ReadFile(filepath.Join(store, "machines/web/config.json"))
	if err != nil {
		t.Fatal(err)
	}
	filler, err := os.Create(filepath.Join(store, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := filler.Write(make([]byte, 1024)); err != nil {
			break
		}
	}
	_ = filler.Close()
	fleet := filepath.Join(t.TempDir(), "fleet.yaml")
	text := fmt.Sprintf("machines:\n  web: {driver: none, options: {url: tcp://127.0.0.1:2}, labels: [a=%s]}\n", strings.Repeat("x", 8192))
	if err := os.WriteFile(fleet, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := machine(t, "apply", "-f", fleet); code != 1 || !strings.Contains(errs, "no space left") {
		t.Errorf("change on a full disk: %d %s", code, errs)
	}
	if code, _, _ := machine(t, "create", "-d", "none", "--url", "tcp://127.0.0.1:1", "two"); code != 1 {
		t.Error("a machine was made on a full disk")
	}
	if now, _ := os.ReadFile(filepath.Join(store, "machines/web/config.json")); string(now) != string(before) {
		t.Errorf("config.json on a full disk: %q", now)
	}
	if err := os.Remove(filler.Name()); err != nil {
		t.Fatal(err)
	}
	must(t, "apply", "-f", fleet)
	if got := must(t, "url", "web"); got != "tcp://127.0.0.1:2\n" {
		t.Errorf("url: %s", got)
	}
	must(t, "rm", "-f", "two", "web")
}
