package hosts

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// A Host is one host that answers SSH.
type Host struct {
	IP   string
	User string
	Key  string // private key file
	Dir  string // its files: upper/ holds what it wrote

	t       testing.TB
	systemd bool
	pid     int
	n       int
}

var count atomic.Int32

const bridge = "hosts0"

// Options change what a host is like.
type Options struct {
	Setup string // shell text that runs inside before sshd starts
	User  string // who logs in; root when empty
	// Systemd boots the host with systemd, and little else.
	Systemd bool
	// Tree is a folder whose content is added to the host's, and Boot what makes
	// the first process another one than sshd: the text of a shell.
	Tree, Boot string
	Files      map[string]string // files of this computer, and where they are on the host
}

// New starts a host, which ends with the test.
func New(t testing.TB, opts ...Options) *Host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	n := int(count.Add(1))
	dir, err := os.MkdirTemp("/var/tmp", "machine-host-")
	if err != nil {
		t.Fatal(err)
	}
	h := &Host{IP: fmt.Sprintf("10.219.0.%d", n+1), User: "root", Key: filepath.Join(dir, "id"), Dir: dir, t: t, n: n}
	t.Cleanup(func() { h.Kill(); _ = os.RemoveAll(dir) })
	makeKeys(t, h.Key)
	for _, d := range []string{"upper", "work", "data", "root"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	makeBridge(t)
	setup, boot := "", plainBoot
	for _, o := range opts {
		setup += o.Setup + "\n"
		if o.Systemd {
			if _, err := os.Stat("/sys/fs/cgroup/systemd"); err != nil {
				t.Skip("needs the cgroup hierarchy name=systemd")
			}
			boot, h.systemd = systemdBoot, true
		}
		if o.Tree != "" {
			run(t, "cp", "-a", o.Tree+"/.", filepath.Join(dir, "upper"))
		}
		if o.Boot != "" {
			boot = o.Boot
		}
		if o.User != "" {
			h.User = o.User
		}
		for from, to := range o.Files {
			copyIn(t, from, filepath.Join(dir, "upper", to))
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "setup"), []byte(setup), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "boot"), []byte(bootScript+boot), 0o755); err != nil {
		t.Fatal(err)
	}
	h.Start()
	return h
}

// bootScript makes the root and becomes sshd. $1 is the folder.
const bootScript = `set -e
if [ -n "$2" ]; then
	# A cgroup namespace begins where its maker is: go there first.
	g=$2; set -- "$1"
	for h in /sys/fs/cgroup/*/; do
		[ ! -d "$h$g" ] || echo 0 >"$h$g/cgroup.procs"
	done
	exec unshare -C /bin/sh "$0" "$1"
fi
cd "$1"
mount --make-rprivate /
mount -t overlay host root -o lowerdir=/,upperdir=upper,workdir=work
mkdir -p root/var/lib/docker root/.old
mount --bind data root/var/lib/docker
mount -t proc proc root/proc
mount -t sysfs sysfs root/sys
mount --rbind /dev root/dev
mount -t tmpfs tmpfs root/run
mount -t tmpfs tmpfs root/tmp
[ -d root/root ] && mount -t tmpfs tmpfs root/root
mkdir -p root/run/sshd root/run/lock root/etc/ssh-host
cp id.pub root/etc/ssh-host/keys
cp setup root/etc/ssh-host/setup
[ -f root/etc/ssh-host/key ] || ssh-keygen -q -t ed25519 -N '' -f root/etc/ssh-host/key
chmod 600 root/etc/ssh-host/*
cat > root/etc/ssh-host/config <<E
Port 22
HostKey /etc/ssh-host/key
AuthorizedKeysFile /etc/ssh-host/keys
StrictModes no
UsePAM no
PasswordAuthentication no
Subsystem sftp internal-sftp
PidFile /run/sshd.pid
E
cd root
pivot_root . .old
cd /
umount -l /.old
hostname host
ip link set lo up
sh -e /etc/ssh-host/setup
`

const plainBoot = `exec /usr/sbin/sshd -D -e -f /etc/ssh-host/config
`

// systemdBoot hides this computer's own units and starts sshd by one of ours.
// systemd gets a cgroup of its own in the hierarchy that it manages.
const systemdBoot = `
mkdir -p /run/systemd/system
mount -t tmpfs tmpfs /etc/systemd/system
mount -t tmpfs tmpfs /sys/fs/cgroup
mkdir /sys/fs/cgroup/systemd
mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
cat > /etc/systemd/system/hosts-sshd.service <<E
[Unit]
DefaultDependencies=no
[Service]
ExecStart=/usr/sbin/sshd -D -e -f /etc/ssh-host/config
KillMode=process
E
cat > /etc/systemd/system/multi-user.target <<E
[Unit]
Description=test host
AllowIsolate=yes
Wants=hosts-sshd.service
E
for u in sysinit.target basic.target network-online.target local-fs.target firewalld.service; do
	printf '[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/bin/true\n' >/etc/systemd/system/$u
done
sed -i /Service/,\$d /etc/systemd/system/*.target
printf '[Unit]\nDescription=test host\nAllowIsolate=yes\nWants=hosts-sshd.service\n' >/etc/systemd/system/multi-user.target
export container=other
exec /usr/lib/systemd/systemd --unit=multi-user.target --log-target=console --show-status=no
`

