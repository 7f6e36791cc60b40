package docker

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"machine/acceptance/engine"
)

// image makes an image of busybox's files as a shell script changes them.
func image(e *engine.Engine, name, script string, changes ...string) {
	e.T.Helper()
	dir := filepath.Join(e.Dir, "image-"+name)
	c := exec.Command("sh", "-ec", "cp -a busybox "+dir+"; cd "+dir+"\n"+script+"\ntar -cf "+dir+".tar .")
	c.Dir = e.Dir
	if out, err := c.CombinedOutput(); err != nil {
		e.T.Fatalf("make image %s: %v\n%s", name, err, out)
	}
	args := []string{"import", "--change", "ENV PATH=/bin"}
	for _, ch := range changes {
		args = append(args, "--change", ch)
	}
	e.Run(append(args, dir+".tar", name)...)
}

// hashOf is the SHA-256 of a file as the engine's host sees it.
func hashOf(e *engine.Engine, path string) string {
	e.T.Helper()
	out, err := e.HostRun("sha256sum", path)
	if err != nil || len(out) < 64 {
		e.T.Fatalf("hash of %s: %s, %v", path, out, err)
	}
	return out[:64]
}

// TestS1OwnBinary: a container that gets hold of the program that started it
// (CVE-2019-5736) cannot change it.
func TestS1OwnBinary(t *testing.T) {
	e := start(t)
	image(e, "evil", "printf '#!/proc/self/exe\\n' >bad; chmod 755 bad; printf evil >evil")
	hash := func() string {
		b, err := os.ReadFile(engine.Binary(t, "agent"))
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(b)
		return hex.EncodeToString(sum[:])
	}
	agent := hash()
	e.Run("run", "-d", "--name", "ref", "busybox", "sleep", "1000")
	shim := hashOf(e, "/proc/"+shimOf(e, "ref")+"/exe")
	// dd runs as the container's own programs do: those are busy or its own.
	e.Run("run", "-d", "--name", "writer", "evil", "sh", "-c",
		"while :; do for p in /proc/[0-9]*/exe /proc/[0-9]*/fd/*; do dd if=/evil of=$p conv=notrunc 2>/dev/null; done; done")
	e.Try("run", "--rm", "--entrypoint", "/proc/self/exe", "evil")
	e.Try("run", "--rm", "evil", "/bad")
	e.Try("run", "--rm", "--entrypoint", "/bad", "evil")
	for range 15 {
		e.Try("exec", "writer", "/proc/self/exe")
		e.Try("exec", "writer", "/bad")
		e.Try("exec", "writer", "true")
	}
	engine.Equal(t, "shim of the container that writes", hashOf(e, "/proc/"+shimOf(e, "writer")+"/exe"), shim)
	e.Run("rm", "-f", "writer")
	engine.Equal(t, "the agent's binary", hash(), agent)
	engine.Equal(t, "a shim that runs", hashOf(e, "/proc/"+shimOf(e, "ref")+"/exe"), shim)
	e.Run("run", "-d", "--name", "new", "busybox", "sleep", "1000")
	engine.Equal(t, "a new shim", hashOf(e, "/proc/"+shimOf(e, "new")+"/exe"), shim)
	e.Audit()
}

