package plugin

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"machine/drivers"
	"machine/drivers/driverstest"
)

// fake is a driver that keeps its state in its machine's folder.
type fake struct {
	drivers.Base
	Tags  []string
	Size  int
	Fast  bool
	Panic string

	env drivers.Env
}

func fakeKind() drivers.Kind {
	return drivers.Kind{Name: "fake",
		Flags: []drivers.Flag{
			{Name: "fake-tags", Usage: "tags", Value: []string{}},
			{Name: "fake-size", Usage: "size", Env: "FAKE_SIZE", Value: 3},
			{Name: "fake-fast", Usage: "fast", Value: false},
			{Name: "fake-panic", Usage: "panic", Value: ""},
		},
		New: func(env drivers.Env) drivers.Driver { return &fake{env: env} }}
}

func (f *fake) Configure(o drivers.Options) error {
	f.Init(f.env, o)
	f.Tags, f.Size, f.Fast, f.Panic = o.Strings("fake-tags"), o.Int("fake-size"), o.Bool("fake-fast"), o.String("fake-panic")
	f.IPAddress, f.SSHUser = "192.0.2.7", "root"
	return nil
}

func (f *fake) file() string { return filepath.Join(f.StorePath, "machines", f.MachineName, "up") }

func (f *fake) Create(ctx context.Context) error {
	if f.Panic != "" {
		panic(f.Panic)
	}
	f.env.Say("creating, size %d", f.Size)
	return f.Start(ctx)
}

func (f *fake) Start(context.Context) error { return os.WriteFile(f.file(), nil, 0o600) }

func (f *fake) Stop(context.Context) error { return os.RemoveAll(f.file()) }

func (f *fake) Kill(ctx context.Context) error { return f.Stop(ctx) }

func (f *fake) Remove(context.Context) error { return os.RemoveAll(f.file()) }

func (f *fake) State(context.Context) (drivers.State, error) {
	if _, err := os.Stat(f.file()); err != nil {
		return drivers.Stopped, nil
	}
	return drivers.Running, nil
}

func (f *fake) Address(ctx context.Context) (drivers.Address, error) {
	a := f.Base.Address(2376)
	if st, _ := f.State(ctx); st != drivers.Running {
		a.URL = ""
		return a, drivers.ErrNotRunning
	}
	return a, nil
}

// TestMain makes this binary the plugin when it is asked to.
func TestMain(m *testing.M) {
	if os.Getenv("PLUGIN_TEST_SERVE") != "" {
		if err := Serve(context.Background(), fakeKind(), os.Stdout, nil); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// install puts a plugin on the PATH.
func install(t *testing.T) (path string) {
	t.Helper()
	dir := t.TempDir()
	text := fmt.Sprintf("#!/bin/sh\nPLUGIN_TEST_SERVE=1 exec %s\n", os.Args[0])
	if err := os.WriteFile(filepath.Join(dir, "docker-machine-driver-fake"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	path, ok := Find("fake")
	if !ok {
		t.Fatal("plugin not found")
	}
	return path
}

func TestFlagsOverTheWire(t *testing.T) {
	flags, err := Flags(context.Background(), "fake", install(t), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	want := fakeKind().Flags
	if len(flags) != len(want) {
		t.Fatalf("flags: %+v", flags)
	}
	for i, f := range flags {
		if f.Name != want[i].Name || f.Env != want[i].Env || fmt.Sprint(f.Value) != fmt.Sprint(want[i].Value) {
			t.Errorf("flag %+v, want %+v", f, want[i])
		}
	}
}

func TestSuiteThroughPlugin(t *testing.T) {
	kind := Kind("fake", install(t))
	kind.Flags = fakeKind().Flags
	wrapped := kind.New
	kind.New = func(env drivers.Env) drivers.Driver {
		d := wrapped(env)
		t.Cleanup(func() { _ = d.(drivers.Closer).Close() })
		return d
	}
	driverstest.Run(t, driverstest.Case{Kind: kind, Options: drivers.Options{"fake-tags": []string{"a", "b"}, "fake-fast": true}})
}

func TestPanicIsAnError(t *testing.T) {
	store := t.TempDir()
	d := Kind("fake", install(t)).New(drivers.Env{Machine: "m", Store: store, Log: slog.New(slog.DiscardHandler), Say: t.Logf})
	defer func() { _ = d.(drivers.Closer).Close() }()
	if err := d.Configure(drivers.Options{"fake-panic": "ouch"}); err != nil {
		t.Fatal(err)
	}
	if err := d.Create(context.Background()); err == nil || !strings.Contains(err.Error(), "ouch") {
		t.Errorf("Create: %v", err)
	}
	if err := d.Remove(context.Background()); err != nil {
		t.Errorf("the plugin died of the panic: %v", err)
	}
}

func TestF10DeadPlugin(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "docker-machine-driver-dead")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho nonsense\nexec sleep 60\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	d := Kind("dead", path).New(drivers.Env{Machine: "m", Store: dir, Log: slog.New(slog.DiscardHandler), Say: t.Logf})
	start := time.Now()
	if _, err := d.State(context.Background()); err == nil {
		t.Error("a plugin that talks nonsense has a state")
	}
	if time.Since(start) > 15*time.Second {
		t.Error("it took too long")
	}
	if err := d.(drivers.Closer).Close(); err != nil {
		t.Error(err)
	}
}

func TestNoTokenNoService(t *testing.T) {
	t.Setenv(tokenVar, "")
	if err := Serve(context.Background(), fakeKind(), os.Stdout, nil); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("served without token: %v", err)
	}
}

// TestS47OtherUser: another user's process gets neither configuration nor calls.
func TestS47OtherUser(t *testing.T) {
	if addr := os.Getenv("PLUGIN_TEST_DIAL"); addr != "" {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		c, err := dialHTTP(ctx, addr)
		if err != nil {
			os.Exit(7) // turned away
		}
		var v int
		if c.Call(service+".GetVersion", struct{}{}, &v) == nil {
			os.Exit(0)
		}
		os.Exit(7)
	}
	if os.Geteuid() != 0 || runtime.GOOS != "linux" {
		t.Skip("needs root, to be somebody else")
	}
	cmd := exec.Command(install(t))
	cmd.Env = append(os.Environ(), tokenVar+"="+tokenValue)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	// The test binary may lie where others cannot read: go there by copy.
	bin := filepath.Join("/var/tmp", fmt.Sprintf("plugin-test-%d", os.Getpid()))
	data, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bin, data, 0o755); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.Remove(bin) }()
	for uid, want := range map[uint32]int{0: 0, 65534: 7} {
		c := exec.Command(bin, "-test.run=TestS47OtherUser$")
		c.Dir = "/"
		c.Env = []string{"PLUGIN_TEST_DIAL=" + strings.TrimSpace(line)}
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		_ = c.Run()
		if got := c.ProcessState.ExitCode(); got != want {
			t.Errorf("user %d: exit %d, want %d", uid, got, want)
		}
	}
}
