package lifecycle

import (
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

func TestParsePlace(t *testing.T) {
	for in, want := range map[string]Place{
		"a/b":             {Path: "a/b"},
		"localhost:/x":    {Path: "/x"},
		"web:/srv":        {Machine: "web", Path: "/srv"},
		"me@web:f:g":      {Machine: "web", User: "me", Path: "f:g"},
		"web:":            {Machine: "web", Path: "."},
		"./odd:name":      {Path: "./odd:name"},
		`C:\files`:        {Machine: "C", Path: `\files`},
		"/abs/with:colon": {Path: "/abs/with:colon"},
	} {
		if got := ParsePlace(in, false); got != want {
			t.Errorf("%q: %+v, want %+v", in, got, want)
		}
	}
	if got := ParsePlace(`C:\files`, true); got != (Place{Path: `C:\files`}) {
		t.Errorf("drive letter: %+v", got)
	}
}

// hostile lists names that lead out of the target.
type hostile struct {
	localTree
	name string
}

type named struct {
	fs.FileInfo
	name string
}

func (n named) Name() string { return n.name }

func (h hostile) Stat(string) (fs.FileInfo, error) { return fstest.MapFS{"d/f": {}}.Stat("d") }

func (h hostile) List(string) ([]fs.FileInfo, error) {
	fi, err := fstest.MapFS{"f": {Data: []byte("x")}}.Stat("f")
	return []fs.FileInfo{named{fi, h.name}}, err
}

func (h hostile) Open(string) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader("owned")), nil
}

// TestS44HostileNames: a host cannot choose where its files go.
func TestS44HostileNames(t *testing.T) {
	for _, name := range []string{"../evil", "/etc/evil", "..", ".", "", "a/../../evil", "x\x00y"} {
		dir := t.TempDir()
		target := filepath.Join(dir, "in")
		h := hostile{name: name}
		c := copier{ctx: context.Background(), from: h, to: localTree{}, joinFrom: filepath.Join, joinTo: filepath.Join, CopyOptions: CopyOptions{Recursive: true}}
		info, _ := h.Stat("d")
		if err := c.copy("d", target, info); err == nil {
			t.Errorf("name %q was taken", name)
		}
		if entries, _ := os.ReadDir(dir); len(entries) > 1 {
			t.Errorf("name %q wrote outside: %v", name, entries)
		}
	}
}

func FuzzImport(f *testing.F) {
	f.Add([]byte(magic), "x")
	f.Fuzz(func(t *testing.T, data []byte, pass string) {
		if len(data) > 1<<10 {
			return
		}
		if _, err := unseal(data, pass); err == nil {
			t.Fatal("opened")
		}
	})
}