// TestS2LeakedDescriptors: no directory of the host is in reach by a
// descriptor (CVE-2024-21626).
func TestS2LeakedDescriptors(t *testing.T) {
	e := start(t)
	e.Run("run", "-d", "--name", "box", "busybox", "sleep", "1000")
	for fd := 3; fd < 20; fd++ {
		dir := fmt.Sprintf("/proc/self/fd/%d", fd)
		if r := e.Try("run", "--rm", "-w", dir, "busybox", "sh", "-c", "pwd -P; ls ../../../../.."); r.Code == 0 {
			t.Errorf("run -w %s: %s", dir, r.Out)
		}
		if r := e.Try("exec", "-w", dir, "box", "sh", "-c", "pwd -P; ls ../../../../.."); r.Code == 0 {
			t.Errorf("exec -w %s: %s", dir, r.Out)
		}
	}
	image(e, "badwd", "true", "WORKDIR /proc/self/fd/8")
	if e.Try("run", "--rm", "badwd", "true").Code == 0 {
		t.Error("an image's WORKDIR in /proc/self/fd was taken")
	}
	fds := func(pid string) string {
		out, err := e.HostRun("ls", "/proc/"+pid+"/fd")
		if err != nil {
			t.Fatalf("descriptors of %s: %v", pid, err)
		}
		return strings.Join(strings.Fields(out), " ")
	}
	engine.Equal(t, "descriptors of a container", fds(pidOf(e, "box")), "0 1 2")
	e.Run("exec", "-d", "box", "sleep", "998")
	e.Run("run", "-d", "-t", "-i", "--init", "--name", "term", "busybox", "sleep", "997")
	for _, args := range []string{"sleep 998", "sleep 997"} {
		var pid string
		e.Eventually(args, func() bool {
			pid, _ = e.HostRun("pgrep", "-f", "^"+args+"$")
			return pid != ""
		})
		engine.Equal(t, "descriptors of "+args, fds(pid), "0 1 2")
	}
	e.Audit()
}

// TestS4Capabilities: nothing is inheritable (CVE-2022-24769, -29162).
func TestS4Capabilities(t *testing.T) {
	e := start(t)
	none := "0000000000000000"
	show := []string{"sh", "-c", "awk '/^Cap(Inh|Amb)/ {print $2}' /proc/self/status | sort -u"}
	for _, opts := range [][]string{{}, {"-u", "user"}, {"--cap-add", "NET_ADMIN"}, {"--cap-drop", "ALL"}, {"--privileged"}, {"--privileged", "-u", "user"}} {
		args := append(append([]string{"run", "--rm"}, opts...), "busybox")
		engine.Equal(t, fmt.Sprint(opts), e.Run(append(args, show...)...), none)
	}
	e.Run("run", "-d", "--name", "box", "busybox", "sleep", "1000")
	engine.Equal(t, "exec", e.Run(append([]string{"exec", "box"}, show...)...), none)
	engine.Equal(t, "exec --privileged", e.Run(append([]string{"exec", "--privileged", "box"}, show...)...), none)
	engine.Equal(t, "exec as a user", e.Run(append([]string{"exec", "-u", "user", "box"}, show...)...), none)
	eff := []string{"awk", "/^CapEff/ {print $2}", "/proc/self/status"}
	engine.Equal(t, "fourteen", e.Run(append([]string{"exec", "box"}, eff...)...), "00000000a80425fb")
	engine.Equal(t, "a user has none", e.Run(append([]string{"exec", "-u", "user", "box"}, eff...)...), none)
	e.Audit()
}

// TestS6ForgedProc: /proc is the kernel's or the container does not start
// (CVE-2019-19921, 2023-27561, 2023-28642).
func TestS6ForgedProc(t *testing.T) {
	e := start(t)
	image(e, "procfile", "rmdir proc; echo >proc")
	image(e, "proclink", "rmdir proc; mkdir fake; ln -s /fake proc")
	image(e, "syslink", "rmdir sys; mkdir fake; ln -s /fake sys")
	image(e, "linkaway", "rmdir proc; ln -s ../../../../tmp proc")
	for _, name := range []string{"procfile", "proclink", "syslink", "linkaway"} {
		if r := e.Try("run", "--rm", name, "sh", "-c", "echo started"); r.Code == 0 || strings.Contains(r.Out, "started") {
			t.Errorf("image %s started", name)
		}
	}
	e.Run("volume", "create", "vol")
	for _, at := range []string{"/proc", "/proc/self", "/proc/sys", "/proc/1", "/proc/self/attr", "/bin/../proc"} {
		if r := e.Try("run", "--rm", "-v", "vol:"+at, "busybox", "sh", "-c", "echo started"); r.Code == 0 || strings.Contains(r.Out, "started") {
			t.Errorf("a volume at %s", at)
		}
	}
	if e.Try("run", "--rm", "--tmpfs", "/proc", "busybox", "true").Code == 0 {
		t.Error("a tmpfs at /proc")
	}
	image(e, "toproc", "ln -s /proc/self link")
	if e.Try("run", "--rm", "-v", "vol:/link/attr", "toproc", "true").Code == 0 {
		t.Error("a volume in /proc by a link of the image")
	}
	engine.Equal(t, "kinds", e.Run("run", "--rm", "busybox", "stat", "-f", "-c", "%t", "/proc", "/sys"), "9fa0\n62656572")
	e.Audit()
}

