package shim

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	mobyseccomp "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"machine/agent/model"
)

// probe puts the attacker's program into the image.
func (b *bench) probe() {
	b.t.Helper()
	path := filepath.Join(b.lower(), "probe")
	cmd := exec.Command("go", "build", "-o", path, "./testdata/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("build the probe: %v\n%s", err, out)
	}
}

func (b *bench) hash() [32]byte {
	var buf bytes.Buffer
	st, err := b.s.binary.Stat()
	must(b.t, err)
	p := make([]byte, st.Size())
	_, err = b.s.binary.ReadAt(p, 0)
	must(b.t, err)
	buf.Write(p)
	return sha256.Sum256(buf.Bytes())
}

// symlink puts a symbolic link into the image, in place of what is there.
func (b *bench) symlink(target, name string) {
	b.t.Helper()
	path := filepath.Join(b.lower(), name)
	must(b.t, os.RemoveAll(path))
	must(b.t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(b.t, os.Symlink(target, path))
}

// refused says that a container neither gets made nor runs.
func (b *bench) refused(bu *model.Bundle) error {
	b.t.Helper()
	k, err := b.s.Create(ctxOf(b.t), bu)
	if err != nil {
		return err
	}
	err = k.Start(ctxOf(b.t))
	if err == nil {
		<-k.Done()
	}
	must(b.t, k.Delete(context.Background()))
	return err
}

// CVE-2019-5736: the shim's binary, which the container may find itself run
// from, cannot be changed.
func TestS1OwnBinary(t *testing.T) {
	b := newBench(t)
	b.write("entry", "#!/proc/self/exe\n", 0o755)
	before := b.hash()
	_ = b.refused(b.bundle("/entry"))
	got := b.sh(`(echo x > /proc/1/exe) 2>/dev/null || echo no; (echo x >> /proc/1/exe) 2>/dev/null || echo no`, func(bu *model.Bundle) {
		bu.Init = true
		bu.Process.Caps = append(defaultCaps, "CAP_SYS_PTRACE")
	})
	if got != "no\nno" {
		t.Errorf("got %q", got)
	}
	if b.hash() != before {
		t.Error("the shim's binary was changed")
	}
	if _, err := b.s.binary.WriteAt([]byte("x"), 0); err == nil {
		t.Error("the shim's binary is not sealed")
	}
}

// CVE-2024-21626: no descriptor of ours is left, and none can be a working
// directory.
func TestS2Descriptors(t *testing.T) {
	b := newBench(t)
	const list = `ls /proc/$$/fd; pwd; readlink /proc/$$/cwd`
	want := "0\n1\n2\n/\n/"
	if got := b.sh(list); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	k := b.start(b.bundle("sleep", "1000"))
	out, _, _ := execIn(t, k, model.Process{Args: []string{"sh", "-c", list}, Caps: defaultCaps})
	if strings.TrimSpace(out) != want {
		t.Errorf("exec: got %q, want %q", out, want)
	}
	for fd := range 64 {
		cwd := fmt.Sprintf("/proc/self/fd/%d", fd)
		bu := b.bundle("pwd")
		bu.Process.Cwd = cwd
		if b.refused(bu) == nil {
			t.Errorf("%s was taken for a working directory", cwd)
		}
		e, err := k.Exec(ctxOf(t), model.Process{Args: []string{"pwd"}, Env: []string{"PATH=/bin"}, Cwd: cwd})
		if err == nil {
			e.Release()
			t.Errorf("exec: %s was taken for a working directory", cwd)
		}
	}
}

// CVE-2016-9962: a container that may trace sees nothing of a joining process
// that it could not do itself.
func TestS3TraceExec(t *testing.T) {
	b := newBench(t)
	b.probe()
	caps := append([]string{"CAP_SYS_PTRACE"}, defaultCaps...)
	bu := b.bundle("/probe", "caps", "a80c25fb")
	bu.Process.Caps = caps
	bu.Spec.Process.Capabilities.Bounding = caps
	var err error
	bu.Spec.Linux.Seccomp, err = mobyseccomp.GetDefaultProfile(bu.Spec)
	must(t, err)
	k := b.create(bu)
	s, err := k.Attach(model.AttachOptions{Stdout: true, Stderr: true})
	must(t, err)
	defer s.Close()
	must(t, k.Start(ctxOf(t)))
	s.Stdout.Read(make([]byte, 6))
	wait := collect(s)
	for range 1000 {
		e, err := k.Exec(ctxOf(t), model.Process{Args: []string{"true"}, Env: []string{"PATH=/bin"}, Caps: defaultCaps})
		must(t, err)
		_, err = e.Wait(ctxOf(t))
		must(t, err)
		e.Release()
	}
	execIn(t, k, model.Process{Args: []string{"touch", "/tmp/stop"}})
	await(t, k)
	out, errs := wait()
	if strings.TrimSpace(out) != "seen true" || errs != "" {
		t.Errorf("got %q %q", out[:min(len(out), 2000)], errs)
	}
}

// CVE-2022-29162, CVE-2022-24769: inheritable and ambient sets are empty.
func TestS4InheritableCaps(t *testing.T) {
	b := newBench(t)
	const want = "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n"
	const script = `grep -E "CapInh|CapAmb" /proc/self/status`
	for _, user := range []string{"", "user"} {
		if got := b.sh(script, func(bu *model.Bundle) { bu.Process.User = user }); got+"\n" != want {
			t.Errorf("run as %q: got %q", user, got)
		}
	}
	k := b.start(b.bundle("sleep", "1000"))
	all := []string{"CAP_SYS_ADMIN", "CAP_SYS_PTRACE"}
	for _, p := range []model.Process{{Caps: defaultCaps}, {Caps: append(all, defaultCaps...), NoSeccomp: true}} {
		p.Args = []string{"sh", "-c", script}
		if out, _, _ := execIn(t, k, p); out != want {
			t.Errorf("exec: got %q", out)
		}
	}
}

// CVE-2019-19921, CVE-2023-27561, CVE-2023-28642: what should be /proc and
// /sys is.
func TestS6ProcAndSys(t *testing.T) {
	for _, name := range []string{"proc", "sys"} {
		b := newBench(t)
		b.symlink("/tmp", name)
		if err := b.refused(b.bundle("true")); err == nil || !strings.Contains(err.Error(), "symbolic link") {
			t.Errorf("/%s as a symbolic link: %v", name, err)
		}
	}
	b := newBench(t)
	vol := filepath.Join(b.dir, "vol")
	must(t, os.MkdirAll(vol, 0o755))
	must(t, os.WriteFile(filepath.Join(b.dir, "file"), nil, 0o644))
	for _, dest := range []string{"/proc", "/proc/sys", "/proc/self/attr", "/proc/../proc/sys"} {
		bu := b.bundle("true")
		bu.Spec.Mounts = append(bu.Spec.Mounts, bind(vol, dest))
		if err := b.refused(bu); err == nil || !strings.Contains(err.Error(), "inside /proc") {
			t.Errorf("a volume at %s: %v", dest, err)
		}
	}
	b.symlink("/proc/self", "way")
	bu := b.bundle("true")
	bu.Spec.Mounts = append(bu.Spec.Mounts, bind(vol, "/way/attr"))
	if err := b.refused(bu); err == nil {
		t.Error("a volume in /proc by a symbolic link was accepted")
	}
	got := b.sh(`cat /proc/uptime; echo fine`, func(bu *model.Bundle) {
		bu.Spec.Mounts = append(bu.Spec.Mounts, bind(filepath.Join(b.dir, "file"), "/proc/uptime"))
	})
	if got != "fine" {
		t.Errorf("lxcfs's way: got %q", got)
	}
}

func withoutDev(bu *model.Bundle) {
	var keep []specs.Mount
	for _, m := range bu.Spec.Mounts {
		if !strings.HasPrefix(m.Destination, "/dev") || m.Destination == "/dev/pts" {
			keep = append(keep, m)
		}
	}
	bu.Spec.Mounts = keep
}

// CVE-2025-31133: a /dev/null that is something else masks nothing away.
func TestS7FalseNull(t *testing.T) {
	b := newBench(t)
	before, _ := os.ReadFile("/proc/sys/kernel/core_pattern")
	b.symlink("/proc/sys/kernel/core_pattern", "dev/null")
	bu := b.bundle("sh", "-c", "cat /proc/keys /proc/timer_list /proc/kcore | wc -c")
	withoutDev(bu)
	k, err := b.s.Create(ctxOf(t), bu)
	if err == nil {
		k.Delete(context.Background())
		t.Error("a link in place of /dev/null was accepted")
	}
	after, _ := os.ReadFile("/proc/sys/kernel/core_pattern")
	if !bytes.Equal(before, after) {
		t.Error("core_pattern was changed")
	}
}

// CVE-2025-52565: the console is bound over a file of ours, not over what a
// link leads to.
func TestS8FalseConsole(t *testing.T) {
	b := newBench(t)
	b.symlink("/etc/passwd", "dev/console")
	bu := b.bundle("true")
	withoutDev(bu)
	bu.Process.TTY = true
	if err := b.refused(bu); err == nil || !strings.Contains(err.Error(), "console") {
		t.Errorf("a link in place of /dev/console: %v", err)
	}
	b = newBench(t)
	bu = b.bundle("sh", "-c", "ls -l /dev/console")
	bu.Process.TTY = true
	b.sh("true")
	b.symlink("/tmp", "dev/pts")
	bu = b.bundle("true")
	withoutDev(bu)
	bu.Spec.Mounts = append(bu.Spec.Mounts[:1:1], bu.Spec.Mounts[2:]...)
	bu.Process.TTY = true
	if err := b.refused(bu); err == nil {
		t.Error("a terminal came from a directory that is no devpts")
	}
}

// CVE-2025-52881: sysctls are written through a procfs of our own, whatever
// lies over the files of the one that is in view, here or in the container.
func TestS9Redirects(t *testing.T) {
	b := newBench(t)
	vol := filepath.Join(b.dir, "vol", "sys", "kernel")
	must(t, os.MkdirAll(vol, 0o755))
	fake := filepath.Join(vol, "shmmni")
	must(t, os.WriteFile(fake, []byte("host"), 0o644))
	bu := b.bundle("cat", "/x/sys/kernel/shmmni", "/proc/sys/kernel/shmmni")
	bu.Spec.Linux.Sysctl = map[string]string{"kernel.shmmni": "77"}
	bu.Spec.Mounts = append([]specs.Mount{bind(filepath.Join(b.dir, "vol"), "/x")}, bu.Spec.Mounts...)
	if out, _, _ := b.run(bu); out != "host77\n" {
		t.Errorf("got %q", out)
	}
	// Over the folder: the file itself is another in each IPC namespace.
	must(t, unix.Mount(vol, "/proc/sys/kernel", "", unix.MS_BIND, ""))
	defer unix.Unmount("/proc/sys/kernel", unix.MNT_DETACH)
	bu = b.bundle("cat", "/proc/sys/kernel/shmmni")
	bu.Spec.Linux.Sysctl = map[string]string{"kernel.shmmni": "78"}
	if out, _, _ := b.run(bu); out != "78\n" {
		t.Errorf("with a file over the host's: got %q", out)
	}
	if got, _ := os.ReadFile(fake); string(got) != "host" {
		t.Errorf("the file over the host's got %q", got)
	}
}

// CVE-2026-41579, CVE-2024-45310: no prepared path leads out of the root.
func TestS10LinksOut(t *testing.T) {
	b := newBench(t)
	out := filepath.Join(b.dir, "out")
	must(t, os.MkdirAll(out, 0o755))
	vol := filepath.Join(b.dir, "vol")
	must(t, os.MkdirAll(vol, 0o755))
	up := strings.Repeat("../", 20)
	b.symlink(up+out, "one")
	b.symlink(out, "two")
	b.symlink("/one", "three")
	b.symlink(up+out+"/new", "four")
	for _, dest := range []string{"/one/made", "/two/made", "/three/made", "/four", "/one"} {
		bu := b.bundle("true")
		bu.Spec.Mounts = append(bu.Spec.Mounts, bind(vol, dest))
		_ = b.refused(bu)
	}
	for _, cwd := range []string{"/one/cwd", "/two/cwd", "/four"} {
		bu := b.bundle("true")
		bu.Process.Cwd = cwd
		_ = b.refused(bu)
	}
	for _, dev := range []string{"/one/dev", "/two/d/dev"} {
		bu := b.bundle("true")
		bu.Spec.Linux.Devices = []specs.LinuxDevice{{Path: dev, Type: "c", Major: 1, Minor: 3}}
		_ = b.refused(bu)
	}
	for _, name := range []string{"dev", "etc", "run", "sys", "proc", "tmp"} {
		b2 := newBench(t)
		b2.symlink(up+out, name)
		_ = b2.refused(b2.bundle("true"))
	}
	if e, err := os.ReadDir(out); err != nil || len(e) != 0 {
		t.Errorf("made outside: %v %v", e, err)
	}
}

// CVE-2022-0492: no way to a cgroup's release agent.
func TestS11ReleaseAgent(t *testing.T) {
	b := newBench(t)
	got := b.sh(`unshare -UrmC true 2>/dev/null || echo no; unshare -m true 2>/dev/null || echo no; mkdir /tmp/c; mount -t cgroup -o memory c /tmp/c 2>/dev/null || echo no;
for f in $(ls -d /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/*/notify_on_release /sys/fs/cgroup/*/tasks 2>/dev/null); do (echo 0 > $f) 2>/dev/null && echo WROTE $f; done; echo end`)
	if got != "no\nno\nno\nend" {
		t.Errorf("got %q", got)
	}
}

// CVE-2018-10892, CVE-2015-3630: what is masked has no content, and what is
// read-only cannot be written.
func TestS12ProtectedPaths(t *testing.T) {
	b := newBench(t)
	bu := b.bundle("true")
	var script strings.Builder
	for _, p := range bu.Spec.Linux.MaskedPaths {
		fmt.Fprintf(&script, `if [ -d %[1]s ]; then [ -z "$(ls -A %[1]s)" ] || echo FULL %[1]s; (touch %[1]s/x) 2>/dev/null && echo WROTE %[1]s; elif [ -e %[1]s ]; then [ "$(head -c 1 %[1]s | wc -c)" = 0 ] || echo FULL %[1]s; fi
`, p)
	}
	for _, p := range []string{"/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/sys/vm/swappiness", "/proc/irq/default_smp_affinity",
		"/proc/bus/pci/devices", "/sys/kernel/uevent_helper", "/sys/power/state", "/sys/fs/cgroup/memory/tasks"} {
		fmt.Fprintf(&script, `if [ -e %[1]s ]; then (echo 0 >> %[1]s) 2>/dev/null && echo WROTE %[1]s; fi
`, p)
	}
	script.WriteString("for f in /proc/bus /proc/fs /proc/irq /proc/sys; do [ -d $f ] || continue; (mkdir $f/x) 2>/dev/null && echo WROTE $f; done; echo end")
	if got := b.sh(script.String()); got != "end" {
		t.Errorf("got %s", got)
	}
}

// CVE-2026-31431 and its like: what the default profile refuses, and what it
// says of calls that it does not know.
func TestS13Syscalls(t *testing.T) {
	b := newBench(t)
	b.probe()
	want := map[string]string{"af_inet": "", "getpid": "", "clone3": "ENOSYS", "future": "ENOSYS"}
	check := func(how, out string) {
		n := 0
		for _, l := range strings.Split(strings.TrimSpace(out), "\n") {
			name, errno, _ := strings.Cut(l, " ")
			w, ok := want[name]
			if !ok {
				w = "EPERM"
			}
			if n++; errno != w {
				t.Errorf("%s: %s gave %q, want %q", how, name, errno, w)
			}
		}
		if n < 20 {
			t.Errorf("%s: only %q", how, out)
		}
	}
	bu := b.bundle("/probe", "syscalls")
	out, _, _ := b.run(bu)
	check("run", out)
	k := b.start(b.bundle("sleep", "1000"))
	out, _, _ = execIn(t, k, model.Process{Args: []string{"/probe", "syscalls"}, Caps: defaultCaps})
	check("exec", out)
	bu = b.bundle("/probe", "syscalls")
	bu.Process.NoNewPrivileges, bu.Process.User = true, "user"
	out, _, _ = b.run(bu)
	check("unprivileged", out)
}

// CVE-2020-15257: our sockets are paths, for root only.
func TestS15Sockets(t *testing.T) {
	b := newBench(t)
	bu := b.bundle("sh", "-c", "cat /proc/net/unix")
	bu.NetNS = "host"
	k := b.start(b.bundle("sleep", "1000")).(*task)
	out, _, _ := b.run(bu)
	for _, l := range strings.Split(out, "\n") {
		if strings.Contains(l, "@") && strings.Contains(l, "shim") {
			t.Errorf("an abstract socket: %s", l)
		}
	}
	st, err := os.Stat(filepath.Join(k.dir, "shim.sock"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v %v", st.Mode(), err)
	}
	dir, err := os.Stat(k.dir)
	if err != nil || dir.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v %v", dir.Mode(), err)
	}
	// Even with the path open to all, another user's connection is dropped.
	must(t, os.Chmod(k.dir, 0o755))
	must(t, os.Chmod(filepath.Dir(k.dir), 0o755))
	must(t, os.Chmod(filepath.Join(k.dir, "shim.sock"), 0o666))
	self := filepath.Join(b.dir, "self.test")
	bin, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	must(t, os.WriteFile(self, bin, 0o755))
	cmd := exec.Command(self)
	cmd.Env = []string{"SHIM_TEST_CHILD=dial", "SHIM_TEST_DIR=" + k.dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: nobody}
	if o, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(o), "dropped") {
		t.Errorf("got %s %v", o, err)
	}
}

