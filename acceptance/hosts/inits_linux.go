package hosts

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// initsVar names a folder with Debian's packages of other init systems, as
// scripts/dev/needs.sh fetches them. They are unpacked into hosts, and never
// installed on this computer.
const (
	initsVar = "MACHINE_INITS"
	initsDir = "/var/cache/machine-inits"
)

// unpack returns a folder with what is in packages, for Options.Tree.
func unpack(t testing.TB, packages ...string) string {
	t.Helper()
	from := os.Getenv(initsVar)
	if from == "" {
		from = initsDir
	}
	dir := t.TempDir()
	for _, p := range packages {
		list, _ := filepath.Glob(filepath.Join(from, p+"_*.deb"))
		if len(list) != 1 {
			t.Skipf("needs one package %s in %s: scripts/dev/needs.sh fetches it", p, from)
		}
		run(t, "dpkg-deb", "-x", list[0], dir)
	}
	for _, d := range []string{"bin", "sbin", "lib"} { // these are links on a host
		if _, err := os.Stat(filepath.Join(dir, d)); err != nil {
			continue
		}
		run(t, "mkdir", "-p", filepath.Join(dir, "usr", d))
		run(t, "cp", "-a", filepath.Join(dir, d)+"/.", filepath.Join(dir, "usr", d))
		run(t, "rm", "-r", filepath.Join(dir, d))
	}
	return dir
}

// noServices takes this computer's own services out of a host, at its first
// boot.
const noServices = `
[ -e /etc/ssh-host/bare ] || rm -f /etc/rc?.d/* /etc/init.d/ssh
touch /etc/ssh-host/bare
`

// Sysvinit is an option for a host that boots with System V's init, and starts
// at boot what is in /etc/rc2.d.
func Sysvinit(t testing.TB) Options {
	t.Helper()
	tree := unpack(t, "sysvinit-core", "sysvinit-utils", "sysv-rc", "insserv", "startpar")
	return Options{Tree: tree, Setup: noServices + `
cat >/etc/inittab <<E
id:2:initdefault:
ss:2:respawn:/usr/sbin/sshd -D -e -f /etc/ssh-host/config
l2:2:wait:/etc/init.d/rc 2
E
`, Boot: "exec /sbin/init\n"}
}

// OpenRC is an option for a host that boots with OpenRC, and starts at boot
// what is in the runlevel default.
func OpenRC(t testing.TB) Options {
	t.Helper()
	tree := unpack(t, "openrc", "librc1", "libeinfo1", "insserv")
	if out, err := exec.Command("find", tree, "-name", "openrc-init").Output(); err != nil || len(out) == 0 {
		t.Skip("this OpenRC has no openrc-init")
	}
	return Options{Tree: tree, Setup: noServices + `
mkdir -p /etc/runlevels/sysinit /etc/runlevels/boot /etc/runlevels/default /etc/runlevels/shutdown
cat >/etc/init.d/hosts-sshd <<'E'
#!/sbin/openrc-run
command=/usr/sbin/sshd
command_args="-D -e -f /etc/ssh-host/config"
command_background=yes
pidfile=/run/hosts-sshd.pid
depend() { provide net localmount; }
E
chmod 755 /etc/init.d/hosts-sshd
ln -sf /etc/init.d/hosts-sshd /etc/runlevels/default/hosts-sshd
`, Boot: "exec /sbin/openrc-init\n"}
}
