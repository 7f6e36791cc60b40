package docker

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"machine/acceptance/engine"
)

// shutdown ends the file system at dir, on the engine's host, as a power cut
// does: EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH.
func shutdown(e *engine.Engine, dir string) {
	e.T.Helper()
	f, err := os.Open(filepath.Join("/proc", itoa(e.AgentPid()), "root", dir))
	if err != nil {
		e.T.Fatal(err)
	}
	defer f.Close()
	flags := uint32(2)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), 0x8004587d, uintptr(unsafe.Pointer(&flags))); errno != 0 {
		e.T.Fatalf("shut the file system down: %v", errno)
	}
}

// letGo ends all that runs on the host, and with it all that holds the disk.
func letGo(e *engine.Engine, data, disk string) {
	e.T.Helper()
	e.HostRun("sh", "-c", "for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p = 1 ] || [ $p = $$ ] || kill -9 $p; done")
	e.Eventually("the disk is let go", func() bool {
		e.HostRun("umount", data)
		out, _ := e.HostRun("losetup", "-j", disk)
		return out == ""
	})
}

// TestF31PowerCut: what the API has acknowledged is there after a power cut,
// and what it has not is there whole or not at all.
func TestF31PowerCut(t *testing.T) {
	e := start(t)
	data, disk := filepath.Join(e.Dir, "data"), filepath.Join(e.Dir, "disk")
	e.Kill()
	mount := func() {
		t.Helper()
		if out, err := e.HostRun("mount", "-o", "loop", disk, data); err != nil {
			t.Skipf("no loop devices here: %v %s", err, out)
		}
	}
	if out, err := e.HostRun("sh", "-c", "truncate -s 256M "+disk+" && mkfs.ext4 -q -F "+disk); err != nil {
		t.Skipf("no ext4 here: %v %s", err, out)
	}
	mount()
	e.Start()
	e.Busybox()
	e.Run("network", "create", "net")
	unix.Sync() // the image is not what is tried here
	for round := range 6 {
		name := fmt.Sprintf("c%d", round)
		e.Run("run", "-d", "--name", "new", "--network", "net", "busybox", "sleep", "1000")
		e.Run("rename", "new", name)
		if round%2 == 1 {
			e.Run("stop", "-t", "0", name)
		}
		e.Run("volume", "create", name)
		cut := make(chan bool)
		go func() { // in the middle of one that nobody hears of
			defer close(cut)
			call(e, "POST", "/containers/create?name=half", `{"Image":"busybox","Cmd":["true"]}`)
		}()
		time.Sleep(time.Duration(round) * 3 * time.Millisecond)
		shutdown(e, data)
		e.Kill()
		<-cut
		letGo(e, data, disk)
		mount()
		e.Start()
		for i := range round + 1 {
			n := fmt.Sprintf("c%d", i)
			engine.Equal(t, "after cut "+itoa(round)+" "+n, status(e, n), "exited")
			engine.Equal(t, "volume", e.Run("volume", "inspect", "-f", "{{.Name}}", n), n)
		}
		e.Run("start", name)
		engine.Equal(t, "it works", e.Run("exec", name, "echo", "yes"), "yes")
		if e.Try("inspect", "half").Code == 0 {
			e.Run("start", "half")
			e.Run("rm", "-f", "half")
		}
		e.Eventually("one task is left after cut "+itoa(round), func() bool {
			left, _ := filepath.Glob(filepath.Join(e.Dir, "run/tasks/*"))
			return len(left) <= 1
		})
	}
	e.Run("rm", "-f", "-v", "c0", "c1", "c2", "c3", "c4", "c5")
	e.Terminate()
	if out, err := e.HostRun("umount", data); err != nil {
		t.Errorf("something holds the disk: %v %s", err, out)
	}
	e.Start()
	e.Audit()
}