// The paths of Docker's defaults (moby/oci/defaults.go).
const (
	maskedPaths   = "/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/sched_debug /proc/scsi /proc/timer_list /proc/timer_stats /sys/devices/virtual/powercap /sys/firmware"
	readonlyPaths = "/proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/kernel/hotplug /proc/sys/kernel/hostname /proc/sys/vm/overcommit_memory /proc/sys/fs/binfmt_misc/register /proc/sys/net/ipv4/ip_forward /proc/sysrq-trigger /proc/irq/default_smp_affinity /sys/kernel/mm/transparent_hugepage/enabled /sys/kernel/uevent_helper /sys/kernel/profiling /sys/power/state /sys/module/*/parameters/* /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/*/notify_on_release /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs /sys/block/*/uevent"
)

const checkMasked = `n=0
for p in ` + maskedPaths + `; do
	[ -e $p ] || continue
	n=$((n+1))
	if [ -d $p ]; then
		[ "$(ls -A $p | wc -l)" = 0 ] || echo $p has entries
		(: >$p/x) 2>/dev/null && echo $p is writable
	elif [ "$(stat -c %t:%T $p)" != 1:3 ]; then
		[ "$(head -c 1 $p 2>/dev/null | wc -c)" = 0 ] || echo $p is readable
	fi
done
[ $n -ge 2 ] || echo only $n paths exist`

// TestS7Masked: masked paths show nothing, also when the container brings a
// /dev/null of its own (CVE-2025-31133).
func TestS7Masked(t *testing.T) {
	e := start(t)
	engine.Equal(t, "masked", e.Run("run", "--rm", "busybox", "sh", "-c", checkMasked), "")
	engine.Equal(t, "masked after the start of another process", e.Run("run", "--rm", "--init", "busybox", "sh", "-c", checkMasked), "")
	if e.Run("run", "--rm", "--privileged", "busybox", "sh", "-c", checkMasked) == "" {
		t.Error("the check finds nothing where nothing is masked")
	}
	before, _ := e.HostRun("cat", "/proc/sys/kernel/core_pattern")
	e.Run("volume", "create", "dev")
	vol := filepath.Join(e.Dir, "data/volumes/dev/_data")
	if err := os.Symlink("/proc/sys/kernel/core_pattern", filepath.Join(vol, "null")); err != nil {
		t.Fatal(err)
	}
	image(e, "devnull", "rm -rf dev/null; ln -s /proc/sys/kernel/core_pattern dev/null")
	forged := checkMasked + "\nfor p in " + maskedPaths + "; do (echo pwned >$p) 2>/dev/null; done"
	for _, args := range [][]string{{"-v", "dev:/dev", "busybox"}, {"devnull"}} {
		r := e.Try(append(append([]string{"run", "--rm"}, args...), "sh", "-c", forged)...)
		if strings.Contains(r.Out, "readable") || strings.Contains(r.Out, "writable") || strings.Contains(r.Out, "entries") {
			t.Errorf("%v: %s", args, r.Out)
		}
	}
	after, _ := e.HostRun("cat", "/proc/sys/kernel/core_pattern")
	engine.Equal(t, "core_pattern of the host", after, before)
	e.Audit()
}

