// Package bench measures the product against its budgets (DESIGN, section 5),
// beside the peers that are installed on this computer. "make bench" prints
// the table. Ratios count: absolute figures drift with the computer.
package bench

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// A figure is what was measured, smallest first; empty when it could not be.
type figure []float64

func (f figure) String() string {
	if len(f) == 0 {
		return "-"
	}
	s := slices.Sorted(slices.Values(f))
	if len(s) == 1 {
		return fmt.Sprintf("%.1f", s[0])
	}
	return fmt.Sprintf("%.1f / %.1f", s[0], s[len(s)/2])
}

// A row is one budget; measure gives it for a side.
type row struct {
	name, budget string
	measure      func(s *side) (figure, error)
}

// times calls f n times and returns how long each took, in milliseconds.
func times(n int, f func() error) (out figure, err error) {
	for range n {
		begin := time.Now()
		if err := f(); err != nil {
			return nil, err
		}
		out = append(out, float64(time.Since(begin).Microseconds())/1000)
	}
	return out, nil
}

// rows are those of the engine, in the order in which they are measured.
func rows() []row {
	return []row{
		{"idle memory of the engine, PSS MB", "<= 25", idle},
		{"create+start+wait+remove of true, bridge, ms", "<= 20", func(s *side) (figure, error) { return cycles(s, "bridge") }},
		{"the same, network none, ms", "<= 12", func(s *side) (figure, error) { return cycles(s, "none") }},
		{"the same, network host, ms", "", func(s *side) (figure, error) { return cycles(s, "host") }},
		{"exec of true, ms", "<= 6", execs},
		{"50 containers started at once, ms", "<= 350", together},
		{"list of 200 containers, ms", "", list},
		{"rm -f of a running container, ms", "", removal},
		{"per running container, PSS MB", "<= 1", perContainer},
		{"log write, json-file, MB/s", ">= 300", func(s *side) (figure, error) { return logs(s, "json-file", false) }},
		{"docker logs, json-file, MB/s", ">= 300", func(s *side) (figure, error) { return logs(s, "json-file", true) }},
		{"log write, local, MB/s", ">= 300", func(s *side) (figure, error) { return logs(s, "local", false) }},
		{"docker logs, local, MB/s", ">= 300", func(s *side) (figure, error) { return logs(s, "local", true) }},
	}
}

const mega = 1 << 20

func idle(s *side) (out figure, err error) {
	for range 3 {
		time.Sleep(500 * time.Millisecond) // what the start left is given back
		own, _, err := s.memory()
		if err != nil {
			return nil, err
		}
		out = append(out, own/mega)
	}
	return out, nil
}

func cycles(s *side, network string) (figure, error) {
	for range 8 { // what is made once is made now, and caches are filled
		if err := s.cycle(network); err != nil {
			return nil, err
		}
	}
	return times(25, func() error { return s.cycle(network) })
}

func execs(s *side) (figure, error) {
	c, err := s.sleeper()
	if err != nil {
		return nil, err
	}
	defer s.remove(c)
	if err := s.execTrue(c); err != nil {
		return nil, err
	}
	return times(20, func() error { return s.execTrue(c) })
}

func together(s *side) (out figure, err error) {
	for range 3 {
		all, err := s.many(50)
		if err != nil {
			return nil, err
		}
		errs := make([]error, len(all))
		begin := time.Now()
		each(all, func(i int, c string) { errs[i] = s.start(c) })
		out = append(out, float64(time.Since(begin).Microseconds())/1000)
		if err := s.removeAll(all); err != nil {
			return nil, err
		}
		for _, err := range errs {
			if err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func list(s *side) (figure, error) {
	all, err := s.many(200)
	defer func() { s.removeAll(all) }()
	if err != nil {
		return nil, err
	}
	return times(20, func() error {
		out, err := s.do("GET", "/containers/json?all=1", "")
		if n := strings.Count(out, `"ImageID"`); err == nil && n < 200 {
			err = fmt.Errorf("%d containers in the list", n)
		}
		return err
	})
}

func removal(s *side) (out figure, err error) {
	for range 10 {
		c, err := s.sleeper()
		if err != nil {
			return nil, err
		}
		f, err := times(1, func() error { return s.remove(c) })
		if err != nil {
			return nil, err
		}
		out = append(out, f...)
	}
	return out, nil
}

func perContainer(s *side) (figure, error) {
	const n = 10
	all, err := s.many(n)
	defer func() { s.removeAll(all) }()
	if err != nil {
		return nil, err
	}
	for _, c := range all {
		if err := s.start(c); err != nil {
			return nil, err
		}
	}
	_, holders, err := s.memory()
	return figure{holders / n / mega}, err
}

// logSize is what a container says in the rows about logs.
const logSize = 128 << 20

// logs has a container print a file of lines, and reads them back.
func logs(s *side, driver string, read bool) (out figure, err error) {
	dir := filepath.Join(s.shared, "lines")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	line := strings.Repeat("0123456789", 10)[:99] + "\n"
	if err := os.WriteFile(filepath.Join(dir, "text"), []byte(strings.Repeat(line, logSize/len(line))), 0o644); err != nil {
		return nil, err
	}
	size := float64(logSize / len(line) * len(line))
	c, err := s.create(`"NetworkMode":"none","Binds":["`+dir+`:/lines:ro"],"LogConfig":{"Type":"`+driver+`","Config":{"max-size":"1g"}}`, "cat", "/lines/text")
	if err != nil {
		return nil, err
	}
	defer s.remove(c)
	for range 3 {
		begin := time.Now()
		if err := s.start(c); err != nil {
			return nil, err
		}
		if err := s.wait(c); err != nil {
			return nil, err
		}
		out = append(out, size/mega/time.Since(begin).Seconds())
		if read {
			break
		}
	}
	if !read {
		return out, nil
	}
	out = nil
	for range 3 {
		begin := time.Now()
		resp, err := s.c.Get("http://engine/v1.41/containers/" + c + "/logs?stdout=1")
		if err != nil {
			return nil, err
		}
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil || float64(n) < size {
			return nil, fmt.Errorf("read %d of %.0f bytes of the log: %v", n, size, err)
		}
		out = append(out, size/mega/time.Since(begin).Seconds())
	}
	return out, nil
}

// BenchmarkBudgets prints the table of budgets, or the rows whose names have
// $ROW in them. It measures once, whatever the framework asks for.
func BenchmarkBudgets(b *testing.B) {
	if b.N > 1 {
		b.Skip("run with -benchtime 1x")
	}
	if os.Getuid() != 0 {
		b.Skip("needs root")
	}
	us := ours(b)
	them := dockerd(b, filepath.Join(us.shared, "busybox.tar"))
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "\nwhat\tbudget\tours min / median\tdockerd min / median")
	for _, r := range rows() {
		if !strings.Contains(r.name, os.Getenv("ROW")) {
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.name, r.budget, measured(b, r, us), measured(b, r, them))
	}
	for _, r := range machineRows(b) {
		if !strings.Contains(r.name, os.Getenv("ROW")) {
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t-\n", r.name, r.budget, measured(b, r, us))
	}
	w.Flush()
}

// measured is a figure, or a dash for a side that is not there.
func measured(b *testing.B, r row, s *side) figure {
	if s == nil {
		return nil
	}
	settle()
	f, err := r.measure(s)
	if err != nil {
		b.Errorf("%s: %v", r.name, err)
		return nil
	}
	return f
}

// settle waits until the kernel is done with what the other side left: files
// to write, and network namespaces to take down, one after the other, while
// none can be made.
func settle() {
	exec.Command("sync").Run()
	time.Sleep(3 * time.Second)
}
