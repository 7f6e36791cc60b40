package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"machine/acceptance/hosts"
	"machine/cli"
)

// dockerMachine runs a line as a program that drives docker-machine does.
func dockerMachine(t *testing.T, args ...string) (code int, stdout string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	code = cli.Run(ctx, append([]string{"docker-machine"}, args...), strings.NewReader(""), &out, &errs)
	t.Logf("docker-machine %s: %d\n%s", strings.Join(args, " "), code, errs.String())
	return code, out.String()
}

// programs is a local machine of the name, made as GitLab Runner makes one.
func programs(t *testing.T, name string) (store string) {
	t.Helper()
	hosts.Isolated(t)
	t.Setenv("MACHINE_AGENT", hosts.FakeAgent(t, "fake-1"))
	store = newStore(t)
	if code, _ := dockerMachine(t, "--bugsnag-api-token=no-report", "create", "--driver", "local", "--engine-label=a=b", name); code != 0 {
		t.Fatal("create failed")
	}
	t.Cleanup(func() { machine(t, "rm", "-f", name) })
	return store
}

// TestProgramsGitLabRunner goes through the calls of its docker-machine executor.
func TestProgramsGitLabRunner(t *testing.T) {
	const name = "runner-x7-1700000000-abcdef"
	store := programs(t, name)
	call := func(want int, args ...string) string {
		t.Helper()
		code, out := dockerMachine(t, append([]string{"--bugsnag-api-token=no-report"}, args...)...)
		if code != want {
			t.Errorf("%v: exit %d, want %d", args, code, want)
		}
		return strings.TrimSpace(out)
	}
	call(0, "config", name)
	ip := call(0, "ip", name)
	if url := call(0, "url", name); url != "tcp://"+ip+":2376" || ip == "" {
		t.Errorf("url %q, ip %q", url, ip)
	}
	if got := call(0, "status", name); got != "Running" {
		t.Errorf("status %q", got)
	}
	certs := call(0, "inspect", name, "-f", "{{.HostOptions.AuthOptions.StorePath}}")
	for _, f := range []string{"ca.pem", "cert.pem", "key.pem"} {
		if _, err := os.Stat(filepath.Join(certs, f)); err != nil {
			t.Error(err)
		}
	}
	var conf struct {
		ConfigVersion int
		DriverName    string
		Driver        struct{ IPAddress, MachineName string }
	}
	data, err := os.ReadFile(filepath.Join(store, "machines", name, "config.json"))
	if err != nil || json.Unmarshal(data, &conf) != nil || conf.DriverName != "local" || conf.ConfigVersion != 3 || conf.Driver.IPAddress != ip {
		t.Errorf("config.json: %v %+v", err, conf)
	}
	call(0, "inspect", name)
	call(0, "provision", name)
	call(0, "stop", name)
	call(1, "config", name)
	call(0, "rm", "-y", name)
	call(0, "rm", "-f", name) // again, to be sure
	if _, err := os.Stat(filepath.Join(store, "machines", name)); err == nil {
		t.Error("the machine's folder is left")
	}
	call(1, "inspect", name)
	call(1, "status", name)
}

// TestProgramsTestcontainers: and docker-maven-plugin, Rancher and shell users.
func TestProgramsTestcontainers(t *testing.T) {
	store := programs(t, "default")
	lines := func(want int, args ...string) []string {
		t.Helper()
		code, out := dockerMachine(t, args...)
		if code != want {
			t.Errorf("%v: exit %d, want %d", args, code, want)
		}
		return strings.Split(strings.TrimSpace(out), "\n")
	}
	// Testcontainers: first line of ls -q, status, start when it is not running, ip.
	if got := lines(0, "ls", "-q")[0]; got != "default" {
		t.Errorf("ls -q: %q", got)
	}
	lines(0, "stop", "default")
	if got := lines(0, "status", "default")[0]; got != "Stopped" {
		t.Errorf("status: %q", got)
	}
	lines(0, "start", "default")
	if got := lines(0, "status", "default")[0]; got != "Running" {
		t.Errorf("status: %q", got)
	}
	ip := lines(0, "ip", "default")[0]
	// docker-maven-plugin: a missing machine is exit 1; env in cmd's dialect.
	lines(1, "status", "absent")
	env := lines(0, "env", "default", "--shell", "cmd")
	if env[0] != "SET DOCKER_TLS_VERIFY=1" || env[1] != "SET DOCKER_HOST=tcp://"+ip+":2376" ||
		env[2] != "SET DOCKER_CERT_PATH="+filepath.Join(store, "machines/default") || env[3] != "SET DOCKER_MACHINE_NAME=default" {
		t.Errorf("env --shell cmd: %q", env)
	}
	lines(0, "regenerate-certs", "-f", "default")
	// Shell users: lines by index, names after --.
	for _, args := range [][]string{{"env", "--shell=bash", "default"}, {"env", "--", "default"}, {"env"}} {
		if got := lines(0, args...); got[1] != `export DOCKER_HOST="tcp://`+ip+`:2376"` {
			t.Errorf("%v: %q", args, got)
		}
	}
	if got := lines(0, "ls", "-q", "-t", "60"); len(got) != 1 {
		t.Errorf("ls -q -t 60: %q", got)
	}
	// Rancher: its flags with nothing in them, options by the environment.
	t.Setenv("GENERIC_IP_ADDRESS", "127.0.0.1")
	t.Setenv("GENERIC_SSH_PORT", "1") // nobody is there
	lines(3, "--secret-namespace=", "--secret-name=", "create", "--driver=generic", "--generic-ssh-key=/nonexistent", "node1")
	lines(0, "--secret-namespace=", "--secret-name=", "create", "--driver=none", "--url=tcp://127.0.0.1:1", "node1")
	lines(0, "rm", "-y", "--update-config", "node1")
}
