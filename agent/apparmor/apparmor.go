// Package apparmor loads the profile that confines containers, docker-default,
// into a kernel that has AppArmor.
package apparmor

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// defaultProfile is the name that Docker's users know.
const defaultProfile = "docker-default"

// A host is where AppArmor is found: its files in the kernel, its macros, its
// compiler.
type host struct {
	enabled  string // Y when the kernel enforces profiles
	profiles string // those that are loaded, a line each
	current  string // our own
	macros   string // directory
	parser   string // apparmor_parser(8)
}

// SetUp sees to it that the default profile is loaded, where the kernel has
// AppArmor, and tells of both. A profile that is there stays as it is, whoever
// loaded it. Safe to repeat: containers that run are confined by it on and on.
// dir takes the profile's text. What cannot be done is told in the log;
// containers are unconfined then, and it shows in inspect.
func SetUp(ctx context.Context, dir string, log *slog.Logger) (kernel, loaded bool) {
	h := host{
		enabled: "/sys/module/apparmor/parameters/enabled", profiles: "/sys/kernel/security/apparmor/profiles",
		current: "/proc/self/attr/current", macros: "/etc/apparmor.d", parser: "apparmor_parser",
	}
	return h.setUp(ctx, dir, log)
}

func (h host) setUp(ctx context.Context, dir string, log *slog.Logger) (kernel, loaded bool) {
	on, _ := os.ReadFile(h.enabled)
	if !strings.HasPrefix(string(on), "Y") {
		return false, false
	}
	if h.loaded(defaultProfile) {
		return true, true
	}
	if err := h.load(ctx, filepath.Join(dir, "apparmor-"+defaultProfile)); err != nil {
		log.Warn("containers are not confined by AppArmor: install apparmor_parser (package apparmor) and start the agent again", "error", err)
		return true, false
	}
	return true, true
}

// loaded tells whether the kernel has a profile.
func (h host) loaded(name string) bool {
	list, _ := os.ReadFile(h.profiles)
	for line := range bytes.Lines(list) {
		if bytes.HasPrefix(line, []byte(name+" ")) {
			return true
		}
	}
	return false
}

// load writes the default profile to file and has it compiled and loaded.
func (h host) load(ctx context.Context, file string) error {
	parser, err := exec.LookPath(h.parser)
	if err != nil {
		return err
	}
	own, _ := os.ReadFile(h.current) // "name (mode)", or "unconfined"
	daemon, _, _ := strings.Cut(strings.TrimSpace(string(own)), " ")
	has := func(macro string) bool { _, err := os.Stat(filepath.Join(h.macros, macro)); return err == nil }
	if err := os.WriteFile(file, []byte(profileText(defaultProfile, daemon, has)), 0o600); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	// No cache: it would be the host's to keep.
	if out, err := exec.CommandContext(ctx, parser, "--skip-cache", "--replace", file).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", parser, err, bytes.TrimSpace(out))
	}
	return nil
}

// profileText is a profile that forbids what Docker's default does: mounts,
// most of what can be written in /proc and /sys, and the signals and traces of
// other containers. daemon is the profile of this process; has tells which
// macros the host has. Source: apparmor.d(5).
func profileText(name, daemon string, has func(macro string) bool) string {
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	if has("tunables/global") {
		line("#include <tunables/global>")
	} else {
		line("@{PROC}=/proc/")
	}
	line("profile %s flags=(attach_disconnected,mediate_deleted) {", name)
	if has("abstractions/base") {
		line("  #include <abstractions/base>")
	}
	for _, allowed := range []string{"network", "capability", "file", "umount"} {
		line("  %s,", allowed)
	}
	line("  signal (receive) peer=unconfined,")
	if daemon != "" && daemon != "unconfined" {
		line("  signal (receive) peer=%s,", daemon)
	}
	line("  signal (send,receive) peer=%s,", name)
	line("  ptrace (trace,read,tracedby,readby) peer=%s,", name)
	line("  deny mount,")
	// In /proc only processes' own folders and shared memory's settings.
	line("  deny @{PROC}/* w,")
	line("  deny @{PROC}/[^1-9s]*/** w,")
	for _, p := range besides("@{PROC}/s", "ys/kernel/shm") {
		line("  deny %s w,", p)
	}
	line("  deny @{PROC}/{sysrq-trigger,kcore} rwklx,")
	for _, p := range besides("/sys/", "fs/cgroup") {
		line("  deny %s wklx,", p)
	}
	line("  deny /sys/{firmware,kernel/security}/** rwklx,")
	line("}")
	return b.String()
}

// besides gives patterns for all that begins with base, but not with base and
// keep: AppArmor has no other way to say so.
func besides(base, keep string) (patterns []string) {
	for i := range keep {
		patterns = append(patterns, base+keep[:i]+"[^"+keep[i:i+1]+"]**")
	}
	return patterns
}