// TestS11CgroupEscape: no namespaces, no cgroup mounts (CVE-2022-0492).
func TestS11CgroupEscape(t *testing.T) {
	e := start(t)
	e.Run("run", "-d", "--name", "box", "busybox", "sleep", "1000")
	for _, script := range []string{
		"mkdir -p /m; mount -t cgroup -o memory cgroup /m", "mkdir -p /m; mount -t cgroup2 none /m", "mount -t tmpfs tmpfs /tmp",
		"unshare -m true", "unshare -U -r true", "unshare -U -r -m sh -c 'mount -t cgroup -o rdma x /tmp'", "unshare -n true", "unshare -p -f true",
		"mount -o remount,rw /sys", "mount -o remount,rw /proc/sys", "umount /proc/kcore", "mount --bind /proc /tmp",
		"for f in /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/release_agent; do echo /x >$f && exit 0; done; exit 1",
		"mkdir /sys/fs/cgroup/memory/new", "mknod /sda b 8 0 && head -c 1 /sda",
	} {
		for _, opts := range [][]string{{"exec", "box"}, {"exec", "-u", "user", "box"}} {
			if r := e.Try(append(opts, "sh", "-c", script)...); r.Code == 0 {
				t.Errorf("%v may: %s", opts, script)
			}
		}
	}
	engine.Equal(t, "the container lives", status(e, "box"), "running")
	e.Audit()
}

// TestS12ReadOnly: what rules the kernel cannot be opened for writing
// (CVE-2015-3630).
func TestS12ReadOnly(t *testing.T) {
	e := start(t)
	script := "n=0; for p in " + readonlyPaths + "; do [ -e $p ] || continue; n=$((n+1)); (: >>$p) 2>/dev/null && echo $p; done; [ $n -ge 5 ] || echo only $n paths exist"
	engine.Equal(t, "writable", e.Run("run", "--rm", "busybox", "sh", "-c", script), "")
	engine.Equal(t, "writable with an init", e.Run("run", "--rm", "--init", "--cap-add", "NET_ADMIN", "busybox", "sh", "-c", script), "")
	e.Run("run", "-d", "--name", "box", "busybox", "sleep", "1000")
	engine.Equal(t, "writable in exec", e.Run("exec", "box", "sh", "-c", script), "")
	e.Restart()
	engine.Equal(t, "writable in exec after a restart", e.Run("exec", "box", "sh", "-c", script), "")
	e.Run("restart", "-t", "0", "box")
	engine.Equal(t, "writable after the second start", e.Run("exec", "box", "sh", "-c", script), "")
	e.Audit()
}

// TestS13Syscalls: the calls that broke containers before are denied, also at
// the second start and in exec.
func TestS13Syscalls(t *testing.T) {
	e := start(t)
	probe := filepath.Join(e.Dir, "probe")
	c := exec.Command("go", "build", "-trimpath", "-o", probe, "./acceptance/docker/testdata/probe")
	c.Dir = engine.Root()
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build the probe: %v\n%s", err, out)
	}
	denied := func(what, out string) {
		t.Helper()
		n := 0
		for line := range strings.Lines(out) {
			name, got, _ := strings.Cut(strings.TrimSpace(line), " ")
			want := "EPERM"
			if name == "clone3" { // so that libraries fall back to clone
				want = "ENOSYS"
			}
			if n++; got != want {
				t.Errorf("%s: %s gives %s, want %s", what, name, got, want)
			}
		}
		if n < 25 {
			t.Errorf("%s: the probe said %q", what, out)
		}
	}
	denied("first start", e.Run("run", "--name", "probe", "-v", probe+":/probe:ro", "busybox", "/probe"))
	denied("second start", e.Run("start", "-a", "probe"))
	denied("as a user", e.Run("run", "--rm", "-u", "user", "-v", probe+":/probe:ro", "busybox", "/probe"))
	e.Run("run", "-d", "--name", "box", "-v", probe+":/probe:ro", "busybox", "sleep", "1000")
	e.Restart()
	denied("exec after a restart", e.Run("exec", "box", "/probe"))
	denied("third start", e.Run("start", "-a", "probe"))
	open := e.Run("run", "--rm", "--security-opt", "seccomp=unconfined", "-v", probe+":/probe:ro", "busybox", "/probe")
	if strings.Contains(open, "af_alg EPERM") || strings.Contains(open, "clone3 ENOSYS") {
		t.Errorf("without a profile the probe finds the same: it proves nothing\n%s", open)
	}
	e.Audit()
}
