// Package driverstest is the one suite that every driver passes.
package driverstest

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"machine/drivers"
)

// A Case is one driver to test.
type Case struct {
	Kind drivers.Kind
	// Options are flags beside the defaults with which Create works.
	Options drivers.Options
	// Agent finds the agent's binary, for drivers that need it.
	Agent func() (string, error)
	// Store is where the machine is kept; a temporary folder when empty.
	Store string
}

// Run checks flags and configuration of the driver, and takes one machine
// through its life: create, observe, power, remove, remove again.
func Run(t *testing.T, c Case) {
	t.Helper()
	if c.Store == "" {
		c.Store = t.TempDir()
	}
	t.Run("flags", func(t *testing.T) { checkFlags(t, c.Kind) })
	t.Run("life", func(t *testing.T) { life(t, c) })
}

func checkFlags(t *testing.T, k drivers.Kind) {
	seen := map[string]bool{}
	for _, f := range k.Flags {
		if seen[f.Name] || f.Name == "" || f.Usage == "" {
			t.Errorf("flag %q: twice, nameless or without usage", f.Name)
		}
		seen[f.Name] = true
		switch f.Value.(type) {
		case string, int, bool, []string:
		default:
			t.Errorf("flag %q has a default of type %T", f.Name, f.Value)
		}
	}
}

func options(c Case) drivers.Options {
	o := drivers.Options{}
	for _, f := range c.Kind.Flags {
		o[f.Name] = f.Value
	}
	for k, v := range c.Options {
		o[k] = v
	}
	return o
}

func life(t *testing.T, c Case) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	saves := 0
	env := drivers.Env{
		Machine: "suite", Store: c.Store, Log: slog.New(slog.DiscardHandler),
		Say: t.Logf, Save: func() error { saves++; return nil }, Agent: c.Agent,
	}
	if err := os.MkdirAll(filepath.Join(c.Store, "machines", "suite"), 0o700); err != nil {
		t.Fatal(err)
	}
	d := c.Kind.New(env)
	if err := d.Configure(options(c)); err != nil {
		t.Fatalf("Configure: %v", err)
	}
	if ch, ok := d.(drivers.Checker); ok {
		if err := ch.PreCreateCheck(ctx); err != nil {
			t.Fatalf("PreCreateCheck: %v", err)
		}
	}
	if err := d.Create(ctx); err != nil {
		t.Fatalf("Create: %v", err)
	}
	t.Cleanup(func() { _ = d.Remove(context.WithoutCancel(ctx)) })
	d = reload(t, c, env, d)
	wantState(ctx, t, d, drivers.Running)
	a, err := d.Address(ctx)
	if err != nil || a.IP == "" || a.URL == "" {
		t.Errorf("Address of a running machine: %+v, %v", a, err)
	}
	power(ctx, t, d, a)
	if err := d.Remove(ctx); err != nil {
		t.Errorf("Remove: %v", err)
	}
	if err := d.Remove(ctx); err != nil {
		t.Errorf("Remove of what is gone (F8): %v", err)
	}
}

// reload saves and loads the driver; nothing may be lost.
func reload(t *testing.T, c Case, env drivers.Env, d drivers.Driver) drivers.Driver {
	t.Helper()
	data, err := json.Marshal(d)
	if err != nil {
		t.Fatalf("save: %v", err)
	}
	for _, key := range []string{"IPAddress", "MachineName", "StorePath", "SSHUser"} {
		m := map[string]any{}
		if err := json.Unmarshal(data, &m); err != nil || m[key] == nil {
			t.Errorf("configuration has no %s: %s", key, data)
		}
	}
	again := c.Kind.New(env)
	if err := json.Unmarshal(data, again); err != nil {
		t.Fatalf("load: %v", err)
	}
	data2, err := json.Marshal(again)
	if err != nil || !reflect.DeepEqual(data, data2) {
		t.Errorf("configuration changed by saving: %s, was %s (%v)", data2, data, err)
	}
	return again
}

// power turns the machine off and on in each way that the driver has.
func power(ctx context.Context, t *testing.T, d drivers.Driver, was drivers.Address) {
	t.Helper()
	start, canStart := d.(drivers.Starter)
	if !canStart {
		return
	}
	offs := map[string]func(context.Context) error{}
	if s, ok := d.(drivers.Stopper); ok {
		offs["Stop"] = s.Stop
	}
	if k, ok := d.(drivers.Killer); ok {
		offs["Kill"] = k.Kill
	}
	for name, off := range offs {
		if err := off(ctx); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		wantState(ctx, t, d, drivers.Stopped)
		if a, err := d.Address(ctx); !errors.Is(err, drivers.ErrNotRunning) || a.URL != "" {
			t.Errorf("Address after %s: %+v, %v; want ErrNotRunning", name, a, err)
		}
		if err := off(ctx); err != nil {
			t.Errorf("%s of a stopped machine: %v", name, err)
		}
		if err := start.Start(ctx); err != nil {
			t.Fatalf("Start after %s: %v", name, err)
		}
		wantState(ctx, t, d, drivers.Running)
		if a, err := d.Address(ctx); err != nil || a.IP == "" {
			t.Errorf("Address after Start: %+v (was %+v), %v", a, was, err)
		}
	}
}

func wantState(ctx context.Context, t *testing.T, d drivers.Driver, want drivers.State) {
	t.Helper()
	got, err := d.State(ctx)
	for deadline := time.Now().Add(30 * time.Second); err == nil && got != want && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
		got, err = d.State(ctx)
	}
	if err != nil || got != want {
		t.Fatalf("State: %v, %v; want %v", got, err, want)
	}
}
