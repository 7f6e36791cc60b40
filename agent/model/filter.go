package model

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"machine/agent/fault"
)

// Filters are the filters of an API call: values by key. The values of a key
// that stands for a property are alternatives, labels must all hold.
type Filters map[string][]string

// ParseFilters reads an API call's filters parameter: {"key":{"value":true}},
// or the older {"key":["value"]}; empty means none. fault.Invalid when it is
// neither.
func ParseFilters(s string) (Filters, error) {
	out := Filters{}
	if s == "" {
		return out, nil
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal([]byte(s), &raw); err != nil {
		return nil, fault.Invalid.Errorf("invalid filter: %w", err)
	}
	for k, v := range raw {
		var set map[string]bool
		if json.Unmarshal(v, &set) == nil {
			for x, on := range set {
				if on {
					out[k] = append(out[k], x)
				}
			}
			slices.Sort(out[k])
			continue
		}
		var list []string
		if err := json.Unmarshal(v, &list); err != nil {
			return nil, fault.Invalid.Errorf("invalid filter %q", k)
		}
		out[k] = list
	}
	return out, nil
}

// Check refuses keys that the call does not know: fault.Invalid.
func (f Filters) Check(known ...string) error {
	for k := range f {
		if !slices.Contains(known, k) {
			return fault.Invalid.Errorf("invalid filter '%s'", k)
		}
	}
	return nil
}

// Bool reads a filter that is true or false: "1", "true", "0" or "false".
// Invalid for anything else and for both.
func (f Filters) Bool(key string, otherwise bool) (bool, error) {
	v, ok := f[key]
	if !ok {
		return otherwise, nil
	}
	yes := slices.Contains(v, "1") || slices.Contains(v, "true")
	no := slices.Contains(v, "0") || slices.Contains(v, "false")
	if yes == no {
		return otherwise, fault.Invalid.Errorf("invalid filter '%s=%s'", key, v)
	}
	return yes, nil
}

// Any reports whether one of key's values fits, or there is none to fit.
func (f Filters) Any(key string, fits func(value string) bool) bool {
	return len(f[key]) == 0 || slices.ContainsFunc(f[key], fits)
}

// Labels reports whether an object's labels satisfy the filters label (all of
// them) and label! (none of them).
func (f Filters) Labels(have map[string]string) bool {
	return MatchLabels(f["label"], have) &&
		!slices.ContainsFunc(f["label!"], func(not string) bool { return MatchLabels([]string{not}, have) })
}

// MatchLabels reports whether have has all that is wanted, each a KEY or
// KEY=VALUE.
func MatchLabels(want []string, have map[string]string) bool {
	for _, w := range want {
		k, v, exact := strings.Cut(w, "=")
		got, ok := have[k]
		if !ok || exact && got != v {
			return false
		}
	}
	return true
}

// Until reads the filter until: what is meant was created before it. The zero
// time without the filter. A value of "0" is the year 1970, as with dockerd:
// nothing is that old, and a prune that meant all would be a costly guess.
func (f Filters) Until(now time.Time) (time.Time, error) {
	v := f["until"]
	if len(v) == 0 {
		return time.Time{}, nil
	}
	if len(v) > 1 {
		return time.Time{}, fault.Invalid.Errorf("more than one until filter specified")
	}
	t, err := ParseTime(v[0], now)
	if err == nil && t.IsZero() {
		t = time.Unix(0, 0)
	}
	return t, err
}

// ParseTime reads a time as Docker's API takes it: a duration back from now,
// Unix seconds with or without a fraction, or RFC 3339, also without its end,
// which is local time then. The zero time for "" and "0"; fault.Invalid for
// what is no time.
func ParseTime(s string, now time.Time) (time.Time, error) {
	if s == "" || s == "0" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && strings.ContainsAny(s, "hmsuµn") {
		return now.Add(-d), nil
	}
	if sec, frac, _ := strings.Cut(s, "."); sec != "" {
		if n, err := strconv.ParseInt(sec, 10, 64); err == nil {
			frac = (frac + "000000000")[:9]
			ns, err := strconv.ParseInt(frac, 10, 64)
			if err == nil {
				return time.Unix(n, ns), nil
			}
		}
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fault.Invalid.Errorf("failed to parse value as time or duration: %q", s)
}

// Truth reads a boolean as Docker's API takes it.
func Truth(s string) bool {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}
