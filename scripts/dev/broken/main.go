// Command broken shows that the security tests are worth something: it breaks
// a copy of the tree in one place at a time, as the table says, and demands
// that the test named there fails by an assertion. It runs from the top of the
// tree, as root; arguments are regular expressions of rows to run, "S5" or
// "mask". It exits with 1 when a broken build passes its test, when a row's
// text is not found exactly once, or when a test fails without sabotage.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// An edit replaces a text that is in the file exactly once.
type edit struct{ file, old, new string }

// A row is one way to break the tree and the test that must find it.
type row struct {
	number string // of the catalogue: S1
	what   string // is broken, in words
	edits  []edit
	pkg    string // of the test
	run    string // regular expression of the tests, all of which run; one must fail
}

// apply breaks the tree at dir; the function it returns mends it.
func (r *row) apply(dir string) (mend func() error, err error) {
	old := map[string][]byte{}
	mend = func() error {
		for name, b := range old {
			if err := os.WriteFile(name, b, 0o644); err != nil {
				return err
			}
		}
		return nil
	}
	for _, e := range r.edits {
		name := filepath.Join(dir, e.file)
		b, err := os.ReadFile(name)
		if err != nil {
			return mend, err
		}
		if n := strings.Count(string(b), e.old); n != 1 {
			return mend, fmt.Errorf("%s %s: %d times in %s instead of once: %q", r.number, r.what, n, e.file, e.old)
		}
		if old[name] == nil {
			old[name] = b
		}
		if err := os.WriteFile(name, []byte(strings.Replace(string(b), e.old, e.new, 1)), 0o644); err != nil {
			return mend, err
		}
	}
	return mend, nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "broken:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	rows, err := choose(args)
	if err != nil {
		return err
	}
	if os.Getuid() != 0 {
		return fmt.Errorf("the tests need root")
	}
	dir, err := os.MkdirTemp("/var/tmp", "broken-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	t := tree{dir}
	if err := t.copy(ctx); err != nil {
		return err
	}
	bad := t.sound(ctx, rows)
	found := 0
	for i := range rows {
		r := &rows[i]
		began := time.Now()
		verdict, detail := t.try(ctx, r)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if verdict == "found" {
			found++
		}
		fmt.Printf("%-4s %-62s %-10s %5.1f s  %s\n", r.number, r.what, verdict, time.Since(began).Seconds(), detail)
	}
	fmt.Printf("%d of %d broken builds were found\n", found, len(rows))
	if found < len(rows) || bad {
		return fmt.Errorf("not all is well")
	}
	return nil
}

func choose(args []string) (rows []row, err error) {
	for _, r := range table {
		keep := len(args) == 0
		for _, a := range args {
			m, err := regexp.MatchString("^(?:"+a+")$", r.number)
			if err != nil {
				return nil, err
			}
			keep = keep || m || strings.Contains(r.what, a)
		}
		if keep {
			rows = append(rows, r)
		}
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("no row is meant by %q", args)
	}
	return rows, nil
}

// A tree is a copy of the sources.
type tree struct{ dir string }

func (t tree) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = t.dir
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOTMPDIR="+t.dir+"/tmp", "GOFLAGS=-buildvcs=false")
	return c
}

// copy fills the tree with what git knows or would add.
func (t tree) copy(ctx context.Context) error {
	c := exec.CommandContext(ctx, "sh", "-c", `git ls-files -co --exclude-standard -z | tar --null -T - -cf - | tar -xf - -C "$0" && mkdir "$0/tmp"`, t.dir)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("copy the tree: %v: %s", err, out)
	}
	return nil
}

// build makes the shim and the agent that the tests run.
func (t tree) build(ctx context.Context) error {
	shim := "agent/shim/embed/shim-"
	for _, args := range [][]string{
		{"build", "-trimpath", "-ldflags", "-s -w", "-o", shim + runtime.GOARCH, "./agent/shim/main"},
		{"build", "-trimpath", "-o", "bin/agent", "./agent/agentd"},
	} {
		if out, err := t.command(ctx, "go", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// An outcome is what a run of tests came to.
type outcome struct {
	failed []string // tests that said why
	passed int
	other  string // output that is no test's verdict: a build error, a panic
}

var assertion = regexp.MustCompile(`(?m)^\s+[a-z0-9_]+\.go:[0-9]+: `)

func (t tree) test(ctx context.Context, pkg, run string) (o outcome) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	c := t.command(ctx, "go", "test", "-trimpath", "-count=1", "-json", "-timeout", "8m", "-exec", t.dir+"/scripts/dev/isolated.sh", "-run", run, pkg)
	b, err := c.CombinedOutput()
	said := map[string]string{}
	for line := range strings.Lines(string(b)) {
		var e struct{ Action, Test, Output string }
		if json.Unmarshal([]byte(line), &e) != nil {
			o.other += line
			continue
		}
		switch {
		case e.Action == "output" && e.Test != "":
			said[e.Test] += e.Output
		case e.Action == "output" || e.Action == "build-output":
			o.other += e.Output
		case e.Action == "pass" && e.Test != "":
			o.passed++
		// A panic on top of what the test found is no matter.
		case e.Action == "fail" && e.Test != "" && assertion.MatchString(said[e.Test]):
			o.failed = append(o.failed, e.Test)
		case e.Action == "fail" && e.Test != "":
			o.other += said[e.Test]
		}
	}
	if err == nil {
		o.other = ""
	}
	return o
}

// sound runs all tests on the tree as it is: one that fails here would seem to
// find whatever is broken.
func (t tree) sound(ctx context.Context, rows []row) (bad bool) {
	if err := t.build(ctx); err != nil {
		fmt.Println(err)
		return true
	}
	done := map[string]bool{}
	for _, r := range rows {
		if done[r.pkg+r.run] || ctx.Err() != nil {
			continue
		}
		done[r.pkg+r.run] = true
		o := t.test(ctx, r.pkg, r.run)
		if len(o.failed) > 0 || o.passed == 0 || o.other != "" {
			bad = true
			fmt.Printf("%s of %s fails without sabotage: %v %.2000s\n", r.run, r.pkg, o.failed, o.other)
		}
	}
	return bad
}

// try breaks the tree, tests it and mends it.
func (t tree) try(ctx context.Context, r *row) (verdict, detail string) {
	mend, err := r.apply(t.dir)
	defer func() {
		if err := mend(); err != nil {
			verdict, detail = "error", err.Error()
		}
	}()
	if err == nil {
		err = t.build(ctx)
	}
	if err != nil {
		return "error", err.Error()
	}
	o := t.test(ctx, r.pkg, r.run)
	var tops []string
	for _, f := range o.failed {
		if !strings.Contains(f, "/") {
			tops = append(tops, f)
		}
	}
	switch {
	case len(o.failed) > 0:
		return "found", "by " + strings.Join(tops, ", ")
	case o.passed > 0 && o.other == "":
		return "NOT FOUND", fmt.Sprintf("%d tests pass", o.passed)
	}
	return "error", fmt.Sprintf("no assertion failed: %.1500s", o.other)
}
