package cli_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"machine/acceptance/hosts"
)

// TestIPv6 adopts a host by its IPv6 address: engine, certificate, SSH and
// copies all go there.
func TestIPv6(t *testing.T) {
	hosts.Isolated(t)
	t.Setenv("MACHINE_AGENT", hosts.FakeAgent(t, "fake-1"))
	newStore(t)
	h := hosts.New(t)
	const here, there = "fd00:219::1", "fd00:219::2"
	if out, err := exec.Command("ip", "-6", "addr", "add", here+"/64", "dev", "hosts0", "nodad").CombinedOutput(); err != nil {
		t.Skipf("no IPv6: %s", out)
	}
	h.Exec("ip -6 addr add " + there + "/64 dev eth0 nodad; ip addr flush dev eth0 scope global to 10.0.0.0/8; mkdir -p /srv/shared; echo over there >/srv/shared/file")
	must(t, "create", "-d", "generic", "--generic-ip-address", there, "--generic-ssh-key", h.Key, "six")
	if got := must(t, "env", "six"); !strings.Contains(got, `DOCKER_HOST="tcp://[`+there+`]:2376"`) {
		t.Errorf("env: %s", got)
	}
	if got := must(t, "ip", "six"); got != there+"\n" {
		t.Errorf("ip: %q", got)
	}
	must(t, "config", "six")
	if got := must(t, "ls"); !strings.Contains(got, "vfake-1") {
		t.Errorf("ls: %s", got)
	}
	for _, flag := range []string{"--native-ssh=true", "--native-ssh=false"} {
		if got := must(t, flag, "ssh", "six", "echo $SSH_CLIENT"); !strings.HasPrefix(got, here) {
			t.Errorf("%s: %q", flag, got)
		}
	}
	dir := t.TempDir()
	must(t, "scp", "six:/srv/shared/file", dir)
	if data, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(data) != "over there\n" {
		t.Errorf("scp: %v %q", err, data)
	}
	if got := must(t, "provision", "six"); !strings.Contains(got, "up to date") {
		t.Errorf("provision: %s", got)
	}
	if _, err := exec.LookPath("sshfs"); err == nil {
		if fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err == nil {
			_ = fuse.Close()
			point := t.TempDir()
			must(t, "mount", "six:/srv/shared", point)
			if _, err := os.ReadFile(filepath.Join(point, "file")); err != nil {
				t.Error(err)
			}
			must(t, "mount", "-u", "six:/srv/shared", point)
		}
	}
	must(t, "rm", "-y", "six")
}
