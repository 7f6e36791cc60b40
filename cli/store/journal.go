package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// An Intent is what is being done to a machine. It is on disk before the act;
// one that is found without its process means that the act was cut short.
type Intent struct {
	Op      string    // create, remove, upgrade …
	Step    string    // the step that was begun
	Started time.Time // when Op began
	Error   string    `json:",omitempty"` // why Op stopped, when it could still say so
}

// Begin writes the intent durably before its step is done.
func (s *Store) Begin(name string, in Intent) error {
	if err := s.mkdir(s.MachineDir(name)); err != nil {
		return err
	}
	data, err := json.MarshalIndent(in, "", "    ")
	if err != nil {
		return fmt.Errorf("journal of machine %q: %w", name, err)
	}
	if err := WriteFile(s.journal(name), data, 0o600); err != nil {
		return fmt.Errorf("journal of machine %q: %w", name, err)
	}
	return nil
}

// Done says that nothing is half done any more. Safe to repeat.
func (s *Store) Done(name string) error {
	err := os.Remove(s.journal(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Pending returns the intent that was cut short, or nil. An unreadable journal
// counts as one whose step is not known.
func (s *Store) Pending(name string) *Intent {
	data, err := os.ReadFile(s.journal(name))
	if err != nil {
		return nil
	}
	var in Intent
	if err := json.Unmarshal(data, &in); err != nil {
		return &Intent{Op: "unknown", Error: err.Error()}
	}
	return &in
}

func (s *Store) journal(name string) string {
	return filepath.Join(s.MachineDir(name), "journal.json")
}
