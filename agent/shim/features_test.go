package shim

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"machine/agent/model"
)

func ptr[T any](v T) *T { return &v }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func bind(src, dest string, opts ...string) specs.Mount {
	return specs.Mount{Type: "bind", Source: src, Destination: dest, Options: append([]string{"rbind"}, opts...)}
}

func TestBinds(t *testing.T) {
	b := newBench(t)
	dir := filepath.Join(b.dir, "vol")
	must(t, os.MkdirAll(filepath.Join(dir, "sub"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("data"), 0o644))
	must(t, unix.Mount("tmpfs", filepath.Join(dir, "sub"), "tmpfs", 0, ""))
	defer unix.Unmount(filepath.Join(dir, "sub"), unix.MNT_DETACH)
	got := b.sh(`cat /v/file; echo new >/v/new; touch /ro/x || echo denied; touch /ro/sub/x || echo denied sub; cat /etc/one; touch /v/sub/y; grep -c " /ro/sub " /proc/self/mountinfo`,
		func(bu *model.Bundle) {
			bu.Spec.Mounts = append(bu.Spec.Mounts, bind(dir, "/v", "rw", "rprivate"), bind(dir, "/ro", "ro", "rprivate"),
				bind(filepath.Join(dir, "file"), "/etc/one", "ro"))
		})
	if got != "datadenied\ndenied sub\ndata1" {
		t.Errorf("got %q", got)
	}
	if data, _ := os.ReadFile(filepath.Join(dir, "new")); string(data) != "new\n" {
		t.Errorf("got %q", data)
	}
}

func TestTmpfs(t *testing.T) {
	b := newBench(t)
	b.write("data/a/b", "deep", 0o640)
	got := b.sh(`cat /data/a/b; stat -c %a /data/a/b; echo x >/data/new; cat /proc/self/mountinfo | grep -c " /data "; stat -c %a /t; dd if=/dev/zero of=/t/big bs=1k count=200 2>/dev/null || echo full`,
		func(bu *model.Bundle) {
			bu.Spec.Mounts = append(bu.Spec.Mounts,
				specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: "/data", Options: []string{"nosuid", "nodev", "tmpcopyup"}},
				specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: "/t", Options: []string{"noexec", "size=64k", "mode=1777"}})
		})
	if got != "deep640\n1\n1777\nfull" {
		t.Errorf("got %q", got)
	}
}

// Orders larger than a packet go by memory file, and binds by the hundred.
func TestLargeOrders(t *testing.T) {
	b := newBench(t)
	vol := filepath.Join(b.dir, "vol")
	must(t, os.MkdirAll(vol, 0o755))
	big := "BIG=" + strings.Repeat("x", 100000)
	more := "MORE=" + strings.Repeat("y", 100000)
	bu := b.bundle("sh", "-c", `echo ${#BIG} ${#MORE}; grep -c " /v" /proc/self/mountinfo; touch /done; sleep 1000`)
	bu.Process.Env = append(bu.Process.Env, big, more)
	for i := range 300 {
		bu.Spec.Mounts = append(bu.Spec.Mounts, bind(vol, fmt.Sprintf("/v%d", i)))
	}
	k := b.create(bu)
	s, err := k.Attach(model.AttachOptions{Stdout: true})
	must(t, err)
	defer s.Close()
	wait := collect(s)
	must(t, k.Start(ctxOf(t)))
	out, _, _ := execIn(t, k, model.Process{Args: []string{"sh", "-c", "echo ${#BIG} ${#MORE}"}, Env: []string{"PATH=/bin", big, more}})
	if out != "100000 100000\n" {
		t.Errorf("exec: got %q", out)
	}
	execIn(t, k, model.Process{Args: []string{"sh", "-c", "until [ -e /done ]; do sleep 0.01; done"}})
	must(t, k.Kill(unix.SIGKILL))
	await(t, k)
	if out, _ := wait(); out != "100000 100000\n300\n" {
		t.Errorf("got %q", out)
	}
}

// A tmpfs where the image has nothing is for everybody; else it is as the
// directory that it covers.
func TestTmpfsMode(t *testing.T) {
	b := newBench(t)
	b.write("there/x", "", 0o644)
	got := b.sh(`stat -c %a /new /there`, func(bu *model.Bundle) {
		bu.Spec.Mounts = append(bu.Spec.Mounts, specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: "/new"},
			specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: "/there"})
	})
	if got != "1777\n755" {
		t.Errorf("got %q", got)
	}
}

