package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A Bad record is one that cannot be used.
type Bad struct {
	ID    string
	File  string
	Aside bool  // set aside by the process that met it
	Err   error // why; nil for one that was set aside and could be used again
}

// Check reads the records of a folder and changes nothing, so a store may have
// it open meanwhile. A folder that is absent holds none.
func Check[T any](dir string, check func(id string, v *T) error) (good map[string]T, bad []Bad, err error) {
	list, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("check records: %w", err)
	}
	good = map[string]T{}
	for _, e := range list {
		name := filepath.Join(dir, e.Name())
		base, isAside := strings.CutSuffix(e.Name(), aside)
		id, ok := strings.CutSuffix(base, ".json")
		if !ok || e.IsDir() || strings.HasPrefix(base, ".tmp-") {
			continue
		}
		v, err := read(name, id, check)
		switch {
		case errors.Is(err, fs.ErrNotExist): // deleted meanwhile
		case isAside || err != nil:
			bad = append(bad, Bad{id, name, isAside, err})
		default:
			good[id] = v
		}
	}
	return good, bad, nil
}

// PutBack gives a record that was set aside its name again. It fails when
// there is another under that name. No store may have the folder open.
func (b Bad) PutBack() error {
	if !b.Aside {
		return nil
	}
	err := unix.Renameat2(unix.AT_FDCWD, b.File, unix.AT_FDCWD, strings.TrimSuffix(b.File, aside), unix.RENAME_NOREPLACE)
	if err == nil {
		err = syncFolder(filepath.Dir(b.File))
	}
	if err != nil {
		return fmt.Errorf("put record %s back: %w", b.File, err)
	}
	return nil
}

// Replace writes the record anew, durably. No store may have the folder open.
func (b Bad) Replace(v any) error {
	text, err := json.Marshal(v)
	if err == nil {
		err = WriteFile(strings.TrimSuffix(b.File, aside), text, 0o600)
	}
	if err == nil && b.Aside {
		err = os.Remove(b.File)
	}
	if err != nil {
		return fmt.Errorf("replace record %s: %w", b.File, err)
	}
	return nil
}

// Discard deletes the records of a folder that were set aside. No store may
// have the folder open.
func Discard(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, "*.json"+aside))
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := os.Remove(n); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("delete what was set aside: %w", err)
		}
	}
	return nil
}