// TestF34SyncFailed: a record that the disk would not take is not there, in
// memory or after a restart, and what it should have replaced is.
func TestF34SyncFailed(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("needs strace to make the disk fail")
	}
	e := start(t)
	e.Run("create", "--name", "old", "busybox", "true")
	id := e.Run("inspect", "-f", "{{.Id}}", "old")
	dir := filepath.Join(e.Dir, "data/records/containers")
	for _, c := range []struct {
		call string
		only []string
	}{{"fsync", []string{"-P", dir}}, {"fdatasync", nil}} {
		fail := exec.Command(strace, append(c.only, "-f", "-qq", "-o", "/dev/null", "-e", "trace="+c.call, "-e", "inject="+c.call+":error=EIO", "-p", itoa(e.AgentPid()))...)
		if err := fail.Start(); err != nil {
			t.Fatal(err)
		}
		e.Eventually("strace has the agent", func() bool { return traced(e.AgentPid()) })
		if r := e.Try("create", "--name", "new", "busybox", "true"); r.Code == 0 {
			t.Errorf("%s: a container was made that the disk does not have", c.call)
		}
		if r := e.Try("rename", "old", "renamed"); r.Code == 0 {
			t.Errorf("%s: renamed, and the disk does not have it", c.call)
		}
		engine.Equal(t, c.call+": listed", e.Run("ps", "-a", "--format", "{{.Names}}"), "old")
		e.Kill()
		fail.Wait()
		e.Start()
		engine.Equal(t, c.call+": after a restart", e.Run("ps", "-a", "--format", "{{.Names}} {{.ID}}"), "old "+id[:12])
		e.Run("rm", e.Run("create", "--name", "new", "busybox", "true"))
	}
	e.Audit()
}

// traced tells whether every thread of a process has a tracer.
func traced(pid int) bool {
	files, _ := filepath.Glob(filepath.Join("/proc", itoa(pid), "task/*/status"))
	for _, f := range files {
		if b, err := os.ReadFile(f); err != nil || strings.Contains(string(b), "TracerPid:\t0\n") {
			return false
		}
	}
	return len(files) > 0
}

// layers makes the archive of an image with n layers.
func layers(t *testing.T, name string, n int) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	put := func(w *tar.Writer, name string, b []byte) {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(b))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	var files, diffs []string
	for i := range n {
		var l bytes.Buffer
		lw := tar.NewWriter(&l)
		put(lw, fmt.Sprintf("f%d", i), nil)
		if i == 0 {
			b, err := os.ReadFile("/bin/busybox")
			if err != nil {
				t.Fatal(err)
			}
			put(lw, "bin/sh", b)
		}
		lw.Close()
		file := fmt.Sprintf("l%d.tar", i)
		put(w, file, l.Bytes())
		files, diffs = append(files, file), append(diffs, fmt.Sprintf("sha256:%x", sha256.Sum256(l.Bytes())))
	}
	config, _ := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": diffs}})
	put(w, "c.json", config)
	manifest, _ := json.Marshal([]any{map[string]any{"Config": "c.json", "RepoTags": []string{name}, "Layers": files}})
	put(w, "manifest.json", manifest)
	w.Close()
	return out.Bytes()
}

// TestF48Layers: 125 layers are loaded and run, more are refused in words, and
// a commit does not make one more either.
func TestF48Layers(t *testing.T) {
	e := start(t)
	load := func(n int) (int, string) {
		code, out, err := call(e, "POST", "/images/load", string(layers(t, fmt.Sprintf("deep:%d", n), n)), "Content-Type", "application/x-tar")
		if err != nil {
			t.Fatal(err)
		}
		return code, out
	}
	if code, out := load(125); code != http.StatusOK || strings.Contains(out, "error") {
		t.Fatalf("125 layers: %d %s", code, out)
	}
	engine.Equal(t, "files of 125 layers", e.Run("run", "--name", "top", "deep:125", "/bin/sh", "-c", ">/new; echo /f* | wc -w"), "125")
	for _, n := range []int{126, 127, 400} {
		if _, out := load(n); !strings.Contains(out, "max depth exceeded") {
			t.Errorf("%d layers: %s", n, out)
		}
		e.Fails(1, "No such image", "inspect", "--type", "image", fmt.Sprintf("deep:%d", n))
	}
	e.Fails(1, "max depth exceeded", "commit", "top", "deeper:1")
	e.Audit()
}
