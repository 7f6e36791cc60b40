// Package acceptance holds whole-system tests and the rules of the tree.
package acceptance

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestImports holds every package to its line in imports.txt: what of ours it
// may import. It parses files itself: files read by a child "go list" are
// invisible to the test cache, so such a test would pass stale.
func TestImports(t *testing.T) {
	table, err := os.ReadFile("imports.txt")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for line := range strings.Lines(string(table)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		pkg, list, _ := strings.Cut(line, ":")
		listed[pkg] = true
		checkPackage(t, pkg, strings.Fields(list))
	}
	filepath.WalkDir("..", func(name string, d fs.DirEntry, err error) error {
		dir := strings.TrimPrefix(filepath.Dir(name), "../")
		if strings.HasSuffix(name, ".go") && !listed[dir] && !strings.Contains(name, "/testdata/") {
			listed[dir] = true
			t.Errorf("%s has no line in imports.txt", dir)
		}
		return err
	})
}

// engineWide are open to all engine packages.
var engineWide = []string{"agent/fault", "agent/undo", "agent/model", "agent/oci", "agent/sysfile"}

func checkPackage(t *testing.T, pkg string, may []string) {
	files, _ := filepath.Glob("../" + pkg + "/*.go")
	if len(files) == 0 {
		t.Errorf("imports.txt names %s, which has no files", pkg)
	}
	documented := false
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		documented = documented || f.Doc != nil
		if strings.HasSuffix(name, "_test.go") {
			continue // tests may bring whatever they put together
		}
		for _, spec := range f.Imports {
			path, _ := strconv.Unquote(spec.Path.Value)
			ours, ok := strings.CutPrefix(path, "machine/")
			if !ok || slices.Contains(may, ours) || slices.Contains(may, "any") || strings.HasPrefix(pkg, "agent") && slices.Contains(engineWide, ours) {
				continue
			}
			t.Errorf("%s: %s must not import %s", name, pkg, ours)
		}
	}
	if !documented {
		t.Errorf("package %s has no comment", pkg)
	}
}
