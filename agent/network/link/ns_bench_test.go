package link

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// What a start waits for with and without a namespace made ahead of time.
func BenchmarkNS(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root")
	}
	path := filepath.Join(b.TempDir(), "ns")
	defer RemoveNS(path)
	b.Run("make and bind", func(b *testing.B) {
		for b.Loop() {
			ns, err := MakeNS()
			if err == nil {
				err = errors.Join(BindNS(ns, path), ns.Close())
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("bind", func(b *testing.B) {
		ns, err := MakeNS()
		if err != nil {
			b.Fatal(err)
		}
		defer ns.Close()
		for b.Loop() {
			if err := BindNS(ns, path); err != nil {
				b.Fatal(err)
			}
		}
	})
}
