package container

import (
	"os"
	"path/filepath"
	"testing"

	"machine/agent/fault"
)

func TestOwnerOf(t *testing.T) {
	files := map[string]string{
		"/etc/passwd": "root:x:0:0::/root:/bin/sh\nbroken\nme:x:7:8::/:\nbad:x:-1:99999999999::/:\n",
		"/etc/group":  "root:x:0:\nstaff:x:50:me\n",
	}
	read := func(p string) (string, error) { return files[p], nil }
	for spec, want := range map[string]Owner{"me": {7, 8}, "7": {7, 8}, "9": {9, 0}, "me:staff": {7, 50}, "9:9": {9, 9}, "me:": {7, 8}, "root": {}} {
		if o, err := ownerOf(spec, read); err != nil || *o != want {
			t.Errorf("%q: %v %v", spec, o, err)
		}
	}
	for _, spec := range []string{"you", "me:none", "bad", "-1", "me:-1", "99999999999"} {
		if o, err := ownerOf(spec, read); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v %v", spec, o, err)
		}
	}
}

// TestS20OwnerLinks: a passwd file that is a link to the host's, a pipe or a
// folder shows nothing of the host, and does not hang.
func TestS20OwnerLinks(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "out"), []byte("host"), 0o600)
	os.Mkdir(filepath.Join(dir, "root"), 0o700)
	os.Symlink("../out", filepath.Join(dir, "root/up"))
	os.Symlink(filepath.Join(dir, "out"), filepath.Join(dir, "root/abs"))
	os.Symlink("loop", filepath.Join(dir, "root/loop"))
	root, err := os.Open(filepath.Join(dir, "root"))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	os.WriteFile(filepath.Join(dir, "root/own"), []byte("container"), 0o600)
	if text, err := readBelow(root, "/own"); text != "container" {
		t.Errorf("its own file: %q, %v", text, err)
	}
	for _, p := range []string{"/up", "/abs", "/", "/none", "/loop", filepath.Join(dir, "out"), "up", "../out"} {
		if text, _ := readBelow(root, p); text != "" {
			t.Errorf("%s: %q", p, text)
		}
	}
}
