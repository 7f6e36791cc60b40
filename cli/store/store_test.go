package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func newStore(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSaveLoadNames(t *testing.T) {
	s := newStore(t)
	for _, n := range []string{"b", "a"} {
		rec := &Record{Name: n, DriverName: "none", Driver: json.RawMessage(`{"URL":"tcp://1.2.3.4:2376"}`)}
		if err := s.Save(rec); err != nil {
			t.Fatal(err)
		}
	}
	unlock, err := s.Lock(context.Background(), "a", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	names, err := s.Names()
	if err != nil || strings.Join(names, " ") != "a b" {
		t.Fatalf("Names: %v %v", names, err)
	}
	rec, err := s.Load("a")
	if err != nil || rec.DriverName != "none" {
		t.Fatalf("Load: %+v %v", rec, err)
	}
	if _, err := s.Load("ghost"); !errors.Is(err, ErrNotExist) {
		t.Fatalf("Load ghost: %v", err)
	}
	fi, _ := os.Stat(filepath.Join(s.MachineDir("a"), "config.json"))
	if fi.Mode().Perm() != 0o600 {
		t.Errorf("config.json mode %v", fi.Mode())
	}
}

func TestF25FutureIsRefusedAndKept(t *testing.T) {
	s := newStore(t)
	_ = os.MkdirAll(s.MachineDir("x"), 0o700)
	file := filepath.Join(s.MachineDir("x"), "config.json")
	text := `{"ConfigVersion": 4, "DriverName": "none"}`
	_ = os.WriteFile(file, []byte(text), 0o600)
	if _, err := s.Load("x"); !errors.Is(err, ErrFuture) {
		t.Fatalf("Load: %v", err)
	}
	if err := s.Save(&Record{Name: "x", DriverName: "none"}); !errors.Is(err, ErrFuture) {
		t.Fatalf("Save: %v", err)
	}
	if got, _ := os.ReadFile(file); string(got) != text {
		t.Fatalf("rewritten: %s", got)
	}
}

func TestF22GarbageOffersBackup(t *testing.T) {
	s := newStore(t)
	_ = os.MkdirAll(s.MachineDir("x"), 0o700)
	file := filepath.Join(s.MachineDir("x"), "config.json")
	v0 := `{"DriverName":"none","StorePath":"/s","CaCertPath":"/c/ca.pem","PrivateKeyPath":"/c/ca-key.pem","SwarmMaster":true,"Driver":{"URL":"tcp://h:1"}}`
	_ = os.WriteFile(file, []byte(v0), 0o600)
	rec, err := s.Load("x")
	if err != nil {
		t.Fatal(err)
	}
	a := rec.HostOptions.AuthOptions
	if a.CaPrivateKeyPath != "/c/ca-key.pem" || !rec.HostOptions.SwarmOptions.Master || !strings.Contains(string(rec.Driver), s.Dir) {
		t.Fatalf("migration: %+v %s", rec.HostOptions, rec.Driver)
	}
	if err := s.Save(rec); err != nil {
		t.Fatal(err)
	}
	if bak, _ := os.ReadFile(file + ".bak"); string(bak) != v0 {
		t.Fatalf("bak: %s", bak)
	}
	_ = os.WriteFile(file, []byte("{trunc"), 0o600)
	if _, err := s.Load("x"); err == nil || !strings.Contains(err.Error(), "config.json.bak") {
		t.Fatalf("Load garbage: %v", err)
	}
}

// TestF20Lock lets 16 goroutines add to one counter under the lock.
func TestF20Lock(t *testing.T) {
	s := newStore(t)
	var wg sync.WaitGroup
	file := s.Path("n")
	_ = os.WriteFile(file, []byte("0"), 0o600)
	for range 16 {
		wg.Go(func() {
			unlock, err := s.Lock(context.Background(), "m", nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer unlock()
			var n int
			data, _ := os.ReadFile(file)
			_, _ = fmt.Sscan(string(data), &n)
			_ = os.WriteFile(file, fmt.Appendf(nil, "%d", n+1), 0o600)
		})
	}
	wg.Wait()
	if data, _ := os.ReadFile(file); string(data) != "16" {
		t.Fatalf("lost updates: %s", data)
	}
	ctx, cancel := context.WithCancel(context.Background())
	unlock, _ := s.Lock(ctx, "m", nil)
	defer unlock()
	cancel()
	if _, err := s.Lock(ctx, "m", nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled Lock: %v", err)
	}
}

// TestF24KillInSave kills a process that saves in a loop; what is left is one
// of its whole records.
func TestF24KillInSave(t *testing.T) {
	if dir := os.Getenv("STORE_SAVE_LOOP"); dir != "" {
		s := &Store{Dir: dir}
		for i := 0; ; i++ {
			rec := &Record{Name: "m", DriverName: "none", Driver: json.RawMessage(`{}`)}
			rec.HostOptions.EngineOptions.Labels = []string{strings.Repeat("x", i%5000)}
			if err := s.Save(rec); err != nil {
				os.Exit(3)
			}
		}
	}
	for i := range 10 {
		dir := t.TempDir()
		cmd := exec.Command(os.Args[0], "-test.run=TestF24KillInSave$")
		cmd.Env = append(os.Environ(), "STORE_SAVE_LOOP="+dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		s := &Store{Dir: dir}
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
			if _, err := s.Load("m"); err == nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Duration(i) * 3 * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if _, err := s.Load("m"); err != nil {
			t.Fatalf("after kill: %v", err)
		}
	}
}

func TestJournal(t *testing.T) {
	s := newStore(t)
	if s.Pending("m") != nil {
		t.Fatal("pending without journal")
	}
	if err := s.Begin("m", Intent{Op: "create", Step: "driver"}); err != nil {
		t.Fatal(err)
	}
	if p := s.Pending("m"); p == nil || p.Step != "driver" {
		t.Fatalf("Pending: %+v", p)
	}
	if err := errors.Join(s.Done("m"), s.Done("m")); err != nil || s.Pending("m") != nil {
		t.Fatal("Done", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"ConfigVersion":3,"DriverName":"none","Driver":{}}`))
	f.Add([]byte(`{"ConfigVersion":1,"DriverName":"none","Driver":null,"StorePath":"/a/b/c"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		rec, _, err := decode(data, "/s/machines/m", "/s")
		if err == nil && rec.DriverName == "" {
			t.Fatal("record without driver")
		}
	})
}
