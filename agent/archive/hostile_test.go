package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"machine/agent/fault"
)

// hostile are archives that try to reach outside of where they are unpacked.
// OUT stands for the absolute path of the folder outside.
func hostile() map[string][]ent {
	m := map[string][]ent{}
	targets := map[string]string{"abs": "OUT", "up": "../out", "upup": "../../../../../../../../../../OUT", "proc": "/proc/self/cwd", "fd": "/proc/self/fd/3", "root": "/proc/1/root/OUT"}
	for n, to := range targets {
		m["file through link "+n] = []ent{sym("l", to), reg("l/victim", "evil")}
		m["dir through link "+n] = []ent{sym("l", to), dir("l/d")}
		m["link then same name "+n] = []ent{sym("victim", to+"/victim"), reg("victim", "evil")}
		m["link then dir "+n] = []ent{sym("l", to), dir("l")}
		m["hard through link "+n] = []ent{sym("l", to), hard("h", "l/victim"), reg("h", "evil")}
		m["hard to outside "+n] = []ent{hard("h", to+"/victim"), reg("h", "evil")}
		m["symlink through link "+n] = []ent{sym("l", to), sym("l/new", "x")}
		m["whiteout through link "+n] = []ent{sym("l", to), reg("l/.wh.victim", "")}
		m["opaque through link "+n] = []ent{sym("l", to), reg("l/.wh..wh..opq", "")}
		m["chain "+n] = []ent{sym("a", to), sym("b", "a"), sym("c", "b"), reg("c/victim", "evil")}
	}
	for _, name := range []string{"../out/victim", "../../out/victim", "a/../../out/victim", "/../out/victim", "./../out/victim", "..", "OUT/victim", "a/../../../../../../../../../OUT/victim"} {
		m["name "+name] = []ent{reg(name, "evil")}
		m["dir name "+name] = []ent{dir(name)}
		m["hard name "+name] = []ent{hard(name, "x")}
	}
	for _, name := range []string{".wh.", ".wh..", ".wh...", "a/.wh...", "a/.wh..", ".wh./x"} {
		m["whiteout "+name] = []ent{dir("a"), reg(name, "")}
	}
	m["deep"] = []ent{dir(strings.Repeat("d/", 2000)), reg(strings.Repeat("d/", 2000)+"f", "x")}
	m["too deep"] = []ent{dir(strings.Repeat("d/", 100_000))}
	m["long"] = []ent{reg(strings.Repeat("n", 300), "x")}
	m["empty link"] = []ent{sym("l", "")}
	m["link to itself"] = []ent{sym("l", "l"), reg("l/x", "evil")}
	m["hard to itself"] = []ent{hard("h", "h")}
	m["hard to root"] = []ent{hard("h", "/")}
	m["hard to dir"] = []ent{dir("d"), hard("h", "d")}
	m["file as dir"] = []ent{reg("f", "x"), reg("f/x", "evil")}
	m["mode through link"] = []ent{sym("l", "OUT/victim"), {tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "l", Mode: 0o777, Uid: 99}, ""}}
	m["hard link to symlink, then owner"] = []ent{sym("l", "OUT/victim"), hard("h", "l"), {tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "l", Mode: 0o777, Uid: 99}, ""}}
	m["xattr"] = []ent{{tar.Header{Name: "d", Typeflag: tar.TypeDir, PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/x", "SCHILY.xattr.trusted.overlay.opaque": "y"}}, ""}}
	m["device over link"] = []ent{sym("l", "OUT/victim"), {tar.Header{Name: "l", Typeflag: tar.TypeFifo}, ""}}
	m["dir replaced by link"] = []ent{dir("d"), reg("d/x", ""), sym("d", "OUT"), reg("d/victim", "evil")}
	m["dot as link"] = []ent{sym(".", "OUT"), reg("victim", "evil")}
	m["dot as file"] = []ent{reg(".", "evil")}
	return m
}

// TestS23HostileTars unpacks archives that want out, as a layer and as `cp`
// does: each is refused or stays inside, and nothing outside changes.
func TestS23HostileTars(t *testing.T) {
	root(t)
	cases := hostile()
	if len(cases) < 60 {
		t.Fatalf("only %d archives", len(cases))
	}
	for name, list := range cases {
		for _, layer := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/layer=%v", name, layer), func(t *testing.T) { unpackHostile(t, list, layer) })
		}
	}
}

// TestS22ChangeThroughLink: an entry is a link out, and the next of the same
// name would change owner, mode, times or attributes of what it leads to
// (CVE-2021-41089, 2021-32760).
func TestS22ChangeThroughLink(t *testing.T) {
	root(t)
	at := time.Unix(1_000_000_000, 0)
	change := tar.Header{Name: "l", Mode: 0o4777, Uid: 99, Gid: 98, ModTime: at, PAXRecords: map[string]string{"SCHILY.xattr.user.x": "y"}}
	as := func(typ byte, linkname string) ent {
		h := change
		h.Typeflag, h.Linkname = typ, linkname
		return ent{h, ""}
	}
	for n, to := range map[string]string{"file": "OUT/victim", "folder": "OUT", "up": "../out/victim", "chain": "m"} {
		way := []ent{sym("m", "OUT/victim"), sym("l", to)}
		for what, then := range map[string][]ent{
			"link": {as(tar.TypeSymlink, to)}, "file": {as(tar.TypeReg, "")}, "folder": {as(tar.TypeDir, "")}, "pipe": {as(tar.TypeFifo, "")},
			"hard": {as(tar.TypeLink, "m")}, "hard to another": {hard("h", "l"), as(tar.TypeLink, "h")}, "hard, then folder": {hard("h", "l"), as(tar.TypeDir, "")},
		} {
			for _, layer := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%s/layer=%v", n, what, layer), func(t *testing.T) {
					unpackHostile(t, append(slices.Clone(way), then...), layer)
				})
			}
		}
	}
}

