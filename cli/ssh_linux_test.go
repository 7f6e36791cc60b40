package cli_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"machine/acceptance/hosts"
	"machine/cli"
)

// TestSSH: forwards, input by a pipe, statuses, a terminal on demand, both with
// our own client and with the ssh program.
func TestSSH(t *testing.T) {
	hosts.Isolated(t)
	t.Setenv("MACHINE_AGENT", hosts.FakeAgent(t, "fake-1"))
	newStore(t)
	h := hosts.New(t)
	must(t, "create", "-d", "generic", "--generic-ip-address", h.IP, "--generic-ssh-key", h.Key, "web")
	for _, flag := range []string{"--native-ssh=true", "--native-ssh=false"} {
		if got := must(t, flag, "ssh", "web", "echo", "one  two"); got != "one two\n" {
			t.Errorf("%s: %q", flag, got)
		}
		if code, _, _ := machine(t, flag, "ssh", "web", "exit 9"); code != 9 {
			t.Errorf("%s: exit code %d", flag, code)
		}
		var out bytes.Buffer
		in := strings.Repeat("line\n", 100000)
		if code := cli.Run(context.Background(), []string{"machine", flag, "ssh", "web", "md5sum; wc -c"}, strings.NewReader(in), &out, io.Discard); code != 0 {
			t.Errorf("%s: input by a pipe: exit %d", flag, code)
		}
		forwards(t, flag)
	}
	if got := must(t, "ssh", "web", "-t", "tty"); !strings.Contains(got, "/dev/pts/") {
		t.Errorf("-t: %q", got)
	}
	if code, _, errs := machine(t, "ssh", "web", "-L", "x:y", "true"); code != 1 || !strings.Contains(errs, "want [bind:]port:host:port") {
		t.Errorf("bad forward: %d %s", code, errs)
	}
	agent(t, h)
}

// forwards opens -L, -R and -D at once and goes through each.
func forwards(t *testing.T, flag string) {
	t.Helper()
	here, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = here.Close() }()
	go func() {
		for {
			c, err := here.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello from here\n")
			_ = c.Close()
		}
	}()
	ports := freePorts(t, 3)
	args := []string{"machine", flag, "ssh", "web", "-N", "-L", ports[0] + ":127.0.0.1:22", "-D" + ports[1],
		"-R", ports[2] + ":" + here.Addr().String()}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan int)
	go func() { done <- cli.Run(ctx, args, strings.NewReader(""), io.Discard, io.Discard) }()
	defer func() { cancel(); <-done }()
	if got := talk(t, "127.0.0.1:"+ports[0], ""); !strings.HasPrefix(got, "SSH-2.0-") {
		t.Errorf("%s: -L: %q", flag, got)
	}
	got := talk(t, "127.0.0.1:"+ports[1], "\x05\x01\x00"+"\x05\x01\x00\x03\x09localhost\x00\x16")
	if !strings.Contains(got, "SSH-2.0-") {
		t.Errorf("%s: -D: %q", flag, got)
	}
	if out := must(t, "ssh", "web", "exec 3<>/dev/tcp/127.0.0.1/"+ports[2]+"; cat <&3"); out != "hello from here\n" {
		t.Errorf("%s: -R: %q", flag, out)
	}
}

func freePorts(t *testing.T, n int) (ports []string) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		ports = append(ports, port)
	}
	return ports
}

// talk connects as soon as it can, says a line, and returns what comes first.
func talk(t *testing.T, addr, say string) string {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
			continue
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(c, say)
		var got []byte
		buf := make([]byte, 256)
		for !bytes.Contains(got, []byte("SSH-2.0-")) {
			n, err := c.Read(buf)
			got = append(got, buf[:n]...)
			if err != nil {
				break
			}
		}
		return string(got)
	}
}

// agent logs in on the host with -A and lists the keys from there.
func agent(t *testing.T, h *hosts.Host) {
	t.Helper()
	out, err := exec.Command("ssh-agent", "-s").Output()
	if err != nil {
		t.Skip("no ssh-agent")
	}
	for _, part := range strings.FieldsFunc(string(out), func(r rune) bool { return r == ';' || r == '\n' }) {
		if k, v, ok := strings.Cut(strings.TrimSpace(part), "="); ok {
			t.Setenv(k, v)
		}
	}
	t.Cleanup(func() { _ = exec.Command("ssh-agent", "-k").Run() })
	if msg, err := exec.Command("ssh-add", h.Key).CombinedOutput(); err != nil {
		t.Fatalf("ssh-add: %s", msg)
	}
	if got := must(t, "ssh", "web", "-A", "ssh-add", "-l"); !strings.Contains(got, "ED25519") {
		t.Errorf("-A: %q", got)
	}
}

