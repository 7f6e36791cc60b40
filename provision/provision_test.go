package provision

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"machine/provision/ssh"
	"machine/scripts"
)

func good() facts {
	return facts{"os": "Linux", "arch": "x86_64", "kernel": "6.1.0-10-amd64", "uid": "0", "free_bin": "1000000", "done": "yes"}
}

func TestRefusalsSayWhatToDo(t *testing.T) {
	if err := good().check(2376, 20<<20); err != nil {
		t.Fatalf("a good host is refused: %v", err)
	}
	for _, c := range []struct{ key, value, want string }{
		{"os", "FreeBSD", "must run Linux"},
		{"arch", "riscv64", "x86_64 and aarch64"},
		{"kernel", "5.4.0", "too old"},
		{"kernel", "nonsense", "too old"},
		{"sudo", "password", "NOPASSWD"},
		{"sudo", "none", "install sudo"},
		{"dockerd", "77", "systemctl disable --now docker"},
		{"port_inode", "9", "port 2376 of the host is taken by another program"},
		{"free_bin", "100", "disk is full"},
	} {
		f := good()
		f[c.key] = c.value
		if err := f.check(2376, 20<<20); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s=%s: %v, want %q", c.key, c.value, err, c.want)
		}
	}
}

func TestParseFacts(t *testing.T) {
	f, err := parseFacts("Welcome to host!\nuid=0\r\nnoise\nsum:/a=b\nclock=5\ndone=yes\n")
	if err != nil || f["uid"] != "0" || f["sum:/a"] != "b" {
		t.Errorf("%v, %v", f, err)
	}
	if f.skew(time.Unix(65, 0)) != -time.Minute {
		t.Errorf("skew %v", f.skew(time.Unix(65, 0)))
	}
	if _, err := parseFacts("This account is not available.\n"); err == nil {
		t.Error("a probe that did not run is taken")
	}
}

// TestProbe runs the probe on this computer, in the shells that hosts have.
func TestProbe(t *testing.T) {
	for _, shell := range [][]string{{"/bin/sh", "-s"}, {"busybox", "sh", "-s"}, {"bash", "-s"}} {
		if _, err := exec.LookPath(shell[0]); err != nil {
			continue
		}
		cmd := exec.Command(shell[0], shell[1:]...)
		cmd.Stdin = strings.NewReader("PORT=2376\n" + scripts.Probe)
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("%v: %v", shell, err)
			continue
		}
		f, err := parseFacts(string(out))
		if err != nil || f.arch() == "" || f["os"] != "Linux" || f.num("free_bin") == 0 || f["init"] == "" {
			t.Errorf("%v: %v, %v", shell, f, err)
		}
	}
}

// TestS44Quoting: values of users reach the agent as they are, through units
// and argument files, and no line of theirs becomes one of ours.
func TestS44Quoting(t *testing.T) {
	e := Engine{Labels: []string{`a="$(reboot) %n \ b`}, Options: []string{"log-level=debug", "--data-root=/x", "debug"}, Env: []string{`K=v "w" %h $X`}}
	unit := systemdUnit(e.args("generic"), e.Env)
	for _, want := range []string{`"a=\"$$(reboot) %%n \\ b"`, `"--log-level=debug"`, `"--debug"`, `Environment="K=v \"w\" %%h $X"`, "KillMode=process", "Delegate=yes", "OOMScoreAdjust=-500"} {
		if !strings.Contains(unit, want) {
			t.Errorf("unit lacks %s:\n%s", want, unit)
		}
	}
	if strings.Contains(unit, "/var/lib/docker\"") {
		t.Error("--data-root is given twice")
	}
	for _, bad := range []Engine{{Labels: []string{"a\nExecStartPre=/bin/evil"}}, {Env: []string{"novalue"}}, {Options: []string{"x\x00"}}} {
		if bad.check() == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
	if bin, err := exec.LookPath("systemd-analyze"); err == nil {
		file := filepath.Join(t.TempDir(), "machine-agent.service")
		text := strings.ReplaceAll(unit, agentBin, "/bin/true")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(bin, "verify", "--man=no", file).CombinedOutput()
		if strings.Contains(string(out), "machine-agent.service:") {
			t.Errorf("systemd-analyze: %v: %s", err, out)
		}
	}
}

// TestInstallScript runs the install program in a folder of its own.
func TestInstallScript(t *testing.T) {
	dir := t.TempDir()
	agent := filepath.Join(dir, "bin/agent")
	text := []byte("#!/bin/sh\necho \"$@\" >>" + dir + "/calls\n[ \"$2\" != --status ] || exit 1\n")
	if err := os.MkdirAll(filepath.Dir(agent), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(agent+".machine-new", text, 0o700); err != nil {
		t.Fatal(err)
	}
	key := "-----BEGIN KEY-----\n$(touch " + dir + "/evil) `id`\n-----END KEY-----\n"
	files := []file{{dir + "/it's/key.pem", "600", []byte(key), certsFile}}
	vars := map[string]string{"INIT": "none", "AGENT": agent, "AGENT_TMP": agent + ".machine-new", "WANT": ssh.Sum(text), "SHIM": "no"}
	run := func() ([]byte, error) {
		cmd := exec.Command("/bin/sh", "-s")
		cmd.Stdin = strings.NewReader(installText(vars, files, scripts.Install))
		return cmd.CombinedOutput()
	}
	out, err := run()
	if err != nil || !strings.Contains(string(out), "installed=yes") {
		t.Fatalf("%v: %s", err, out)
	}
	if got, _ := os.ReadFile(dir + "/it's/key.pem"); string(got) != key {
		t.Errorf("key is %q", got)
	}
	if fi, _ := os.Stat(dir + "/it's/key.pem"); fi.Mode().Perm() != 0o600 {
		t.Errorf("key has mode %v", fi.Mode())
	}
	if calls, _ := os.ReadFile(dir + "/calls"); !strings.Contains(string(calls), "supervise --args-file") {
		t.Errorf("calls: %s", calls)
	}
	if _, err := os.Stat(dir + "/evil"); err == nil {
		t.Error("the shell ran what was in a file")
	}
	// F11: a damaged agent never takes the place of a good one.
	if err := os.WriteFile(agent+".machine-new", []byte("damaged"), 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := run(); err == nil || !strings.Contains(string(out), "damaged on its way") {
		t.Errorf("damaged agent: %v: %s", err, out)
	}
	if got, _ := os.ReadFile(agent); string(got) != string(text) {
		t.Error("the agent was replaced by a damaged one")
	}
}

func TestAgentIsOfTheArch(t *testing.T) {
	t.Setenv(AgentVar, os.Args[0])
	other := "arm64"
	if _, err := Agent("arm64"); err == nil {
		other = "amd64"
	}
	if _, err := Agent(other); err == nil || !strings.Contains(err.Error(), "the host is "+other) {
		t.Errorf("agent for %s: %v", other, err)
	}
	dir := t.TempDir()
	here := map[string]string{"arm64": "amd64", "amd64": "arm64"}[other]
	a, err := AgentFile(dir, here)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := AgentFile(dir, here); err != nil || b != a {
		t.Errorf("AgentFile again: %s, %v", b, err)
	}
	if left, _ := filepath.Glob(dir + "/.agent-*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func FuzzParseFacts(f *testing.F) {
	f.Add("uid=0\ndone=yes\n")
	f.Fuzz(func(t *testing.T, s string) {
		if fc, err := parseFacts(s); err == nil {
			_ = fc.check(2376, 1)
			_ = fc.skew(time.Now())
		}
	})
}
