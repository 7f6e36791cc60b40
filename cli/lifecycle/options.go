package lifecycle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"

	"machine/cli/store"
	"machine/drivers"
)

// optionsFile holds the driver's options that a machine was given: so that one
// that is taken out of a fleet's file can be told from one that never was
// there, and from what creation has filled in.
const optionsFile = "options.json"

// keepOptions notes which options a machine was given. Those of environment
// variables are not its own.
func (m *Manager) keepOptions(mc *Machine, o drivers.Options) error {
	given := map[string]any{}
	for _, f := range mc.Kind.Flags {
		v, ok := o[f.Name]
		if !ok || reflect.DeepEqual(v, f.Value) || f.Env != "" && os.Getenv(f.Env) == fmt.Sprint(v) {
			continue
		}
		given[f.Name] = v
	}
	data, err := json.MarshalIndent(given, "", "    ")
	if err != nil {
		return err
	}
	file := m.Store.Path("machines", mc.Name, optionsFile)
	_, err = os.Stat(file)
	if len(given) == 0 && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return store.WriteFile(file, append(data, '\n'), 0o600)
}

// keptOptions are what keepOptions noted, with the types of the flags.
func (m *Manager) keptOptions(mc *Machine) (drivers.Options, error) {
	file := m.Store.Path("machines", mc.Name, optionsFile)
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // it is older than this file
	}
	if err != nil {
		return nil, err
	}
	raw := map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	given := drivers.Options{}
	for _, f := range mc.Kind.Flags {
		text, ok := raw[f.Name]
		if !ok || f.Value == nil {
			continue
		}
		v := reflect.New(reflect.TypeOf(f.Value))
		if err := json.NewDecoder(bytes.NewReader(text)).Decode(v.Interface()); err == nil {
			given[f.Name] = v.Elem().Interface()
		}
	}
	return given, nil
}

// diffReset finds the options that a machine was given and is not given any
// more. What such an option set is what a driver without it has not: where that
// is empty and the machine has it still, it is to go.
func (m *Manager) diffReset(mc *Machine, want Create, is, should map[string]any) ([]difference, error) {
	given, err := m.keptOptions(mc)
	if err != nil {
		return nil, err
	}
	with, gone := drivers.Options{}, false
	for k, v := range want.Options {
		with[k] = v
	}
	for _, f := range mc.Kind.Flags {
		if v, ok := given[f.Name]; ok && reflect.DeepEqual(want.Options[f.Name], f.Value) {
			with[f.Name], gone = v, true
		}
	}
	if !gone {
		return nil, nil
	}
	was, err := m.configured(mc, with)
	if err != nil {
		return nil, nil // what it was given is not good any more
	}
	var diffs []difference
	for k, v := range was {
		if !empty(v) && empty(should[k]) && reflect.DeepEqual(v, is[k]) {
			diffs = append(diffs, difference{k, fmt.Sprint(v), "default", true})
		}
	}
	return diffs, nil
}

// configured are the fields of a fresh driver with options.
func (m *Manager) configured(mc *Machine, o drivers.Options) (map[string]any, error) {
	fresh, err := m.open(&store.Record{Name: mc.Name, DriverName: mc.DriverName})
	if err != nil {
		return nil, err
	}
	defer func() { _ = fresh.Close() }()
	if err := fresh.Driver.Configure(o); err != nil {
		return nil, fmt.Errorf("Error setting machine configuration from flags provided: %w", err) //nolint:staticcheck // docker-machine's words
	}
	return fieldsOf(fresh.Driver)
}
