package volume

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	apivolume "github.com/moby/moby/api/types/volume"
	"golang.org/x/sys/unix"

	"machine/agent/fault"
	"machine/agent/model"
)

func open(t *testing.T, root string) *Manager {
	t.Helper()
	m, err := Open(Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestCreateIsIdempotentAndDurable(t *testing.T) {
	ctx, root := context.Background(), t.TempDir()
	m := open(t, root)
	r := apivolume.CreateRequest{Name: "data", Labels: map[string]string{"a": "b"}}
	v, err := m.Create(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(root, "data", "_data"); v.Mountpoint != want || v.Driver != "local" || v.Scope != "local" {
		t.Errorf("got %+v, want mountpoint %s", v, want)
	}
	if err := os.WriteFile(filepath.Join(v.Mountpoint, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Create(ctx, r); err != nil {
		t.Errorf("second create: %v", err)
	}
	again, err := open(t, root).Get("data")
	if err != nil || again.Labels["a"] != "b" || again.CreatedAt != v.CreatedAt {
		t.Errorf("after a restart: got %+v, %v", again, err)
	}
}

func TestNames(t *testing.T) {
	m := open(t, t.TempDir())
	for _, name := range []string{"../x", "a/b", ".records", "a", "-x", "a b", strings.Repeat("n", 300)} {
		if _, err := m.Create(context.Background(), apivolume.CreateRequest{Name: name}); !fault.Is(err, fault.Invalid) {
			t.Errorf("create %q: got %v, want Invalid", name, err)
		}
	}
	if _, err := m.Create(context.Background(), apivolume.CreateRequest{Name: "ok", Driver: "ghost"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("unknown driver: got %v, want NotFound", err)
	}
}

func TestUseAndRemove(t *testing.T) {
	ctx := context.Background()
	m := open(t, t.TempDir())
	v, err := m.Use(ctx, model.VolumeRequest{Name: "data"}, "c1")
	if err != nil || !v.Empty || v.Anonymous {
		t.Fatalf("got %+v, %v", v, err)
	}
	if err := m.Remove(ctx, "data"); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "volume is in use - [c1]") {
		t.Errorf("remove in use: got %v", err)
	}
	for range 2 {
		if err := m.Release(ctx, "data", "c1"); err != nil {
			t.Error(err)
		}
	}
	if err := m.Remove(ctx, "data"); err != nil {
		t.Error(err)
	}
	if err := m.Remove(ctx, "data"); !fault.Is(err, fault.NotFound) {
		t.Errorf("second remove: got %v, want NotFound", err)
	}
	if _, err := os.Stat(filepath.Dir(v.Mountpoint)); !os.IsNotExist(err) {
		t.Errorf("the folder is left: %v", err)
	}
}

func TestPruneTakesAnonymousOnly(t *testing.T) {
	ctx := context.Background()
	m := open(t, t.TempDir())
	anon, err := m.Use(ctx, model.VolumeRequest{}, "c1")
	if err != nil || !anon.Anonymous || len(anon.Name) != 64 {
		t.Fatalf("got %+v, %v", anon, err)
	}
	if _, err := m.Create(ctx, apivolume.CreateRequest{Name: "named"}); err != nil {
		t.Fatal(err)
	}
	if r, err := m.Prune(ctx, nil); err != nil || len(r.VolumesDeleted) != 0 {
		t.Errorf("in use: got %+v, %v", r, err)
	}
	if err := m.Release(ctx, anon.Name, "c1"); err != nil {
		t.Fatal(err)
	}
	if r, err := m.Prune(ctx, nil); err != nil || len(r.VolumesDeleted) != 1 || r.VolumesDeleted[0] != anon.Name {
		t.Errorf("got %+v, %v, want the anonymous volume", r, err)
	}
	if r, err := m.Prune(ctx, model.Filters{"all": {"1"}}); err != nil || len(r.VolumesDeleted) != 1 || r.VolumesDeleted[0] != "named" {
		t.Errorf("all: got %+v, %v, want the named volume", r, err)
	}
	if _, err := m.Prune(ctx, model.Filters{"ghost": {"1"}}); !fault.Is(err, fault.Invalid) {
		t.Errorf("unknown filter: got %v", err)
	}
}

func TestListFilters(t *testing.T) {
	ctx := context.Background()
	m := open(t, t.TempDir())
	for name, label := range map[string]string{"web-data": "x", "db-data": "y"} {
		if _, err := m.Create(ctx, apivolume.CreateRequest{Name: name, Labels: map[string]string{"k": label}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Use(ctx, model.VolumeRequest{Name: "web-data"}, "c"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		f    model.Filters
		want string
	}{
		{nil, "db-data web-data"},
		{model.Filters{"name": {"web"}}, "web-data"},
		{model.Filters{"label": {"k=y"}}, "db-data"},
		{model.Filters{"dangling": {"true"}}, "db-data"},
		{model.Filters{"dangling": {"0"}}, "web-data"},
		{model.Filters{"driver": {"ghost"}}, ""},
	} {
		l, err := m.List(c.f)
		var got []string
		for _, v := range l.Volumes {
			got = append(got, v.Name)
		}
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%v: got %v, %v, want %q", c.f, got, err, c.want)
		}
	}
}

func TestParseMount(t *testing.T) {
	flags, prop, data := parseMount("ro,noexec,rw,size=1m,rshared,uid=5")
	if flags != unix.MS_NOEXEC || prop != unix.MS_SHARED|unix.MS_REC || data != "size=1m,uid=5" {
		t.Errorf("got %#x, %#x, %q", flags, prop, data)
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []map[string]string{
		{"type": "tmpfs"}, {"device": "x"}, {"o": "bind"}, {"ghost": "1"}, {"size": "10m"},
	} {
		if err := checkOptions(o); !fault.Is(err, fault.Invalid) {
			t.Errorf("%v: got %v, want Invalid", o, err)
		}
	}
	if err := checkOptions(map[string]string{"o": "bind", "device": "/srv"}); err != nil {
		t.Error(err)
	}
}

func TestMountTmpfs(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	ctx, root := context.Background(), t.TempDir()
	m := open(t, root)
	r := model.VolumeRequest{Name: "mem", Options: map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m,nosuid"}}
	v, err := m.Use(ctx, r, "c1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(v.Mountpoint, unix.MNT_DETACH) })
	if on, err := isMounted(v.Mountpoint); !on || err != nil {
		t.Fatalf("not mounted: %v", err)
	}
	if _, err := open(t, root).Use(ctx, r, "c1"); err != nil { // a restarted agent finds it
		t.Error(err)
	}
	if err := m.Release(ctx, "mem", "c1"); err != nil {
		t.Error(err)
	}
	if on, _ := isMounted(v.Mountpoint); on {
		t.Error("still mounted after the last user")
	}
	if err := m.Remove(ctx, "mem"); err != nil {
		t.Error(err)
	}
}
