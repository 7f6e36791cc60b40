package model

import (
	"slices"
	"testing"
	"time"
)

func TestParseFilters(t *testing.T) {
	for _, in := range []string{`{"label":{"a=b":true,"c":true}}`, `{"label":["a=b","c"]}`} {
		f, err := ParseFilters(in)
		if err != nil || !slices.Equal(f["label"], []string{"a=b", "c"}) {
			t.Errorf("%s: %v, %v", in, f, err)
		}
	}
	for _, in := range []string{"{", "[]", `{"a":1}`} {
		if f, err := ParseFilters(in); err == nil {
			t.Errorf("%s was taken for %v", in, f)
		}
	}
	if !MatchLabels([]string{"a", "b=2"}, map[string]string{"a": "1", "b": "2"}) || MatchLabels([]string{"b=3"}, map[string]string{"b": "2"}) {
		t.Error("labels")
	}
}

func TestParseTime(t *testing.T) {
	now := time.Unix(1000, 0)
	for in, want := range map[string]int64{"10s": 990e9, "500": 500e9, "500.25": 500.25e9, "1970-01-01T00:00:07Z": 7e9} {
		if got, err := ParseTime(in, now); err != nil || got.UnixNano() != want {
			t.Errorf("%s: %v, %v", in, got, err)
		}
	}
	if _, err := ParseTime("soon", now); err == nil {
		t.Error("nonsense was taken for a time")
	}
}

func TestFilters(t *testing.T) {
	f := Filters{"label": {"a", "b=2"}, "label!": {"c"}, "until": {"10s"}}
	for _, c := range []struct {
		labels map[string]string
		want   bool
	}{
		{map[string]string{"a": "", "b": "2"}, true},
		{map[string]string{"a": "", "b": "3"}, false},
		{map[string]string{"b": "2"}, false},
		{map[string]string{"a": "1", "b": "2", "c": ""}, false},
	} {
		if got := f.Labels(c.labels); got != c.want {
			t.Errorf("%v: got %v", c.labels, got)
		}
	}
	if f.Check("label", "label!", "until") != nil || f.Check("label", "until") == nil {
		t.Error("keys")
	}
	two := func(v string) bool { return v == "b=2" }
	if !f.Any("label", two) || f.Any("until", two) || !f.Any("absent", two) {
		t.Error("values")
	}
	now := time.Unix(1000, 0)
	for value, want := range map[string]int64{"10s": 990, "0": 0, "": 0} { // not the zero time: a prune would take all
		if got, err := (Filters{"until": {value}}).Until(now); err != nil || got.Unix() != want {
			t.Errorf("until=%s: got %v, %v", value, got, err)
		}
	}
	if got, err := (Filters{}).Until(now); err != nil || !got.IsZero() {
		t.Errorf("no until: got %v, %v", got, err)
	}
	if _, err := (Filters{"until": {"1h", "2h"}}).Until(now); err == nil {
		t.Error("two times were taken")
	}
}
