package container

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

func TestMergeEnv(t *testing.T) {
	got := mergeEnv([]string{"A=1", "B"}, []string{"A=0", "B=2", "C=3"})
	if want := []string{"A=1", "B", "C=3"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	got = overrideEnv([]string{"PATH=/bin", "X=1", "Y=1"}, []string{"X=2", "Y", "Z=3"})
	if want := []string{"PATH=/bin", "X=2", "Z=3"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCapabilities(t *testing.T) {
	for _, c := range []struct {
		add, drop []string
		priv      bool
		n         int
		has, not  string
	}{
		{n: 14, has: "CAP_CHOWN", not: "CAP_SYS_ADMIN"},
		{add: []string{"net_admin"}, n: 15, has: "CAP_NET_ADMIN"},
		{drop: []string{"ALL"}, add: []string{"CAP_KILL"}, n: 1, has: "CAP_KILL"},
		{add: []string{"all"}, drop: []string{"SYS_ADMIN"}, n: 40, not: "CAP_SYS_ADMIN"},
		{drop: []string{"CHOWN"}, n: 13, not: "CAP_CHOWN"},
		{priv: true, n: 41, has: "CAP_SYS_ADMIN"},
	} {
		got, err := capabilities(&container.HostConfig{CapAdd: c.add, CapDrop: c.drop, Privileged: c.priv})
		if err != nil || len(got) != c.n || c.has != "" && !slices.Contains(got, c.has) || slices.Contains(got, c.not) {
			t.Errorf("add %v drop %v: %v, %v", c.add, c.drop, got, err)
		}
	}
	if _, err := capabilities(&container.HostConfig{CapAdd: []string{"NOPE"}}); err == nil {
		t.Error("an unknown capability was taken")
	}
}

// A privileged container has the devices that come after /dev/fd, too, which
// is a link on most hosts.
func TestHostDevices(t *testing.T) {
	have := map[string]bool{}
	for _, d := range hostDevices() {
		have[d.Path] = true
	}
	for _, want := range []string{"/dev/full", "/dev/null", "/dev/zero"} {
		if _, _, there := device(want); there && !have[want] {
			t.Errorf("%s is missing", want)
		}
	}
}

func TestParseBind(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Mount
	}{
		{"/a:/b", Mount{Type: mount.TypeBind, Source: "/a", Destination: "/b", RW: true, Propagation: "rprivate"}},
		{"/a/../c:/b/:ro,rshared", Mount{Type: mount.TypeBind, Source: "/c", Destination: "/b", Mode: "ro,rshared", Propagation: "rshared"}},
		{"v:/b:nocopy", Mount{Type: mount.TypeVolume, Name: "v", Destination: "/b", RW: true, Mode: "nocopy", NoCopy: true}},
	} {
		if got, err := parseBind(c.in, ""); err != nil || !same(got, c.want) {
			t.Errorf("%s: got %+v, %v, want %+v", c.in, got, err, c.want)
		}
	}
	for _, in := range []string{"", "/a", ":/b", "/a:", "/a:b", "/a:/", "/a:/b:what", "/a:/b:ro:x", "v:/b:shared"} {
		if got, err := parseBind(in, ""); err == nil {
			t.Errorf("%q was taken for %+v", in, got)
		}
	}
}

func same(a, b Mount) bool {
	return a.Type == b.Type && a.Name == b.Name && a.Source == b.Source && a.Destination == b.Destination &&
		a.Mode == b.Mode && a.RW == b.RW && a.Propagation == b.Propagation && a.NoCopy == b.NoCopy
}

func TestBackoff(t *testing.T) {
	for n, want := range map[int]time.Duration{1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 5: 1600 * time.Millisecond, 11: time.Minute, 1000: time.Minute} {
		if got := backoff(n); got != want {
			t.Errorf("restart %d: %v, want %v", n, got, want)
		}
	}
}

func TestStatusText(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for want, s := range map[string]State{
		"Created":                             {Status: container.StateCreated},
		"Up 5 minutes":                        {Status: container.StateRunning, StartedAt: now.Add(-5 * time.Minute)},
		"Up 2 hours (Paused)":                 {Status: container.StatePaused, StartedAt: now.Add(-2 * time.Hour)},
		"Up 3 days (healthy)":                 {Status: container.StateRunning, StartedAt: now.Add(-75 * time.Hour), Health: &container.Health{Status: container.Healthy}},
		"Up About an hour (health: starting)": {Status: container.StateRunning, StartedAt: now.Add(-time.Hour), Health: &container.Health{Status: container.Starting}},
		"Exited (3) 2 weeks ago":              {Status: container.StateExited, ExitCode: 3, FinishedAt: now.Add(-15 * 24 * time.Hour)},
		"Restarting (1) 3 seconds ago":        {Status: container.StateRestarting, ExitCode: 1, FinishedAt: now.Add(-3 * time.Second)},
		"Exited (0) Less than a second ago":   {Status: container.StateExited, FinishedAt: now},
	} {
		if got := statusText(&s, now); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestCheckCpuset(t *testing.T) {
	for _, ok := range []string{"", "0", "0-3,7"} {
		if err := checkCpuset(ok); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	for _, bad := range []string{"3-1", "a", "-1", "0-", "0-99999999999", strings.Repeat("9", 30), "0,,1"} {
		if checkCpuset(bad) == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestNamesAndLinks(t *testing.T) {
	for range 50 {
		if n := randomName(1); !validName.MatchString(n) {
			t.Errorf("made-up name %q", n)
		}
	}
	for in, want := range map[string][2]string{"db:d": {"db", "d"}, "db": {"db", "db"}, "/db:/web/d": {"db", "d"}} {
		if a, b := splitLink(in); a != want[0] || b != want[1] {
			t.Errorf("%s: %s, %s", in, a, b)
		}
	}
}
