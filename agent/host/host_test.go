package host

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const mountinfo = `22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd
33 30 0:29 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw
33 30 0:29 / /elsewhere rw - cgroup2 cgroup2 rw
40 22 254:1 / /home rw - xfs /dev/vdb rw
41 22 254:2 / /boot rw - ext4 /dev/vdc rw
42 22 0:40 / /var/lib/kubelet/x rw - tmpfs tmpfs rw
broken line
`

func TestHierarchies(t *testing.T) {
	want := []hierarchy{
		{"/sys/fs/cgroup/cpu,cpuacct", false, "cpu,cpuacct"},
		{"/sys/fs/cgroup/systemd", false, "xattr,name=systemd"},
		{"/sys/fs/cgroup/unified", true, ""},
	}
	if got := hierarchies(strings.NewReader(mountinfo)); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	v2 := hierarchies(strings.NewReader("30 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"))
	if !reflect.DeepEqual(v2, []hierarchy{{"/sys/fs/cgroup", true, ""}}) {
		t.Errorf("v2: %+v", v2)
	}
	if got := otherDisks(strings.NewReader(mountinfo)); !reflect.DeepEqual(got, []string{"/home"}) {
		t.Errorf("disks: %v", got)
	}
}

func TestServers(t *testing.T) {
	for text, want := range map[string]bool{
		"nameserver 10.0.0.1\n":                      true,
		"# x\nnameserver 127.0.0.53\n":               false,
		"nameserver 127.0.0.53\nnameserver 9.9.9.9":  true,
		"search example.org\nnameserver\nnameserver": false,
		"nameserver ::1\n":                           false,
	} {
		if hasServer(text) != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
}

func TestF26StartTimes(t *testing.T) {
	now, err := startTime(os.Getpid())
	if err != nil || now == 0 {
		t.Fatalf("own start time: %d, %v", now, err)
	}
	dir := t.TempDir()
	if err := writePid(dir, os.Getpid(), "10.0.0.1"); err != nil {
		t.Fatal(err)
	}
	if rec, alive := readPid(dir); !alive || rec.IP != "10.0.0.1" {
		t.Errorf("own record: %+v %v", rec, alive)
	}
	other, _ := json.Marshal(pidRecord{PID: os.Getpid(), Start: now + 1})
	if err := os.WriteFile(pidFile(dir), other, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, alive := readPid(dir); alive {
		t.Error("another process with our number is taken for us")
	}
	for _, bad := range []string{"", "{", `{"PID":-1}`, `{"PID":1,"Start":0}`} {
		if err := os.WriteFile(pidFile(dir), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, alive := readPid(dir); alive {
			t.Errorf("record %q is alive", bad)
		}
	}
	zombie := exec.Command("true")
	if err := zombie.Start(); err != nil {
		t.Fatal(err)
	}
	var info unix.Siginfo
	for errors.Is(unix.Waitid(unix.P_PID, zombie.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
	}
	if _, err := startTime(zombie.Process.Pid); err == nil {
		t.Error("a zombie has a start time")
	}
	_ = zombie.Wait()
}

func TestCatches(t *testing.T) {
	file := filepath.Join(t.TempDir(), "status")
	if err := os.WriteFile(file, []byte("Name:\tx\nSigIgn:\t0000000000004000\nSigCgt:\t0000000000004002\nCapInh:\t0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !catches(file, unix.SIGTERM) || catches(file, unix.SIGKILL) || catches(file+"x", unix.SIGTERM) {
		t.Error("the mask is read wrongly")
	}
}

func TestStoreOnOverlayIsRefused(t *testing.T) {
	if err := checkFS("/proc"); err != nil {
		t.Errorf("/proc is no overlay: %v", err)
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("/var/tmp", "host-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	for _, d := range []string{"u", "w", "m"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("t", dir+"/m", "overlay", 0, "lowerdir=/etc,upperdir="+dir+"/u,workdir="+dir+"/w"); err != nil {
		t.Skipf("overlay: %v", err)
	}
	defer func() { _ = unix.Unmount(dir+"/m", 0) }()
	if err := checkFS(dir + "/m"); err == nil || !strings.Contains(err.Error(), "--storage-path") {
		t.Errorf("overlay: %v", err)
	}
}

func TestIdentities(t *testing.T) {
	if id("/a/machines/x") == id("/b/machines/x") || id("/a/x/") != id("/a/x") {
		t.Error("ids are of the folder")
	}
	if n := vethName("/a/machines/x"); len(n) > 15 {
		t.Errorf("interface name %q is too long", n)
	}
	for _, p := range pools {
		if pre := netip.MustParsePrefix(p); pre != pre.Masked() {
			t.Errorf("pool %s has host bits", p)
		}
	}
}

func TestBoundedLog(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	b, err := openBounded(file)
	if err != nil {
		t.Fatal(err)
	}
	chunk := bytes.Repeat([]byte("x"), 1<<20)
	for range 20 {
		if n, err := b.Write(chunk); n != len(chunk) || err != nil {
			t.Fatal(n, err)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{file, file + ".1"} {
		if fi, err := os.Stat(f); err != nil || fi.Size() > maxLog {
			t.Errorf("%s: %v %v", f, fi, err)
		}
	}
}

func TestSupervisorRestartsAndPassesSignals(t *testing.T) {
	dir := t.TempDir()
	calls := filepath.Join(dir, "calls")
	// A child that ends by itself twice, then stays.
	script := `echo start >>` + calls + `; [ $(wc -l <` + calls + `) -ge 3 ] || exit 1; trap "echo hup >>` + calls + `" HUP; trap "exit 0" TERM; while :; do sleep 0.05; done`
	s := &supervised{log: io.Discard}
	signals := make(chan os.Signal, 4)
	done := make(chan error, 1)
	s.spawn = func() (*exec.Cmd, error) { return exec.Command("/bin/sh", "-c", script), nil }
	go func() { done <- s.keep(signals) }()
	waitFor := func(want string) {
		t.Helper()
		for range 2000 {
			if data, _ := os.ReadFile(calls); strings.Contains(string(data), want) {
				return
			}
			unix.Nanosleep(&unix.Timespec{Nsec: 10e6}, nil)
		}
		t.Fatalf("never: %q", want)
	}
	waitFor("start\nstart\nstart\n")
	for range 100 { // the trap is set a moment after the start
		signals <- unix.SIGHUP
		unix.Nanosleep(&unix.Timespec{Nsec: 30e6}, nil)
		if data, _ := os.ReadFile(calls); strings.Contains(string(data), "hup") {
			break
		}
	}
	signals <- unix.SIGTERM
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func FuzzMountinfo(f *testing.F) {
	f.Add(mountinfo)
	f.Fuzz(func(t *testing.T, s string) {
		_ = hierarchies(strings.NewReader(s))
		_ = otherDisks(strings.NewReader(s))
		_ = hasServer(s)
	})
}
