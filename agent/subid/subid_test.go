package subid

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSubordinate(t *testing.T) {
	f := filepath.Join(t.TempDir(), "subuid")
	text := "# a comment\nother:100000:65536\nroot:0:10\nbig:4294967295:2\nbad:x:1\nuser:300000:1000\n7777:165536:65536"
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, id    string
		first, size uint32
	}{{"user", "1000", 300000, 1000}, {"mapped", "7777", 165536, 65536}, {"root", "0", 0, 0}, {"big", "1", 0, 0}, {"bad", "1", 0, 0}, {"none", "1", 0, 0}} {
		first, size, err := subordinate(f, c.name, c.id)
		if first != c.first || size != c.size || (err == nil) != (c.size > 0) {
			t.Errorf("%s: got %d %d %v, want %d %d", c.name, first, size, err, c.first, c.size)
		}
	}
	if err := addRange(f, "dockremap"); err == nil {
		t.Error("a range was found behind the last id")
	}
	text = strings.Replace(text, "big:4294967295:2\n", "", 1)
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // safe to repeat
		if err := addRange(f, "dockremap"); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(f)
	if want := text + "\ndockremap:301000:65536\n"; err != nil || string(b) != want {
		t.Errorf("got %q, %v, want %q", b, err, want)
	}
}