func unpackHostile(t *testing.T, list []ent, layer bool) {
	top := t.TempDir()
	out, in, disp := filepath.Join(top, "out"), filepath.Join(top, "in"), filepath.Join(top, "displaced")
	for _, d := range []string{out, in, disp} {
		os.Mkdir(d, 0o755)
	}
	os.WriteFile(filepath.Join(out, "victim"), []byte("good"), 0o600)
	list = slices.Clone(list)
	for i := range list {
		list[i].Name = strings.ReplaceAll(list[i].Name, "OUT", out)
		list[i].Linkname = strings.ReplaceAll(list[i].Linkname, "OUT", out)
	}
	before := snapshot(t, out)
	var err error
	if layer {
		_, err = UnpackLayer(context.Background(), openDir(t, in), openDir(t, disp), bytes.NewReader(tarOf(t, list...)), io.Discard)
	} else {
		err = Unpack(context.Background(), openDir(t, in), "/", bytes.NewReader(tarOf(t, list...)), UnpackOptions{})
	}
	if after := snapshot(t, out); after != before {
		t.Errorf("outside changed (%v):\n%s\n%s", err, before, after)
	}
	if k := fault.KindOf(err); err != nil && k != fault.Invalid && k != fault.NotFound && k != fault.Forbidden {
		t.Errorf("an error of kind %v: %v", k, err)
	}
	if entries, _ := os.ReadDir(top); len(entries) != 3 {
		t.Errorf("something appeared beside: %v", entries)
	}
	if layer {
		noOverlayMarks(t, in)
	}
}

// noOverlayMarks: what the kernel would believe must not come from an archive.
func noOverlayMarks(t *testing.T, dir string) {
	b := make([]byte, 64)
	if n, err := unix.Lgetxattr(filepath.Join(dir, "d"), "trusted.overlay.redirect", b); err == nil {
		t.Errorf("a redirect got through: %q", b[:n])
	}
}

func FuzzUnpackLayer(f *testing.F) {
	for _, list := range hostile() {
		if len(list) > 0 && len(list[0].Name) < 500 {
			f.Add(tarOf(f, list...))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		root(t)
		top := t.TempDir()
		in, disp := filepath.Join(top, "in"), filepath.Join(top, "displaced")
		os.Mkdir(in, 0o755)
		os.Mkdir(disp, 0o755)
		var skel bytes.Buffer
		info, err := UnpackLayer(context.Background(), openDir(t, in), openDir(t, disp), bytes.NewReader(b), &skel)
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := Assemble(context.Background(), &again, openDir(t, in), openDir(t, disp), &skel, info.Moved); err != nil || !bytes.Equal(again.Bytes(), b) {
			t.Errorf("came back different: %v", err)
		}
	})
}