// Start boots the host; after Kill it is the same host again.
func (h *Host) Start() {
	h.t.Helper()
	log, err := os.OpenFile(filepath.Join(h.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		h.t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", filepath.Join(h.Dir, "boot"), h.Dir, h.cgroup())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		h.t.Fatalf("start host: %v", err)
	}
	_ = log.Close()
	h.pid = cmd.Process.Pid
	go func() { _ = cmd.Wait() }()
	veth := fmt.Sprintf("hst%d", h.n)
	_ = exec.Command("ip", "link", "del", veth).Run()
	run(h.t, "ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "address",
		fmt.Sprintf("02:68:00:00:00:%02x", h.n+1), "netns", fmt.Sprint(h.pid))
	run(h.t, "ip", "link", "set", veth, "master", bridge, "up")
	nsenter := func(args ...string) {
		run(h.t, "nsenter", append([]string{"-t", fmt.Sprint(h.pid), "-n"}, args...)...)
	}
	nsenter("ip", "addr", "add", h.IP+"/24", "dev", "eth0")
	nsenter("ip", "link", "set", "eth0", "up")
	nsenter("ip", "route", "add", "default", "via", "10.219.0.1")
	for deadline := time.Now().Add(30 * time.Second); ; {
		c, err := net.DialTimeout("tcp", h.IP+":22", time.Second)
		if err == nil {
			_ = c.Close()
			return
		}
		if time.Now().After(deadline) {
			data, _ := os.ReadFile(filepath.Join(h.Dir, "log"))
			h.t.Fatalf("host %s does not answer: %v\n%s", h.IP, err, data)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Kill cuts the host's power. Safe to repeat.
func (h *Host) Kill() {
	if h.pid == 0 {
		return
	}
	_ = syscall.Kill(h.pid, syscall.SIGKILL)
	for range 500 {
		if syscall.Kill(h.pid, 0) != nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	h.pid = 0
	if h.systemd {
		for _, hierarchy := range hierarchies() {
			_ = exec.Command("find", filepath.Join(hierarchy, filepath.Base(h.Dir)), "-depth", "-type", "d", "-exec", "rmdir", "{}", ";").Run()
		}
	}
}

// hierarchies are all of this computer's. A host with systemd is confined in
// every one: systemd mounts them all, and removes the empty groups of the
// controllers that it does not use, other engines' new ones among them.
func hierarchies() []string {
	list, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	for i, f := range list {
		list[i] = filepath.Dir(f)
	}
	return list
}

// cgroup makes the groups of a host with systemd, and returns their name.
func (h *Host) cgroup() string {
	if !h.systemd {
		return ""
	}
	name := filepath.Base(h.Dir)
	for _, hierarchy := range hierarchies() {
		dir := filepath.Join(hierarchy, name)
		_ = os.MkdirAll(dir, 0o755)
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} { // empty, nothing could enter
			if b, err := os.ReadFile(filepath.Join(hierarchy, f)); err == nil {
				_ = os.WriteFile(filepath.Join(dir, f), b, 0o644)
			}
		}
	}
	return name
}

// Exec runs shell text on the host without SSH and returns its output.
func (h *Host) Exec(text string) string {
	h.t.Helper()
	cmd := exec.Command("nsenter", "-t", fmt.Sprint(h.pid), "-m", "-n", "-p", "-u", "-i", "-r", "-w", "/bin/sh", "-c", text)
	out, err := cmd.CombinedOutput()
	if err != nil {
		h.t.Fatalf("on host: %s: %v\n%s", text, err, out)
	}
	return strings.TrimSpace(string(out))
}

// Read returns a file of the host as it is in its upper layer, or "".
func (h *Host) Read(path string) string {
	data, err := os.ReadFile(filepath.Join(h.Dir, "upper", path))
	if err != nil {
		return ""
	}
	return string(data)
}

func copyIn(t testing.TB, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o755); err != nil {
		t.Fatal(err)
	}
}

func makeBridge(t testing.TB) {
	t.Helper()
	_ = exec.Command("ip", "link", "set", "lo", "up").Run()
	if exec.Command("ip", "link", "show", bridge).Run() == nil {
		return
	}
	run(t, "ip", "link", "add", bridge, "address", "02:68:00:00:00:01", "type", "bridge")
	run(t, "ip", "addr", "add", "10.219.0.1/24", "dev", bridge)
	run(t, "ip", "link", "set", bridge, "up")
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

func makeKeys(t testing.TB, path string) {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(priv, "test")
	if err != nil {
		t.Fatal(err)
	}
	sshPub, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".pub", ssh.MarshalAuthorizedKey(sshPub), 0o600); err != nil {
		t.Fatal(err)
	}
}
