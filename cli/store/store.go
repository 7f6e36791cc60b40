// Package store keeps the records of machines on disk, in docker-machine's
// layout and schema:
//
//	STORE/certs/                ca.pem ca-key.pem cert.pem key.pem
//	STORE/cache/                what can be had again
//	STORE/machines/NAME/        config.json, certificates, SSH key, known_hosts
//	STORE/machines/NAME/journal.json   what is being done to the machine
//	STORE/machines/.locks/      a lock file per machine
//
// Writes are atomic and durable: temporary file, fsync, rename, fsync of the
// folder. Writers of one machine exclude each other by [Store.Lock]; readers
// take no lock, and see the old record or the new one.
package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// A Store is one folder of machines.
type Store struct {
	Dir string // absolute
}

// ErrNotExist is under the error for a machine that the store does not know.
var ErrNotExist = fs.ErrNotExist

// A NotExist error names the machine that is not there.
type NotExist struct{ Name string }

func (e *NotExist) Error() string {
	return fmt.Sprintf("Docker machine %q does not exist. Use \"docker-machine ls\" to list machines. Use \"docker-machine create\" to add a new one.", e.Name)
}

func (e *NotExist) Unwrap() error { return ErrNotExist }

// Open returns the store in dir, which is made on first write only.
func Open(dir string) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("store %q: %w", dir, err)
	}
	return &Store{Dir: abs}, nil
}

// Path returns the path of elem in the store's folder.
func (s *Store) Path(elem ...string) string {
	return filepath.Join(append([]string{s.Dir}, elem...)...)
}

// MachineDir returns the folder of a machine.
func (s *Store) MachineDir(name string) string { return s.Path("machines", name) }

// Exists reports whether the store has a folder for the machine.
func (s *Store) Exists(name string) bool {
	if name == "" || name[0] == '.' || strings.ContainsAny(name, `/\`) {
		return false
	}
	_, err := os.Stat(s.MachineDir(name))
	return err == nil
}

// Names lists the machines in byte order.
func (s *Store) Names() ([]string, error) {
	entries, err := os.ReadDir(s.Path("machines"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list machines: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if e.IsDir() || e.Type()&fs.ModeSymlink != 0 {
			names = append(names, e.Name())
		}
	}
	sort.Strings(names)
	return names, nil
}

// Load reads the record of a machine: NotExist when there is none, ErrFuture
// for one of a later schema. Older schemas are converted in memory; the next
// Save keeps the old bytes as config.json.bak.
func (s *Store) Load(name string) (*Record, error) {
	if !s.Exists(name) {
		return nil, &NotExist{name}
	}
	file := filepath.Join(s.MachineDir(name), "config.json")
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("load machine %q: %w", name, err)
	}
	rec, _, err := decode(data, s.MachineDir(name), s.Dir)
	if err != nil {
		hint := ""
		if _, bakErr := os.Stat(file + ".bak"); bakErr == nil && !errors.Is(err, ErrFuture) {
			hint = " (an older copy is in " + file + ".bak)"
		}
		return nil, fmt.Errorf("load machine %q: %s: %w%s", name, file, err, hint)
	}
	rec.Name = name
	return rec, nil
}

// Save writes the record durably. The caller holds the machine's lock.
func (s *Store) Save(rec *Record) error {
	dir := s.MachineDir(rec.Name)
	if err := s.mkdir(dir); err != nil {
		return err
	}
	rec.ConfigVersion = Version
	data, err := json.MarshalIndent(rec, "", "    ")
	if err != nil {
		return fmt.Errorf("save machine %q: %w", rec.Name, err)
	}
	file := filepath.Join(dir, "config.json")
	if old, err := os.ReadFile(file); err == nil {
		if string(old) == string(data) {
			return nil
		}
		_, migrated, err := decode(old, dir, s.Dir)
		if errors.Is(err, ErrFuture) {
			return fmt.Errorf("save machine %q: %w", rec.Name, err)
		}
		if migrated {
			if err := WriteFile(file+".bak", old, 0o600); err != nil {
				return fmt.Errorf("save machine %q: %w", rec.Name, err)
			}
		}
	}
	if err := WriteFile(file, data, 0o600); err != nil {
		return fmt.Errorf("save machine %q: %w", rec.Name, err)
	}
	return nil
}

// Remove deletes the machine's folder, config.json last, so that a removal cut
// short can be asked for again. No folder is no error.
func (s *Store) Remove(name string) error {
	dir := s.MachineDir(name)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return os.Remove(dir)
	}
	for _, e := range entries {
		if e.Name() == "config.json" {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove machine %q: %w", name, err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove machine %q: %w", name, err)
	}
	return syncDir(filepath.Dir(dir))
}

// Rename gives a machine another name; the caller holds both locks. Paths in
// the record are the caller's to adapt.
func (s *Store) Rename(from, to string) error {
	if s.Exists(to) {
		return fmt.Errorf("Docker machine %q already exists", to) //nolint:staticcheck // docker-machine's words
	}
	if err := os.Rename(s.MachineDir(from), s.MachineDir(to)); err != nil {
		return fmt.Errorf("rename machine: %w", err)
	}
	return syncDir(s.Path("machines"))
}

// Lock excludes other writers of one machine, in this process and in others,
// until unlock is called. It waits as long as ctx lasts; waiting, when not
// nil, is called once if it has to.
func (s *Store) Lock(ctx context.Context, name string, waiting func()) (unlock func(), err error) {
	dir := s.Path("machines", ".locks")
	if err := s.mkdir(dir); err != nil {
		return nil, err
	}
	return lockFile(ctx, filepath.Join(dir, name+".lock"), waiting)
}

// LockAll excludes others from what all machines share: certs and cache.
func (s *Store) LockAll(ctx context.Context) (unlock func(), err error) {
	if err := s.mkdir(s.Dir); err != nil {
		return nil, err
	}
	return lockFile(ctx, s.Path(".lock"), nil)
}

func (s *Store) mkdir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make store folder: %w", err)
	}
	return nil
}

func lockFile(ctx context.Context, path string, waiting func()) (func(), error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	told := false
	for {
		ok, err := tryLock(f)
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if ok {
			return func() { _ = f.Close() }, nil
		}
		if !told && waiting != nil {
			waiting()
		}
		told = true
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Sweep removes what writers that were killed have left in dir. The caller
// holds the lock of dir's writers.
func Sweep(dir string) {
	left, _ := filepath.Glob(filepath.Join(dir, ".*.tmp*"))
	for _, f := range left {
		_ = os.Remove(f)
	}
}

// WriteFile replaces path by data: either the old bytes or the new ones are
// there afterwards, also after a power cut. It is safe to repeat.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".tmp*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	return syncDir(dir)
}
