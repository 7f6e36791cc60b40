package state

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

type rec struct{ A int }

func TestPutGetReopen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	s, broken, err := Open[rec](dir)
	if err != nil || broken != nil {
		t.Fatal(err, broken)
	}
	for _, bad := range []string{"", "a/b", ".hidden", "x\x00"} {
		if s.Put(bad, rec{}) == nil {
			t.Errorf("id %q was taken", bad)
		}
	}
	if err := s.Put("one", rec{1}); err != nil {
		t.Fatal(err)
	}
	s.Put("two", rec{2})
	s.Delete("two")
	if err := s.Delete("two"); err != nil {
		t.Errorf("delete twice: %v", err)
	}
	s, _, err = Open[rec](dir)
	if err != nil {
		t.Fatal(err)
	}
	if all := s.All(); len(all) != 1 || all["one"].A != 1 {
		t.Errorf("after reopening: %v", all)
	}
}

func TestBrokenRecordsAreSetAside(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "good.json"), []byte(`{"A":7}`), 0o600)
	os.WriteFile(filepath.Join(dir, "torn.json"), []byte(`{"A":`), 0o600)
	os.WriteFile(filepath.Join(dir, "odd.json"), []byte(`{"A":-1}`), 0o600)
	os.WriteFile(filepath.Join(dir, ".tmp-1"), []byte(`half`), 0o600)
	s, broken, err := OpenChecked(dir, func(_ string, r *rec) error {
		if r.A < 0 {
			return errors.New("negative")
		}
		return nil
	})
	if err != nil || len(broken) != 2 {
		t.Fatalf("%v, %v", err, broken)
	}
	if v, ok := s.Get("good"); !ok || v.A != 7 {
		t.Errorf("the good one: %v %v", v, ok)
	}
	if !s.Broken("torn") || !s.Broken("odd") || s.Broken("good") {
		t.Error("the broken ones are not set aside")
	}
	if _, err := os.Stat(filepath.Join(dir, ".tmp-1")); err == nil {
		t.Error("half a write is left")
	}
}

// On a full disk a record that exists can be saved once more, a new one not.
func TestReserve(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := fullDisk(t, 4<<20)
	r := NewReserve(filepath.Join(dir, ".reserve"), 1<<20)
	s, _, err := Open[rec](filepath.Join(dir, "r"))
	if err != nil {
		t.Fatal(err)
	}
	s.SetReserve(r)
	if err := s.Put("old", rec{1}); err != nil {
		t.Fatal(err)
	}
	fill(t, dir)
	if s.Put("new", rec{2}) == nil {
		t.Error("a new record was saved on a full disk")
	}
	if err := s.Put("old", rec{3}); err != nil {
		t.Errorf("an old record: %v", err)
	}
	os.Remove(filepath.Join(dir, "fill"))
	r.Refill()
	if _, err := os.Stat(filepath.Join(dir, ".reserve")); err != nil {
		t.Errorf("the reserve was not made again: %v", err)
	}
}
