package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"machine/acceptance/engine"
	"machine/acceptance/hosts"
)

// BenchmarkFleet measures the command line on many machines at once, half of
// them where nobody answers. "make bench-fleet" runs it; a figure beyond its
// budget is a failure.
func BenchmarkFleet(b *testing.B) {
	hosts.Isolated(b)
	m := &machine{program: engine.Binary(b, "machine"), store: hosts.RealStore(b)}
	var all []*hosts.Host
	for range 20 {
		all = append(all, hosts.New(b, hosts.Cgroups()))
	}
	check := func(what string, budget, took time.Duration, err error) {
		b.Helper()
		if err != nil {
			b.Fatalf("%s: %v", what, err)
		}
		fmt.Printf("%-52s %8v  <= %v\n", what, took.Round(time.Millisecond), budget)
		if took > budget {
			b.Errorf("%s took %v, budget %v", what, took, budget)
		}
	}
	name := func(i int) string { return fmt.Sprintf("host-%d", i) }
	took, err := atOnce(len(all), func(i int) error {
		h := all[i]
		_, err := m.run("create", "-d", "generic", "--generic-ip-address", h.IP, "--generic-ssh-key", h.Key, name(i))
		return err
	})
	check("20 create -d generic at once", 15*time.Second, took, err)
	took, err = best(5, func() error { return upToDate(m, name(0)) })
	check("provision of an up-to-date host", time.Second, took, err)
	took, err = atOnce(1, func(int) error { return upToDate(m, "host-*") })
	check("provision of 20 up-to-date hosts", 10*time.Second, took, err)

	for i := 1; i < len(all); i++ { // they have done their part
		all[i].Kill()
		if err := os.RemoveAll(filepath.Join(m.store, "machines", name(i))); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := m.run("rename", name(0), "up-200"); err != nil {
		b.Fatal(err)
	}
	if err := blackHole("10.99.0.0/16"); err != nil {
		b.Fatal(err)
	}
	for i := range 200 {
		err = nil
		if i > 0 {
			err = cloned(m, "up-200", fmt.Sprintf("up-%d", i), all[0].IP, all[0].IP)
		}
		if err == nil {
			err = cloned(m, "up-200", fmt.Sprintf("gone-%d", i), all[0].IP, fmt.Sprintf("10.99.0.%d", i+1))
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	for _, timeout := range []int{2, 10} {
		took, err = atOnce(1, func(int) error { return lists(m, timeout) })
		check(fmt.Sprintf("ls -t %d of 400 machines, 200 unreachable", timeout), time.Duration(timeout+1)*time.Second, took, err)
	}
	took, err = best(5, func() error {
		out, err := m.run("ls", "-q")
		if n := strings.Count(out, "\n"); err == nil && n != 400 {
			err = fmt.Errorf("%d names", n)
		}
		return err
	})
	check("ls -q of 400 machines", 50*time.Millisecond, took, err)
}

// best calls f n times, and returns the shortest time: the others are those of
// what else this computer does.
func best(n int, f func() error) (time.Duration, error) {
	all, err := times(n, f)
	if err != nil {
		return 0, err
	}
	return time.Duration(slices.Min(all) * float64(time.Millisecond)), nil
}

// atOnce calls f n times at once, and returns how long all of it took.
func atOnce(n int, f func(i int) error) (time.Duration, error) {
	errs := make([]error, n)
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	took := time.Since(begin)
	for _, err := range errs {
		if err != nil {
			return took, err
		}
	}
	return took, nil
}

func upToDate(m *machine, names string) error {
	out, err := m.run("provision", names)
	if err == nil && !strings.Contains(out, "up to date") {
		err = fmt.Errorf("it does something: %s", out)
	}
	return err
}

// lists runs ls, which is to tell of all machines what they are.
func lists(m *machine, timeout int) error {
	out, err := m.run("ls", "-t", fmt.Sprint(timeout))
	up, gone := strings.Count(out, "Running"), strings.Count(out, "\ngone-")
	if err == nil && (up != 200 || gone != 200) {
		err = fmt.Errorf("%d machines run, %d are gone:\n%.2000s", up, gone, out)
	}
	return err
}

// blackHole makes a network from which nothing ever comes back.
func blackHole(network string) error {
	// A cable whose other end takes no frame that is not for it.
	for _, args := range [][]string{{"link", "add", "hole", "type", "veth", "peer", "name", "hole1"}, {"link", "set", "hole", "arp", "off", "up"},
		{"link", "set", "hole1", "up"}, {"route", "add", network, "dev", "hole"}} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// cloned copies a machine under another name and address.
func cloned(m *machine, from, name, oldIP, ip string) error {
	machines := filepath.Join(m.store, "machines")
	if err := copyMachine(filepath.Join(machines, from), filepath.Join(machines, name), from, name); err != nil {
		return err
	}
	file := filepath.Join(machines, name, "config.json")
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return os.WriteFile(file, []byte(strings.ReplaceAll(string(text), `"`+oldIP+`"`, `"`+ip+`"`)), 0o600)
}
