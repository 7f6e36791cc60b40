package docker

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"machine/acceptance/engine"
)

// TestReload: SIGHUP takes over mirrors, insecure registries, labels and debug
// from daemon.json, as dockerd does, without a restart; a mistake changes
// nothing.
func TestReload(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "daemon.json")
	os.WriteFile(conf, []byte("{}"), 0o600)
	e := start(t, "--config-file", conf)
	mirror, stop := counted(e)
	e.Run("tag", "busybox", mirror.addr+"/library/box:1")
	e.Run("push", mirror.addr+"/library/box:1")
	id := e.Run("run", "-d", "--network", "none", "busybox", "sleep", "1000")
	pid := e.AgentPid()
	reload := func(text, shows string) {
		t.Helper()
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		syscall.Kill(pid, syscall.SIGHUP)
		e.Eventually("docker info shows "+shows, func() bool { return strings.Contains(e.Run("info"), shows) })
	}
	reload(fmt.Sprintf(`{"registry-mirrors": ["http://%s"], "insecure-registries": ["reg.example:5000", "10.0.0.0/8"], "labels": ["a=b"], "debug": true}`, mirror.addr), "http://"+mirror.addr+"/")
	info := e.Run("info")
	for _, want := range []string{"reg.example:5000", "10.0.0.0/8", "a=b", "Debug Mode: true"} {
		engine.Contains(t, "info", info, want)
	}
	engine.Contains(t, "by the mirror", e.Run("pull", "box:1"), "Downloaded newer image for box:1")
	e.Eventually("an event tells", func() bool { // the client's clock has seconds
		return strings.Contains(e.Run("events", "--since", "0", "--until", "0s", "--filter", "type=daemon"), "daemon reload")
	})

	os.WriteFile(conf, []byte(`{"registry-mirrors": ["nonsense"]}`), 0o600)
	syscall.Kill(pid, syscall.SIGHUP)
	e.Eventually("the mistake is in the log", func() bool { return strings.Contains(e.Log(), "configuration is not read anew") })
	engine.Contains(t, "info after a mistake", e.Run("info"), "http://"+mirror.addr+"/")
	reload(`{}`, "Debug Mode: false")
	if strings.Contains(e.Run("info"), "Registry Mirrors") {
		t.Error("the mirror stays")
	}
	engine.Equal(t, "the agent", fmt.Sprint(e.AgentPid()), fmt.Sprint(pid))
	engine.Equal(t, "a container", e.Run("inspect", "-f", "{{.State.Running}}", id), "true")
	e.Run("rm", "-f", id)
	stop()
	e.Audit()
}
