package sink

import (
	"testing"
	"time"
)

// Eight bytes at a time find exactly what one at a time does.
func TestAllPlain(t *testing.T) {
	for c := range 256 {
		for at := range 20 {
			s := []byte("abcdefghijklmnopqrst")
			s[at] = byte(c)
			var slow []byte
			for i := range s {
				slow = AppendJSON(slow, s[i:i+1])
			}
			if got := string(AppendJSON(nil, s)); got != string(slow) {
				t.Fatalf("byte %#x at %d: got %s, want %s", c, at, got, slow)
			}
		}
	}
}

func TestAppendTime(t *testing.T) {
	for _, ns := range []int64{0, 1, 999999999, 1e9, 951782399e9, 951782400e9, 951868800e9, 1709164800e9 + 120000000, 4102444799e9 + 999999990, 1795262706123456789} {
		want := time.Unix(0, ns).UTC().Format(time.RFC3339Nano)
		if got := string(appendTime(nil, ns)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
