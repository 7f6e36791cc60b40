package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestTable: every row still fits the tree, and every breakout of the
// catalogue has one. It is the quick half of what the command does.
func TestTable(t *testing.T) {
	top := "../../.."
	have := map[string]bool{}
	for _, r := range table {
		have[r.number] = true
		for _, e := range r.edits {
			b, err := os.ReadFile(filepath.Join(top, e.file))
			if err != nil {
				t.Errorf("%s %s: %v", r.number, r.what, err)
			} else if n := strings.Count(string(b), e.old); n != 1 {
				t.Errorf("%s %s: %d times in %s instead of once: %q", r.number, r.what, n, e.file, e.old)
			}
			if e.old == e.new {
				t.Errorf("%s %s: changes nothing", r.number, r.what)
			}
		}
		run, err := regexp.Compile(r.run)
		if err != nil {
			t.Errorf("%s %s: %v", r.number, r.what, err)
			continue
		}
		found := false
		files, _ := filepath.Glob(filepath.Join(top, r.pkg, "*_test.go"))
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)`).FindAllStringSubmatch(string(b), -1) {
				found = found || run.MatchString(m[1])
			}
		}
		if !found {
			t.Errorf("%s %s: no test of %s is meant by %s", r.number, r.what, r.pkg, r.run)
		}
	}
	for n := 1; n <= 27; n++ {
		if !have[fmt.Sprintf("S%d", n)] {
			t.Errorf("nothing breaks S%d", n)
		}
	}
}
