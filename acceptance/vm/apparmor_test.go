//go:build vm

package vm

import (
	"os"
	"strings"
	"testing"

	"machine/acceptance/engine"
)

// TestAppArmor: the agent has loaded the profile itself, and it is in force.
func TestAppArmor(t *testing.T) {
	if on, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); !strings.HasPrefix(string(on), "Y") {
		t.Skip("the kernel has no AppArmor")
	}
	e := start(t)
	engine.Contains(t, "info", e.Run("info", "-f", "{{.SecurityOptions}}"), "name=apparmor")
	profile := []string{"cat", "/proc/self/attr/current"}
	confined := "docker-default (enforce)"
	e.Run("run", "-d", "--name", "box", "busybox", "sleep", "1000")
	for _, when := range []string{"first start", "second start", "after a restart of the agent"} { // S13
		engine.Equal(t, when, e.Run(append([]string{"exec", "box"}, profile...)...), confined)
		out, err := e.HostRun("cat", "/proc/"+e.Run("inspect", "-f", "{{.State.Pid}}", "box")+"/attr/current")
		if err != nil {
			t.Fatal(out, err)
		}
		engine.Equal(t, when+", init", out, confined)
		engine.Equal(t, when+", inspect", e.Run("inspect", "-f", "{{.AppArmorProfile}}", "box"), "docker-default")
		if when == "first start" {
			e.Run("restart", "-t", "0", "box")
		} else {
			e.Restart()
		}
	}
	for _, opts := range [][]string{{"--privileged"}, {"--security-opt", "apparmor=unconfined"}} {
		got := e.Run(append(append(append([]string{"run", "--rm"}, opts...), "busybox"), profile...)...)
		engine.Equal(t, strings.Join(opts, " "), got, "unconfined")
	}
	engine.Equal(t, "exec --privileged", e.Run(append([]string{"exec", "--privileged", "box"}, profile...)...), "unconfined")
	if r := e.Try("run", "--rm", "--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined", "busybox", "mount", "-t", "tmpfs", "tmpfs", "/tmp"); r.Code == 0 {
		t.Error("a confined container mounted something")
	}
	sysctl := []string{"busybox", "sh", "-c", "echo 1 >/proc/sys/vm/drop_caches"}
	open := []string{"run", "--rm", "--security-opt", "systempaths=unconfined"}
	engine.Contains(t, "a host's setting", e.Try(append(open, sysctl...)...).Err, "Permission denied")
	e.Run(append(append(open, "--security-opt", "apparmor=unconfined"), sysctl...)...)
	if e.Try("run", "--rm", "--security-opt", "apparmor=nonesuch", "busybox", "true").Code == 0 {
		t.Error("an unknown profile was taken")
	}
	e.Audit()
}

// In a user namespace, too, and the programs that are run there later.
func TestAppArmorRemapped(t *testing.T) {
	if on, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); !strings.HasPrefix(string(on), "Y") {
		t.Skip("the kernel has no AppArmor")
	}
	e := start(t, "--userns-remap", "default")
	e.Run("run", "-d", "--name", "box", "--ulimit", "nofile=524288:1048576", "--oom-score-adj", "100", "busybox", "sleep", "1000")
	pid := e.Run("inspect", "-f", "{{.State.Pid}}", "box")
	for what, want := range map[string]string{"attr/current": "docker-default (enforce)", "oom_score_adj": "100"} {
		out, err := e.HostRun("cat", "/proc/"+pid+"/"+what)
		if err != nil {
			t.Fatal(out, err)
		}
		engine.Equal(t, what, out, want)
		engine.Equal(t, what+" of an exec", e.Run("exec", "box", "cat", "/proc/self/"+what), want)
	}
	limits := "ulimit -Sn; ulimit -Hn"
	engine.Equal(t, "limits", e.Run("exec", "box", "sh", "-c", limits), "524288\n1048576")
	if m := e.Run("exec", "box", "cat", "/proc/self/uid_map"); strings.Contains(m, "4294967295") {
		t.Errorf("it runs in the host's user namespace: %s", m)
	}
	e.Audit()
}
