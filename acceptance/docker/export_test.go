package docker

import (
	"archive/tar"
	"bytes"
	"io"
	"strings"
	"testing"

	"machine/acceptance/engine"
)

// TestExportRunning: an export of a running or paused container is of the root
// that it has now, without what is mounted in it: whatever is written there
// meanwhile is no second mount's.
func TestExportRunning(t *testing.T) {
	e := start(t)
	e.Run("run", "-d", "--name", "box", "-v", "vol:/vol", "--tmpfs", "/scratch", "--mount", "type=bind,src=/etc/passwd,dst=/bound", "busybox", "sleep", "1000")
	e.Run("exec", "box", "sh", "-c", "echo mine >/file; rm -r /var/www; mkdir /var/www; echo v >/vol/v; echo s >/scratch/s; echo x >>/etc/hosts; mkdir /a; chown 7:8 /a")
	for _, state := range []string{"running", "paused", "after a restart of the agent", "stopped"} {
		switch state {
		case "paused":
			e.Run("pause", "box")
		case "after a restart of the agent":
			e.Run("unpause", "box")
			e.Restart()
		case "stopped":
			e.Run("kill", "box")
			e.Run("wait", "box")
		}
		b, err := e.Docker("export", "box").Output()
		if err != nil {
			t.Fatal(state, err)
		}
		files := map[string]string{}
		for r := tar.NewReader(bytes.NewReader(b)); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(state, err)
			}
			b, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(state, err)
			}
			files[h.Name] = string(b)
			if h.Name == "a/" && (h.Uid != 7 || h.Gid != 8) {
				t.Errorf("%s: owner %d:%d", state, h.Uid, h.Gid)
			}
		}
		engine.Equal(t, state+": a file", files["file"], "mine\n")
		for _, name := range []string{"proc/", "sys/", "dev/", "dev/pts/", "dev/shm/", "vol/", "scratch/", "bound", "etc/hosts", "etc/resolv.conf", "etc/hostname", "a/", "var/www/"} {
			if text, ok := files[name]; !ok || text != "" {
				t.Errorf("%s: %s: got %q, %v", state, name, text, ok)
			}
		}
		for name := range files {
			for _, dir := range []string{"proc/", "sys/", "vol/", "scratch/", "dev/pts/", "dev/shm/", "dev/n", "var/www/"} {
				if strings.HasPrefix(name, dir) && name != dir {
					t.Errorf("%s: %s is there", state, name)
				}
			}
		}
		// What the export saw did not disturb what is there.
		if state == "running" {
			e.Run("exec", "box", "sh", "-c", "echo more >/etc/more && cat /file && rm /etc/more")
		}
	}
	e.Audit()
}
