package shim

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	mobyseccomp "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"machine/agent/model"
)

var shimBinary []byte

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if os.Getenv("SHIM_TEST_CHILD") != "" {
		return childMain()
	}
	dir, err := os.MkdirTemp("", "shim-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "shim")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "machine/agent/shim/main")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the shim: %v\n%s", err, out)
		return 1
	}
	if shimBinary, err = os.ReadFile(path); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// A bench makes containers of busybox for one test.
type bench struct {
	t   testing.TB
	dir string
	s   *Shim

	profile *specs.LinuxSeccomp
}

const testParent = "machine-test"

var (
	counter atomic.Int64
	theRun  = rand.Uint32()
)

func newBench(t testing.TB) *bench {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("", "shim-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("temp files stay: %v", err)
		}
	})
	b := &bench{t: t, dir: dir}
	b.rootfs()
	must(t, os.WriteFile(filepath.Join(dir, "shim"), shimBinary, 0o600))
	b.s = b.shim()
	return b
}

func (b *bench) shim() *Shim {
	b.t.Helper()
	s, err := New(Options{Root: filepath.Join(b.dir, "tasks"), CgroupParent: testParent, Binary: shimBinary,
		Log: slog.New(slog.NewTextHandler(testWriter{b.t}, nil))})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(s.Close)
	return s
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func (b *bench) lower() string { return filepath.Join(b.dir, "lower") }

func (b *bench) write(path, data string, mode os.FileMode) {
	b.t.Helper()
	path = filepath.Join(b.lower(), path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), mode); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) rootfs() {
	b.t.Helper()
	if err := os.Chmod(b.dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	bb, err := os.ReadFile("/bin/busybox")
	if err != nil {
		b.t.Skip("needs /bin/busybox")
	}
	b.write("bin/busybox", string(bb), 0o755)
	for _, n := range []string{"sh", "true", "false", "cat", "echo", "sleep", "id", "ls", "mount", "stat", "dd", "ps", "kill", "printf",
		"seq", "tty", "stty", "hostname", "readlink", "grep", "head", "wc", "mkdir", "touch", "unshare", "env", "pwd", "yes", "ulimit", "test", "nc", "umount", "chmod", "tail", "mknod"} {
		if err := os.Link(filepath.Join(b.lower(), "bin/busybox"), filepath.Join(b.lower(), "bin", n)); err != nil {
			b.t.Fatal(err)
		}
	}
	b.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n", 0o644)
	b.write("etc/group", "root:x:0:root\nwheel:x:10:root\nuser:x:1000:\nextra:x:2000:user\n", 0o644)
	for _, d := range []string{"proc", "sys", "dev", "tmp", "root"} {
		if err := os.MkdirAll(filepath.Join(b.lower(), d), 0o755); err != nil {
			b.t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(b.lower(), "tmp"), 0o1777); err != nil {
		b.t.Fatal(err)
	}
}

var defaultCaps = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}

func defaultMounts() []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
	}
}

// bundle is a container as Docker would have it.
func (b *bench) bundle(args ...string) *model.Bundle {
	b.t.Helper()
	// Cgroups are the computer's: those of another run must not be hit.
	id := fmt.Sprintf("t%08x-%d", theRun, counter.Add(1))
	dir := filepath.Join(b.dir, id)
	for _, d := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			b.t.Fatal(err)
		}
	}
	pids := int64(4096)
	spec := &specs.Spec{Version: "1.0.0", Hostname: "box", Mounts: defaultMounts(), Linux: &specs.Linux{
		Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace}},
		Resources:  &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &pids}},
		MaskedPaths: []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
			"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"},
		ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
	}}
	spec.Process = &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: defaultCaps}}
	if b.profile == nil {
		var err error
		if b.profile, err = mobyseccomp.GetDefaultProfile(spec); err != nil {
			b.t.Fatal(err)
		}
	}
	spec.Linux.Seccomp = b.profile
	return &model.Bundle{ID: id, Dir: filepath.Join(dir, "task"), Spec: spec,
		Rootfs: model.Rootfs{Lower: []string{b.lower()}, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work")},
		Process: model.Process{Args: args, Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cwd: "/", Caps: defaultCaps},
		Log: model.LogConfig{Driver: "json-file", Path: filepath.Join(dir, "log.json"), MaxFiles: 1}}
}

