package sysfile

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFiles(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	if err := Put(name, "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Put made a file: %v", err)
	}
	long := strings.Repeat("0123456789abcdef", 1000)
	for _, want := range []string{"short", long, long, "", "again"} {
		for _, f := range []func(string, []byte, uint32) error{Write, Rewrite} {
			if err := f(name, []byte(want), 0o640); err != nil {
				t.Fatal(err)
			}
			if got, err := Read(name, 1<<20); err != nil || string(got) != want {
				t.Fatalf("%d bytes became %d, %v", len(want), len(got), err)
			}
		}
		before, _ := os.Stat(name)
		if err := Rewrite(name, []byte(want+"+"), 0o640); err != nil {
			t.Fatal(err)
		}
		after, _ := os.Stat(name)
		if !os.SameFile(before, after) || after.Size() != int64(len(want)+1) {
			t.Errorf("rewritten %q has %d bytes", want, after.Size())
		}
	}
	if got, _ := Read(name, 3); string(got) != "aga" {
		t.Errorf("a limit of 3 gave %q", got)
	}
}
