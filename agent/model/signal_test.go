package model

import "testing"

func TestParseSignal(t *testing.T) {
	for in, want := range map[string]int{"TERM": 15, "SIGKILL": 9, "sighup": 1, "9": 9, "RTMIN+3": 37, "SIGRTMAX-1": 63} {
		if got, err := ParseSignal(in); err != nil || int(got) != want {
			t.Errorf("%s: %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"0", "65", "-1", "NOPE", "RTMIN+99", "SIG"} {
		if got, err := ParseSignal(in); err == nil {
			t.Errorf("%s was taken for %d", in, got)
		}
	}
}
