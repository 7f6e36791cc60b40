package model

import (
	"strings"
	"testing"
)

func TestIDMap(t *testing.T) {
	m := &IDMap{UID: 100000, GID: 200000, Size: 1000}
	for _, c := range []struct {
		uid, gid, huid, hgid int
		ok                   bool
	}{{0, 0, 100000, 200000, true}, {999, 1, 100999, 200001, true}, {1000, 0, 0, 0, false}, {0, 1000, 0, 0, false}, {-1, 0, 0, 0, false}, {0, -1, 0, 0, false}} {
		huid, hgid, ok := m.Host(c.uid, c.gid)
		if huid != c.huid || hgid != c.hgid || ok != c.ok {
			t.Errorf("%d:%d: got %d:%d %v", c.uid, c.gid, huid, hgid, ok)
		}
		if ok {
			if uid, gid := m.Inside(huid, hgid); uid != c.uid || gid != c.gid {
				t.Errorf("%d:%d: got %d:%d", huid, hgid, uid, gid)
			}
		}
	}
	if uid, gid := m.Inside(0, 300000); uid != OverflowID || gid != OverflowID {
		t.Errorf("got %d:%d", uid, gid)
	}
}

func TestNewID(t *testing.T) {
	a, b := NewID(), NewID()
	if a == b || len(a) != 64 || !IsHex(a) || strings.Trim(a[:12], "0123456789") == "" {
		t.Errorf("got %s and %s", a, b)
	}
	for s, want := range map[string]bool{"": true, "0af": true, "0ag": false, "AF": false, "0 1": false} {
		if IsHex(s) != want {
			t.Errorf("%q: got %v", s, !want)
		}
	}
}