func TestReadonlyRoot(t *testing.T) {
	b := newBench(t)
	got := b.sh(`touch /x || echo denied; touch /dev/shm/x && echo fine`, func(bu *model.Bundle) { bu.Rootfs.Readonly = true })
	if got != "denied\nfine" {
		t.Errorf("got %q", got)
	}
}

func TestNoUpper(t *testing.T) {
	b := newBench(t)
	got := b.sh(`echo fine`, func(bu *model.Bundle) { bu.Rootfs.Upper, bu.Rootfs.Work, bu.Rootfs.Readonly = "", "", true })
	if got != "fine" {
		t.Errorf("got %q", got)
	}
}

// F48: 125 layers.
func TestF48ManyLayers(t *testing.T) {
	b := newBench(t)
	got := b.sh(`ls /layers | wc -l; cat /layers/top`, func(bu *model.Bundle) {
		for i := range 124 {
			d := filepath.Join(b.dir, "layers-with-a-name-as-long-as-a-digest-0123456789abcdef0123456789abcdef", fmt.Sprint(i))
			must(t, os.MkdirAll(filepath.Join(d, "layers"), 0o755))
			must(t, os.WriteFile(filepath.Join(d, "layers", fmt.Sprint("l", i)), nil, 0o644))
			must(t, os.WriteFile(filepath.Join(d, "layers", "top"), []byte(fmt.Sprint(i)), 0o644))
			bu.Rootfs.Lower = append([]string{d}, bu.Rootfs.Lower...)
		}
	})
	if got != "125\n123" {
		t.Errorf("got %q", got)
	}
}

func TestUsers(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct{ user, want string }{
		{"user", "uid=1000(user) gid=1000(user) groups=1000(user),2000(extra) /home/user"},
		{"1000", "uid=1000(user) gid=1000(user) groups=1000(user),2000(extra) /home/user"},
		{"user:wheel", "uid=1000(user) gid=10(wheel) groups=10(wheel) /home/user"},
		{"4242", "uid=4242 gid=0(root) groups=0(root) /"},
		{"4242:4343", "uid=4242 gid=4343 groups=4343 /"},
	} {
		got := b.sh(`echo $(id) $HOME; cat /proc/self/status | grep CapEff; echo x > /dev/stderr`, func(bu *model.Bundle) { bu.Process.User = c.user })
		if want := c.want + "\nCapEff:\t0000000000000000"; got != want {
			t.Errorf("%s: got %q, want %q", c.user, got, want)
		}
	}
	got := b.sh(`id -G`, func(bu *model.Bundle) { bu.Process.User, bu.Process.Groups = "1000:1000", []string{"wheel", "77"} })
	if got != "1000 10 77" {
		t.Errorf("groups: got %q", got)
	}
}

func TestUserNamespace(t *testing.T) {
	b := newBench(t)
	bu := b.bundle("sh", "-c", "id -u; cat /proc/self/uid_map; touch /mine && stat -c %u /mine; echo x >/dev/null && echo null; ls -l /dev/null; touch /done; sleep 1000")
	bu.Spec.Linux.Namespaces = append(bu.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	bu.Spec.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	bu.Spec.Linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	for _, d := range []string{bu.Rootfs.Upper, bu.Rootfs.Work} {
		must(t, os.Chown(d, 100000, 100000))
	}
	must(t, os.Chown(b.lower(), 100000, 100000))
	must(t, os.Chown(filepath.Join(b.lower(), "dev"), 100000, 100000))
	k := b.create(bu)
	s, err := k.Attach(model.AttachOptions{Stdout: true, Stderr: true})
	must(t, err)
	defer s.Close()
	wait := collect(s)
	must(t, k.Start(ctxOf(t)))
	out, errs, st := execIn(t, k, model.Process{Args: []string{"sh", "-c", "id -u; cat /proc/self/uid_map; id -G"}, Caps: defaultCaps})
	if st.Code != 0 || !strings.HasPrefix(out, "0\n         0     100000      65536\n") {
		t.Errorf("exec: got %q %q %d", out, errs, st.Code)
	}
	execIn(t, k, model.Process{Args: []string{"sh", "-c", "until [ -e /done ]; do sleep 0.01; done"}, Caps: defaultCaps})
	must(t, k.Kill(unix.SIGKILL))
	await(t, k)
	out, errs = wait()
	if !strings.HasPrefix(out, "0\n         0     100000      65536\n0\nnull\n") {
		t.Errorf("got %q %q", out, errs)
	}
	var info unix.Stat_t
	if err := unix.Stat(filepath.Join(bu.Rootfs.Upper, "mine"), &info); err != nil || info.Uid != 100000 {
		t.Errorf("the file's owner is %d, %v", info.Uid, err)
	}
}

func TestSysctlsAndNames(t *testing.T) {
	b := newBench(t)
	got := b.sh(`cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmni /proc/sys/kernel/domainname; hostname`, func(bu *model.Bundle) {
		bu.Spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "7", "kernel.shmmni": "99"}
		bu.Spec.Domainname = "example.org"
	})
	if got != "7\n99\nexample.org\nbox" {
		t.Errorf("got %q", got)
	}
	bu := b.bundle("true")
	bu.Spec.Linux.Sysctl = map[string]string{"../../etc/x": "1"}
	if _, err := b.s.Create(ctxOf(t), bu); err == nil {
		t.Error("a sysctl with .. was accepted")
	}
}