func ctxOf(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (b *bench) create(bu *model.Bundle) model.Task {
	b.t.Helper()
	t, err := b.s.Create(ctxOf(b.t), bu)
	if err != nil {
		b.t.Fatalf("create: %v", err)
	}
	b.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := t.Delete(ctx); err != nil {
			b.t.Errorf("delete: %v", err)
		}
	})
	return t
}

func (b *bench) start(bu *model.Bundle) model.Task {
	b.t.Helper()
	t := b.create(bu)
	if err := t.Start(ctxOf(b.t)); err != nil {
		b.t.Fatalf("start: %v", err)
	}
	return t
}

func await(t testing.TB, k model.Task) model.ExitStatus {
	t.Helper()
	select {
	case <-k.Done():
	case <-time.After(60 * time.Second):
		t.Fatal("the container does not end")
	}
	return k.Exit()
}

// run gives the outputs and exit of a container.
func (b *bench) run(bu *model.Bundle) (stdout, stderr string, st model.ExitStatus) {
	b.t.Helper()
	k := b.create(bu)
	s, err := k.Attach(model.AttachOptions{Stdout: true, Stderr: true})
	if err != nil {
		b.t.Fatal(err)
	}
	defer s.Close()
	wait := collect(s)
	if err := k.Start(ctxOf(b.t)); err != nil {
		b.t.Fatalf("start: %v", err)
	}
	st = await(b.t, k)
	stdout, stderr = wait()
	return stdout, stderr, st
}

func collect(s *model.Streams) func() (string, string) {
	var out, errs bytes.Buffer
	done := make(chan struct{}, 2)
	n := 0
	for _, p := range []struct {
		r io.Reader
		w *bytes.Buffer
	}{{s.Stdout, &out}, {s.Stderr, &errs}} {
		if p.r == nil {
			continue
		}
		n++
		go func() { io.Copy(p.w, p.r); done <- struct{}{} }()
	}
	return func() (string, string) {
		for range n {
			<-done
		}
		return out.String(), errs.String()
	}
}

// sh runs a script in a container and gives what it printed.
func (b *bench) sh(script string, change ...func(*model.Bundle)) string {
	b.t.Helper()
	bu := b.bundle("sh", "-c", script)
	for _, c := range change {
		c(bu)
	}
	out, errs, st := b.run(bu)
	if st.Code != 0 {
		b.t.Fatalf("%s: exit %d\n%s%s", script, st.Code, out, errs)
	}
	return strings.TrimSpace(out)
}

func execIn(t testing.TB, k model.Task, p model.Process) (stdout, stderr string, st model.ExitStatus) {
	t.Helper()
	if len(p.Env) == 0 {
		p.Env = []string{"PATH=/bin"}
	}
	e, err := k.Exec(ctxOf(t), p)
	if err != nil {
		t.Fatalf("exec: %v", err)
	}
	defer e.Release()
	s, err := e.Attach()
	if err != nil {
		t.Fatal(err)
	}
	wait := collect(s)
	if st, err = e.Wait(ctxOf(t)); err != nil {
		t.Fatalf("wait: %v", err)
	}
	stdout, stderr = wait()
	return stdout, stderr, st
}

var nobody = &syscall.Credential{Uid: 65534, Gid: 65534}

// childMain is the test binary started as something else.
func childMain() int {
	switch os.Getenv("SHIM_TEST_CHILD") {
	case "agent":
		return agentChild()
	case "dial":
		fd, err := dial(os.Getenv("SHIM_TEST_DIR"))
		if err != nil {
			fmt.Println("dial:", err)
			return 1
		}
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}) // a shim that talks to us waits for our word
		if n, err := unix.Read(fd, make([]byte, 1)); n != 0 {
			fmt.Println("read:", n, err)
			return 1
		}
		fmt.Println("dropped")
	}
	return 0
}