// CVE-2024-40635, CVE-2026-46680, CVE-2016-3697: no user becomes root by
// overflow or by name.
func TestS16Users(t *testing.T) {
	b := newBench(t)
	b.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n1234:x:0:0::/:/bin/sh\nbig:x:4294967296:0::/:/bin/sh\nneg:x:-1:0::/:/bin/sh\n", 0o644)
	for _, u := range []string{"2147483648", "4294967296", "-1", "0x0", "big", "neg", "+0", "0:4294967296", "0:-1", "18446744073709551616", " 0", "nobody:"} {
		bu := b.bundle("id", "-u")
		bu.Process.User = u
		if err := b.refused(bu); err == nil {
			t.Errorf("user %q was accepted", u)
		}
	}
	if got := b.sh("id -u", func(bu *model.Bundle) { bu.Process.User = "1234" }); got != "1234" {
		t.Errorf("user 1234 got uid %s", got)
	}
	b.write("etc/group", strings.Repeat("x", 5<<20), 0o644)
	if err := b.refused(b.bundle("true")); err == nil || !strings.Contains(err.Error(), "4 MiB") {
		t.Errorf("a huge group file: %v", err)
	}
}

// CVE-2022-36109, CVE-2023-25173, CVE-2022-2989: a process has the groups of
// its image and none of ours.
func TestS17Groups(t *testing.T) {
	b := newBench(t)
	for user, want := range map[string]string{"": "0 10", "user": "1000 2000", "1000:1000": "1000", "5:6": "6"} {
		if got := b.sh("id -G", func(bu *model.Bundle) { bu.Process.User = user }); got != want {
			t.Errorf("%q: got %q, want %q", user, got, want)
		}
	}
}

// The host's mount table never shows anything of a container.
func TestHostMountsStay(t *testing.T) {
	b := newBench(t)
	before, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	k := b.start(b.bundle("sleep", "1000"))
	during, _ := os.ReadFile("/proc/self/mountinfo")
	must(t, k.Delete(ctxOf(t)))
	if !bytes.Equal(before, during) {
		t.Errorf("got %s", during)
	}
}