func TestInit(t *testing.T) {
	b := newBench(t)
	bu := b.bundle("sh", "-c", "cat /proc/1/cmdline | head -c 11; echo; echo $$; (sleep 0.01 &); sleep 0.1; ps | grep -c sleep; exit 6")
	bu.Init = true
	out, errs, st := b.run(bu)
	if st.Code != 6 || !strings.HasPrefix(out, "docker-init") {
		t.Errorf("got %q %q %d", out, errs, st.Code)
	}
	bu = b.bundle("sh", "-c", "trap 'exit 3' TERM; echo up; while true; do sleep 0.05; done")
	bu.Init = true
	k := b.create(bu)
	s, err := k.Attach(model.AttachOptions{Stdout: true, Stderr: true})
	must(t, err)
	defer s.Close()
	must(t, k.Start(ctxOf(t)))
	s.Stdout.Read(make([]byte, 3))
	must(t, k.Kill(unix.SIGTERM))

	if st := await(t, k); st.Code != 3 {
		t.Errorf("exit %d, want 3", st.Code)
	}
	bu = b.bundle("nonesuch")
	bu.Init = true
	k = b.create(bu)
	if err := k.Start(ctxOf(t)); err == nil || !strings.Contains(err.Error(), "executable file not found in $PATH") {
		t.Errorf("got %v", err)
	}
}

func TestJoinedNamespaces(t *testing.T) {
	b := newBench(t)
	k := b.start(b.bundle("sleep", "1000"))
	got := b.sh(`ps | grep -c "sleep 1000"; readlink /proc/self/ns/ipc`, func(bu *model.Bundle) {
		bu.Spec.Linux.Namespaces = []specs.LinuxNamespace{
			{Type: specs.PIDNamespace, Path: fmt.Sprintf("/proc/%d/ns/pid", k.Pid())},
			{Type: specs.IPCNamespace, Path: fmt.Sprintf("/proc/%d/ns/ipc", k.Pid())},
			{Type: specs.UTSNamespace}, {Type: specs.MountNamespace}}
		bu.NetNS = fmt.Sprintf("/proc/%d/ns/net", k.Pid())
	})
	ipc, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/ipc", k.Pid()))
	if !strings.HasSuffix(got, ipc) {
		t.Errorf("got %q, want %s", got, ipc)
	}
	got = b.sh(`ps | grep -c agent; readlink /proc/self/ns/net`, func(bu *model.Bundle) {
		bu.Spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}}
		bu.Spec.Hostname, bu.NetNS = "", "host"
	})
	if net, _ := os.Readlink("/proc/self/ns/net"); !strings.HasSuffix(got, net) {
		t.Errorf("got %q, want %s", got, net)
	}
}

// A container in another's PID namespace is a container like others.
func TestJoinedPIDNamespace(t *testing.T) {
	b := newBench(t)
	host := b.start(b.bundle("sleep", "1000"))
	joined := func(args ...string) *model.Bundle {
		bu := b.bundle(args...)
		bu.Spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.PIDNamespace, Path: fmt.Sprintf("/proc/%d/ns/pid", host.Pid())},
			{Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace}}
		return bu
	}
	out, _, st := b.run(joined("sh", "-c", "ps | grep -c 'sleep [1]000'; grep CapEff /proc/self/status; ls /proc/$$/fd; exit 9"))
	if out != "1\nCapEff:\t00000000a80425fb\n0\n1\n2\n" || st.Code != 9 {
		t.Errorf("got %q %+v", out, st)
	}
	k := b.start(joined("sleep", "2000"))
	if out, _, _ := execIn(t, k, model.Process{Args: []string{"sh", "-c", "ps | grep -c 'sleep [12]000'"}}); out != "2\n" {
		t.Errorf("exec: got %q", out)
	}
	if pids, err := k.Pids(); err != nil || len(pids) != 1 || pids[0] != k.Pid() {
		t.Errorf("pids %v %v, want %d", pids, err, k.Pid())
	}
	must(t, k.Kill(unix.SIGTERM)) // it is no init there: the signal works
	if st := await(t, k); st.Code != 143 {
		t.Errorf("got %+v", st)
	}
	bu := joined("sh", "-c", "tty; echo $$ >/dev/tty; exit 3")
	bu.Process.TTY = true
	if out, _, st := b.run(bu); !strings.HasPrefix(out, "/dev/pts/0") || st.Code != 3 || strings.Contains(out, "tty:") {
		t.Errorf("terminal: got %q %+v", out, st)
	}
	k = b.create(joined("nonesuch"))
	if err := k.Start(ctxOf(t)); err == nil || !strings.Contains(err.Error(), "executable file not found in $PATH") {
		t.Errorf("got %v", err)
	}
	await(t, k)
	b.write("junk", "\x01\x02", 0o755)
	k = b.create(joined("/junk"))
	if err := k.Start(ctxOf(t)); err == nil || !strings.Contains(err.Error(), "exec format error") {
		t.Errorf("got %v", err)
	}
	await(t, k)
	for range 50 {
		if _, _, st := b.run(joined("true")); st.Code != 0 {
			t.Errorf("got %+v", st)
		}
	}
	k = b.create(joined("true"))
	must(t, k.Delete(ctxOf(t)))
}

