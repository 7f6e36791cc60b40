package lifecycle

import (
	"encoding/json"
	"fmt"
)

// renameDriver changes name and paths in a driver's part of the record, which
// may be of a driver that is not known here.
func renameDriver(raw json.RawMessage, fix func(string) string, name string) (json.RawMessage, error) {
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, fmt.Errorf("driver's part of config.json: %w", err)
	}
	for k, v := range fields {
		var s string
		if json.Unmarshal(v, &s) != nil {
			continue
		}
		if k == "MachineName" {
			s = name
		}
		out, err := json.Marshal(fix(s))
		if err != nil {
			return nil, err
		}
		fields[k] = out
	}
	return json.Marshal(fields)
}
