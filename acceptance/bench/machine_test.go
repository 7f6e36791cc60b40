package bench

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"machine/acceptance/engine"
	"machine/acceptance/hosts"
)

// machineRows are those of the command line; none where it is not built.
func machineRows(b *testing.B) []row {
	program := filepath.Join(engine.Root(), "bin", "machine")
	if _, err := os.Stat(program); err != nil {
		b.Log("no figures of machine: ", err)
		return nil
	}
	store, err := os.MkdirTemp("/var/tmp", "store-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(store) })
	m := &machine{program: program, store: store}
	return []row{
		{"machine create -d local, ms", "", func(*side) (figure, error) {
			return m.creates(3, func(int) []string { return []string{"-d", "local"} })
		}},
		{"machine create -d generic, ms", "<= 3000", func(*side) (figure, error) {
			return m.creates(3, func(int) []string {
				h := hosts.New(b, hosts.Cgroups())
				return []string{"-d", "generic", "--generic-ip-address", h.IP, "--generic-ssh-user", h.User, "--generic-ssh-key", h.Key}
			})
		}},
		{"machine ls, 400 machines, ms", "<= 500", func(*side) (figure, error) { return m.list(400) }},
	}
}

// A machine is the command line with a store of its own.
type machine struct{ program, store string }

func (m *machine) run(args ...string) (string, error) {
	c := exec.Command(m.program, args...)
	c.Env = append(os.Environ(), "MACHINE_STORAGE_PATH="+m.store)
	out, err := c.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("machine %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// creates measures create n times; flags are asked for before the clock runs.
func (m *machine) creates(n int, flags func(i int) []string) (out figure, err error) {
	for i := range n {
		name := fmt.Sprintf("bench%d", i)
		args := append(append([]string{"create"}, flags(i)...), name)
		f, err := times(1, func() error { _, err := m.run(args...); return err })
		_, rm := m.run("rm", "-f", name)
		if err != nil {
			return nil, err
		}
		if rm != nil {
			return nil, rm
		}
		out = append(out, f...)
	}
	return out, nil
}

// list measures ls with n machines that are copies of one.
func (m *machine) list(n int) (figure, error) {
	const first = "copy-000"
	if _, err := m.run("create", "-d", "none", "--url", "tcp://127.0.0.1:1", first); err != nil {
		return nil, err
	}
	machines := filepath.Join(m.store, "machines")
	for i := 1; i < n; i++ {
		name := fmt.Sprintf("copy-%03d", i)
		if err := copyMachine(filepath.Join(machines, first), filepath.Join(machines, name), first, name); err != nil {
			return nil, err
		}
	}
	return times(5, func() error {
		out, err := m.run("ls")
		if got := strings.Count(out, "copy-"); err == nil && got < n {
			err = fmt.Errorf("ls shows %d of %d machines:\n%.500s", got, n, out)
		}
		return err
	})
}

// copyMachine copies a machine's files, with its name changed in them.
func copyMachine(from, to, old, name string) error {
	list, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	for _, f := range list {
		if !f.Type().IsRegular() {
			continue
		}
		text, err := os.ReadFile(filepath.Join(from, f.Name()))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, f.Name()), bytes.ReplaceAll(text, []byte(old), []byte(name)), 0o600); err != nil {
			return err
		}
	}
	return nil
}