// F30: whoever kills a shim kills its container, at once.
func TestF30ShimKilled(t *testing.T) {
	b := newBench(t)
	k := b.start(b.bundle("sleep", "1000")).(*task)
	must(t, unix.Kill(k.shim, unix.SIGKILL))
	select {
	case <-k.Done():
	case <-time.After(2 * time.Second):
		t.Fatal("not told within two seconds")
	}
	if st := k.Exit(); st.Code != 137 {
		t.Errorf("got %+v", st)
	}
	for range 200 {
		if unix.Kill(k.Pid(), 0) != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	if data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", k.Pid())); !strings.Contains(string(data), ") Z ") {
		t.Error("the container lives")
	}
}

// A shim that was killed while no agent ran: Load kills what is left.
func TestLoadLost(t *testing.T) {
	b := newBench(t)
	bu := b.bundle("sleep", "1000")
	k := b.start(bu).(*task)
	must(t, unix.Kill(k.shim, unix.SIGKILL))
	<-k.Done()
	if _, err := b.shim().Load(ctxOf(t), bu.ID, bu.Dir); err == nil {
		t.Error("a lost task was loaded")
	}
}

func TestStdinStaysOpen(t *testing.T) {
	b := newBench(t)
	bu := b.bundle("sh", "-c", "read a; echo got $a; read b; echo got $b")
	bu.Process.OpenStdin = true
	k := b.create(bu)
	out, err := k.Attach(model.AttachOptions{Stdout: true})
	must(t, err)
	defer out.Close()
	wait := collect(out)
	must(t, k.Start(ctxOf(t)))
	for _, w := range []string{"one\n", "two\n"} {
		s, err := k.Attach(model.AttachOptions{Stdin: true})
		must(t, err)
		s.Stdin.Write([]byte(w))
		s.Close()
	}
	await(t, k)
	if got, _ := wait(); got != "got one\ngot two\n" {
		t.Errorf("got %q", got)
	}
}

func TestExecDetachedAndStdin(t *testing.T) {
	b := newBench(t)
	k := b.start(b.bundle("sleep", "1000"))
	for _, tty := range []bool{false, true} {
		e, err := k.Exec(ctxOf(t), model.Process{Args: []string{"sh", "-c", "seq 1 100000; exit 2"}, Env: []string{"PATH=/bin"}, Detached: true, TTY: tty})
		must(t, err)
		if st, err := e.Wait(ctxOf(t)); err != nil || st.Code != 2 {
			t.Errorf("got %v %v", st, err)
		}
		e.Release()
	}
	e, err := k.Exec(ctxOf(t), model.Process{Args: []string{"cat"}, Env: []string{"PATH=/bin"}, OpenStdin: true})
	must(t, err)
	defer e.Release()
	s, err := e.Attach()
	must(t, err)
	wait := collect(s)
	s.Stdin.Write([]byte("through"))
	s.Stdin.Close()
	e.Wait(ctxOf(t))
	if out, _ := wait(); out != "through" {
		t.Errorf("got %q", out)
	}
	// A process that an exec leaves behind does not keep its streams open.
	began := time.Now()
	out, _, _ := execIn(t, k, model.Process{Args: []string{"sh", "-c", "sleep 500 & echo hi"}})
	if out != "hi\n" || time.Since(began) > 5*time.Second {
		t.Errorf("got %q after %v", out, time.Since(began))
	}
}
