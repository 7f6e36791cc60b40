package apparmor

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// denies tells whether a profile's text denies an access to a path.
func denies(t *testing.T, text, path, access string) bool {
	t.Helper()
	for line := range strings.Lines(text) {
		f := strings.Fields(strings.Trim(strings.TrimSpace(line), ","))
		if len(f) != 3 || f[0] != "deny" || !strings.Contains(f[2], access) {
			continue
		}
		// apparmor.d(5): * stays in a folder, ** does not, {a,b} is either.
		re := strings.NewReplacer("@{PROC}", "/proc", "**", ".+", "*", "[^/]+", "{", "(", "}", ")", ",", "|").Replace(f[1])
		if regexp.MustCompile("^" + re + "$").MatchString(path) {
			return true
		}
	}
	return false
}

func TestProfileText(t *testing.T) {
	none := func(string) bool { return false }
	text := profileText("docker-default", "unconfined", none)
	for _, c := range []struct {
		path   string
		access string
		deny   bool
	}{
		{"/proc/sysrq-trigger", "w", true}, {"/proc/sysrq-trigger", "r", true}, {"/proc/kcore", "r", true}, {"/proc/version", "r", false},
		{"/proc/1/attr/current", "w", false}, {"/proc/42/task/42/comm", "w", false}, {"/proc/uptime", "w", true},
		{"/proc/sys/kernel/core_pattern", "w", true}, {"/proc/sys/kernel/modprobe", "w", true}, {"/proc/sys/kernel/shmmax", "w", false},
		{"/proc/sys/kernel/sysrq", "w", true}, {"/proc/sys/vm/drop_caches", "w", true}, {"/proc/sys/net/ipv4/ip_forward", "w", true},
		{"/proc/sys/net/ipv4/ip_forward", "r", false}, {"/proc/irq/1/smp_affinity", "w", true}, {"/proc/scsi/scsi", "w", true},
		{"/proc/sysvipc/shm", "w", true}, {"/proc/acpi/wakeup", "w", true},
		{"/sys/kernel/uevent_helper", "w", true}, {"/sys/firmware/acpi", "r", true}, {"/sys/kernel/security/apparmor/profiles", "r", true},
		{"/sys/fs/cgroup/memory/x", "w", false}, {"/sys/fs/bpf/x", "w", true}, {"/sys/fs/ext4/x", "w", true}, {"/sys/class/net/eth0/mtu", "w", true},
		{"/sys/class/net/eth0/mtu", "r", false}, {"/etc/passwd", "w", false},
	} {
		if got := denies(t, text, c.path, c.access); got != c.deny {
			t.Errorf("%s %s: denied: %v", c.access, c.path, got)
		}
	}
	for _, want := range []string{"\n  deny mount,\n", "@{PROC}=/proc/\n", "profile docker-default flags=", "\n  ptrace (trace,read,tracedby,readby) peer=docker-default,\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q in\n%s", want, text)
		}
	}
	text = profileText("docker-default", "agent", func(string) bool { return true })
	for _, want := range []string{"#include <tunables/global>", "#include <abstractions/base>", "signal (receive) peer=agent,"} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q in\n%s", want, text)
		}
	}
}

// TestS13Profile: the profile is loaded where it is not, is left alone where it
// is, and is in force on the second start as on the first.
func TestS13Profile(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	loads := filepath.Join(dir, "loads")
	h := host{enabled: file("enabled", "N\n", 0o600), profiles: file("profiles", "docker-default-more (enforce)\n", 0o600), current: dir, macros: dir,
		parser: file("parser", "#!/bin/sh\necho x >>"+loads+"\ngrep -q '^profile docker-default ' $3 && echo 'docker-default (enforce)' >>"+dir+"/profiles\n", 0o700)}
	var log strings.Builder
	start := func() string {
		kernel, loaded := h.setUp(context.Background(), dir, slog.New(slog.NewTextHandler(&log, nil)))
		n, _ := os.ReadFile(loads)
		return map[bool]string{true: "kernel ", false: ""}[kernel] + map[bool]string{true: "default ", false: ""}[loaded] + strings.Repeat("load ", len(n)/2)
	}
	if got := start(); got != "" {
		t.Errorf("no AppArmor: %s", got)
	}
	file("enabled", "Y\n", 0o600)
	parser := h.parser
	h.parser = filepath.Join(dir, "absent")
	if got := start(); got != "kernel " || !strings.Contains(log.String(), "not confined") {
		t.Errorf("no parser: %s, %s", got, &log)
	}
	h.parser = parser
	for range 2 {
		if got := start(); got != "kernel default load " {
			t.Errorf("with it: %s, %s", got, &log)
		}
	}
}