// TestJumpHost provisions a host that answers only to another one, named in
// ~/.ssh/config, and works with it.
func TestJumpHost(t *testing.T) {
	hosts.Isolated(t)
	t.Setenv("MACHINE_AGENT", hosts.FakeAgent(t, "fake-1"))
	newStore(t)
	jump := hosts.New(t)
	inner := hosts.New(t)
	inner.Exec("nft 'add table ip t; add chain ip t in { type filter hook input priority 0; }; add rule ip t in iif != lo tcp dport {22,2376} ip saddr != " + jump.IP + " drop'")
	home := t.TempDir()
	t.Setenv("HOME", home)
	if err := os.Mkdir(filepath.Join(home, ".ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	// The jump host knows the same key.
	pub, err := os.ReadFile(inner.Key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	jump.Exec("echo '" + strings.TrimSpace(string(pub)) + "' >>/etc/ssh-host/keys")
	text := fmt.Sprintf("Host inner\n HostName %s\n User root\n IdentityFile %s\n ProxyJump hop\nHost hop\n HostName %s\n User root\n", inner.IP, inner.Key, jump.IP)
	if err := os.WriteFile(filepath.Join(home, ".ssh/config"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, "create", "-d", "generic", "--generic-ip-address", "inner", "web")
	if got := must(t, "version", "web"); got != "fake-1\n" {
		t.Errorf("version: %q", got)
	}
	must(t, "config", "web")
	if got := must(t, "ssh", "web", "echo $SSH_CLIENT"); !strings.HasPrefix(got, jump.IP+" ") {
		t.Errorf("the host sees %q, not the jump host", got)
	}
	if got := must(t, "provision", "web"); !strings.Contains(got, "up to date") {
		t.Errorf("provision again: %s", got)
	}
	must(t, "scp", "-q", filepath.Join(home, ".ssh/config"), "web:/srv/there")
	if got := inner.Exec("cat /srv/there"); got != strings.TrimSpace(text) {
		t.Errorf("copied: %q", got)
	}
	// The computer's own ssh goes the same way.
	if got := must(t, "--native-ssh=false", "ssh", "web", "echo $SSH_CLIENT"); !strings.HasPrefix(got, jump.IP+" ") {
		t.Errorf("by the ssh program: the host sees %q, not the jump host", got)
	}
	mounts(t, inner)
	must(t, "rm", "-y", "web")
	must(t, "create", "-d", "generic", "--generic-ip-address", inner.IP, "--generic-ssh-key", inner.Key, "--generic-ssh-jump", "root@"+jump.IP, "web")
	must(t, "rm", "-y", "web")
}

// mounts mounts a folder of the machine web, which is h: by a stand-in that
// goes to the host with the options that it was given, and by sshfs if it is
// installed and the kernel lets it.
func mounts(t *testing.T, h *hosts.Host) {
	t.Helper()
	h.Exec("mkdir -p /srv/shared; echo over there >/srv/shared/file")
	point := t.TempDir()
	_, err := exec.LookPath("sshfs")
	if fuse, err2 := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err == nil && err2 == nil {
		_ = fuse.Close()
		must(t, "mount", "web:/srv/shared", point)
		if data, err := os.ReadFile(filepath.Join(point, "file")); err != nil || string(data) != "over there\n" {
			t.Errorf("sshfs: %v %q", err, data)
		}
		must(t, "mount", "-u", "web:/srv/shared", point)
		if list, err := os.ReadDir(point); err != nil || len(list) != 0 {
			t.Errorf("after mount -u: %v %v", err, list)
		}
	}
	bin := t.TempDir()
	text := `#!/bin/bash
opts=()
while [ $# -gt 2 ]; do
	case $1 in -o|-F|-p) opts+=("$1" "$2"); shift 2 ;; *) echo "strange option $1" >&2; exit 2 ;; esac
done
ssh -x -a -oClearAllForwardings=yes "${opts[@]}" "${1%%:*}" "cat ${1#*:}/file" >"$2/copy"
`
	if err := os.WriteFile(filepath.Join(bin, "sshfs"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	must(t, "mount", "web:/srv/shared", point)
	if data, err := os.ReadFile(filepath.Join(point, "copy")); err != nil || string(data) != "over there\n" {
		t.Errorf("stand-in of sshfs: %v %q", err, data)
	}
}
