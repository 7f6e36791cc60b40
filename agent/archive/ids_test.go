package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"machine/agent/fault"
	"machine/agent/model"
)

// TestIDs: tars hold the container's numbers, the disk the host's.
func TestIDs(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	ids := &model.IDMap{UID: 100000, GID: 200000, Size: 1000}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{{Name: "./", Typeflag: tar.TypeDir, Mode: 0o701, Uid: 9, Gid: 9}, {Name: "f", Typeflag: tar.TypeReg, Mode: 0o600, Uid: 5, Gid: 6}, {Name: "l", Typeflag: tar.TypeSymlink, Linkname: "f", Uid: 999, Gid: 0}} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	root, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := Unpack(context.Background(), root, "/", bytes.NewReader(b.Bytes()), UnpackOptions{IDs: ids, Root: true}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{".": "100009:200009", "f": "100005:200006", "l": "100999:200000"} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root.Name(), name), &st); err != nil || fmt.Sprintf("%d:%d", st.Uid, st.Gid) != want {
			t.Errorf("%s: got %d:%d, %v, want %s", name, st.Uid, st.Gid, err, want)
		}
	}
	// The host's root, which the container does not have, made this one. Its
	// capabilities hold where 100000 is root (version 3 of linux/capability.h).
	foreign := filepath.Join(root.Name(), "x")
	if err := os.WriteFile(foreign, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	v3, _ := hex.DecodeString("0100000300040000000000000000000000000000a0860100")
	if err := unix.Setxattr(foreign, capXattr, v3, 0); err != nil {
		t.Fatal(err)
	}
	b.Reset()
	if err := Pack(context.Background(), &b, root, "/", PackOptions{Flat: true, IDs: ids}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"f": "5:6", "l": "999:0", "x": "65534:65534"}
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%d:%d", h.Uid, h.Gid); got != want[h.Name] {
			t.Errorf("%s: got %s, want %s", h.Name, got, want[h.Name])
		}
		if got := hex.EncodeToString([]byte(h.PAXRecords["SCHILY.xattr."+capXattr])); h.Name == "x" && got != "0100000200040000000000000000000000000000" {
			t.Errorf("capabilities: %s", got)
		}
	}
	b.Reset()
	w = tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "big", Typeflag: tar.TypeReg, Uid: 1000}); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := Unpack(context.Background(), root, "/", &b, UnpackOptions{IDs: ids}); !fault.Is(err, fault.Invalid) {
		t.Errorf("an id that the container does not have: %v", err)
	}
}

// TestPackLinkedCapability: a file's capability is at each of its names, as
// those who set a link's owner afterwards lose it else; other attributes are at
// the first alone.
func TestPackLinkedCapability(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a")
	if err := os.WriteFile(file, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	value := []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	if err := unix.Setxattr(file, capXattr, value, 0); err != nil {
		t.Skip(err)
	}
	unix.Setxattr(file, "user.x", []byte("y"), 0)
	if err := os.Link(file, filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var out bytes.Buffer
	if err := Pack(t.Context(), &out, root, "/", PackOptions{Flat: true}); err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(&out)
	for _, typ := range []byte{tar.TypeReg, tar.TypeLink} {
		h, err := r.Next()
		if err != nil || h.Typeflag != typ || h.PAXRecords["SCHILY.xattr.security.capability"] != string(value) {
			t.Errorf("got %+v, %v", h, err)
		} else if _, has := h.PAXRecords["SCHILY.xattr.user.x"]; typ == tar.TypeLink && has {
			t.Error("the link has all attributes")
		}
	}
}
