package spare

import (
	"errors"
	"testing"
)

func TestSpare(t *testing.T) {
	made, ended, fail, bad := 0, []int{}, false, 0
	s := Spare[int]{
		Make: func() (int, error) {
			if fail {
				return 0, errors.New("no")
			}
			made++
			return made, nil
		},
		End:  func(n int) { ended = append(ended, n) },
		Good: func(n int) bool { return n != bad },
	}
	take := func(want int) {
		t.Helper()
		if n, err := s.Take(); n != want || err != nil {
			t.Errorf("got %d, %v, want %d", n, err, want)
		}
	}
	fill := func() { s.Refill(); s.Refill(); s.wg.Wait() }
	take(1) // none waits: it is made
	fill()
	if n, have := s.Peek(); n != 2 || !have {
		t.Errorf("waiting: %d %v", n, have)
	}
	take(2)
	fill()
	bad = 3
	take(4) // 3 went bad
	fail = true
	fill()
	if _, err := s.Take(); err == nil {
		t.Error("the error is lost")
	}
	fail = false
	fill()
	s.Close()
	s.Close()
	fill()
	if len(ended) != 2 || ended[0] != 3 || ended[1] != 5 || made != 5 {
		t.Errorf("ended %v of %d", ended, made)
	}
}
