// Command testsum reads "go test -json" and prints what a person wants to
// see: the output of what failed, the reasons of what was skipped, a line for
// each package, and the sum. It exits with 1 when a test failed, when nothing
// ran, or when a test was skipped for want of root, so that a machine that
// cannot test does not pass for one where all is well.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"strings"
)

type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

func main() {
	out := map[string][]string{}
	var failed, skipped []string
	passed, noRoot := 0, false
	sc := bufio.NewScanner(os.Stdin)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var e event
		if json.Unmarshal(sc.Bytes(), &e) != nil {
			fmt.Println(sc.Text()) // a build error
			continue
		}
		key := e.Package + " " + e.Test
		switch e.Action {
		case "output", "build-output":
			out[key] = append(out[key], e.Output)
			if e.Action == "build-output" {
				fmt.Print(e.Output)
			}
		case "pass":
			if e.Test == "" {
				fmt.Printf("ok    %-44s %6.1f s\n", strings.TrimPrefix(e.Package, "machine/"), e.Elapsed)
			} else {
				passed++
			}
			delete(out, key)
		case "skip":
			if e.Test != "" {
				why := strings.TrimSpace(strings.Join(out[key], ""))
				skipped = append(skipped, key+": "+lastLine(why))
				noRoot = noRoot || strings.Contains(why, "root")
			}
		case "fail":
			failed = append(failed, key)
			fmt.Printf("FAIL  %s (%.1f s)\n%s\n", key, e.Elapsed, strings.Join(out[key], ""))
		}
	}
	sort.Strings(skipped)
	for _, s := range skipped {
		fmt.Println("skip ", s)
	}
	n := 0
	for _, f := range failed {
		if !strings.HasSuffix(f, " ") {
			n++
		}
	}
	if n == 0 {
		n = len(failed) // a package that did not build, or died
	}
	fmt.Printf("tests: %d passed, %d failed, %d skipped\n", passed, n, len(skipped))
	if len(failed) > 0 || passed == 0 || noRoot {
		os.Exit(1)
	}
}

// lastLine finds the reason in what a skipped test printed.
func lastLine(s string) string {
	for line := range strings.SplitSeq(s, "\n") {
		if t := strings.TrimSpace(line); t != "" && !strings.HasPrefix(t, "---") && !strings.HasPrefix(t, "===") {
			s = t
		}
	}
	return s
}
