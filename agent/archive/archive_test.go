package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"

	"machine/agent/fault"
)

type ent struct {
	tar.Header
	body string
}

func tarOf(t testing.TB, list ...ent) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range list {
		if e.Typeflag == 0 {
			e.Typeflag = tar.TypeReg
		}
		if e.Mode == 0 {
			e.Mode = 0o755
		}
		e.Size = int64(len(e.body))
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, e.body)
	}
	w.Close()
	return b.Bytes()
}

func reg(name, body string) ent { return ent{tar.Header{Name: name}, body} }
func dir(name string) ent       { return ent{tar.Header{Name: name, Typeflag: tar.TypeDir}, ""} }
func sym(name, to string) ent {
	return ent{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}, ""}
}
func hard(name, to string) ent {
	return ent{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}, ""}
}

func root(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

func openDir(t testing.TB, name string) *os.File {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// snapshot describes all below dir.
func snapshot(t testing.TB, dir string) string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err != nil {
			return err
		}
		st := i.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%s %v %d %v %d:%d", p, i.Mode(), i.Size(), i.ModTime().UnixNano(), st.Uid, st.Gid)
		if i.Mode().IsRegular() {
			b, _ := os.ReadFile(p)
			line += " " + string(b)
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, "\n")
}

// plant has what is made at in/p/made turn into a link before its mode is set,
// and takes it away, so that it is made anew.
func plant(in, out string) {
	link, name := filepath.Join(in, "link"), filepath.Join(in, "p", "made")
	os.Symlink(out, link)
	if unix.Renameat2(unix.AT_FDCWD, link, unix.AT_FDCWD, name, unix.RENAME_EXCHANGE) == nil {
		os.RemoveAll(link)
	}
	os.Remove(name)
}

// TestS20CopySymlinkSwap: a container swaps a directory for a symlink to the
// host while files are copied in and out; the host's never move.
func TestS20CopySymlinkSwap(t *testing.T) {
	root(t)
	top := t.TempDir()
	out, in := filepath.Join(top, "out"), filepath.Join(top, "in")
	for _, d := range []string{out, filepath.Join(in, "d"), filepath.Join(in, "run")} {
		os.MkdirAll(d, 0o755)
	}
	os.WriteFile(filepath.Join(out, "secret"), []byte("HOST CANARY"), 0o600)
	os.WriteFile(filepath.Join(in, "d", "secret"), []byte("inside"), 0o600)
	os.Symlink(out, filepath.Join(in, "evil"))
	os.MkdirAll(filepath.Join(in, "var"), 0o755)
	os.Symlink("/run", filepath.Join(in, "var", "run"))
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stop.Load() {
			unix.Renameat2(unix.AT_FDCWD, filepath.Join(in, "d"), unix.AT_FDCWD, filepath.Join(in, "evil"), unix.RENAME_EXCHANGE)
		}
	}()
	os.Mkdir(filepath.Join(in, "p"), 0o755)
	os.Chmod(out, 0o700)
	before := snapshot(t, out)
	planted := make(chan struct{})
	go func() {
		defer close(planted)
		for !stop.Load() {
			plant(in, out)
		}
	}()
	r := openDir(t, in)
	b := tarOf(t, reg("sub/new", "x"), reg("secret", "overwritten"))
	made := tarOf(t, reg("made/file", "x"))
	for range 2500 {
		Unpack(context.Background(), r, "/p", bytes.NewReader(made), UnpackOptions{})
		Unpack(context.Background(), r, "/d", bytes.NewReader(b), UnpackOptions{})
		var got bytes.Buffer
		Pack(context.Background(), &got, r, "/d/", PackOptions{})
		if bytes.Contains(got.Bytes(), []byte("HOST CANARY")) {
			t.Fatal("the host's file came out")
		}
	}
	stop.Store(true)
	<-done
	<-planted
	if after := snapshot(t, out); after != before {
		t.Errorf("outside changed:\n%s\n%s", before, after)
	}
	if err := Unpack(context.Background(), r, "/var/run", bytes.NewReader(tarOf(t, reg("pid", "1"))), UnpackOptions{}); err != nil {
		t.Errorf("through the container's own link: %v", err)
	}
	if _, err := os.Stat(filepath.Join(in, "run", "pid")); err != nil {
		t.Error(err)
	}
}

// TestS25Bombs: what unpacks to much more than it is takes little memory, and
// no more disk than it has content.
func TestS25Bombs(t *testing.T) {
	root(t)
	big := bytes.Repeat([]byte{0}, 8<<20)
	var z bytes.Buffer
	gz := gzip.NewWriter(&z)
	w := tar.NewWriter(gz)
	const size = 2 << 30
	w.WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Size: size, Mode: 0o600})
	for range size / len(big) {
		w.Write(big)
	}
	w.Close()
	gz.Close()
	in := t.TempDir()
	if err := Unpack(context.Background(), openDir(t, in), "/", &z, UnpackOptions{}); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(in, "zeros"), &st); err != nil || st.Size != size || st.Blocks*512 > 64<<20 {
		t.Errorf("size %d, on disk %d, %v", st.Size, st.Blocks*512, err)
	}
	var x bytes.Buffer
	xw, _ := xz.WriterConfig{DictCap: 1 << 30}.NewWriter(&x)
	if xw != nil {
		xw.Write([]byte("x"))
		xw.Close()
		r, err := Decompress(&x)
		if err == nil {
			_, err = io.ReadAll(r)
		}
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "dictionary") {
			t.Errorf("xz with a dictionary of 1 GiB: %v", err)
		}
	}
	enc, _ := zstd.NewWriter(nil, zstd.WithWindowSize(zstd.MaxWindowSize), zstd.WithSingleSegment(false))
	frame := enc.EncodeAll(bytes.Repeat([]byte("x"), 600<<20), nil)
	r, err := Decompress(bytes.NewReader(frame))
	if err == nil {
		_, err = io.Copy(io.Discard, r)
		r.Close()
	}
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("zstd with a window of 512 MiB: %v", err)
	}
	huge := tarOf(t, ent{tar.Header{Name: "s", PAXRecords: map[string]string{"GNX.sparse.major": "1", "GNX.sparse.minor": "0", "GNX.sparse.realsize": "9000000000000000000"}}, "1\n0\n1\n" + strings.Repeat("\x00", 506)})
	huge = bytes.ReplaceAll(huge, []byte("GNX."), []byte("GNU.")) // the writer refuses to write it
	if err := Unpack(context.Background(), openDir(t, t.TempDir()), "/", bytes.NewReader(huge), UnpackOptions{}); err == nil {
		t.Error("a sparse file of 9 EB was taken")
	}
}

// half is one of several xz streams, of more than one block.
func half(b []byte) []byte {
	var x bytes.Buffer
	w, err := xz.WriterConfig{BlockSize: 10_000}.NewWriter(&x)
	if err != nil {
		panic(err)
	}
	w.Write(b)
	w.Close()
	return x.Bytes()
}

// TestS21OwnProgramsOnly: no program is run to decompress, whatever lies
// about under the names of those that other engines run.
func TestS21OwnProgramsOnly(t *testing.T) {
	dir := t.TempDir()
	mark := filepath.Join(dir, "ran")
	for _, n := range []string{"xz", "unxz", "unpigz", "gzip", "zstd", "bzip2", "igzip", "tar"} {
		os.WriteFile(filepath.Join(dir, n), []byte("#!/bin/sh\n: >"+mark+"\n"), 0o755)
	}
	t.Setenv("PATH", dir)
	t.Chdir(dir)
	b := half(tarOf(t, reg("f", "x")))
	if err := Unpack(context.Background(), openDir(t, t.TempDir()), "/", bytes.NewReader(b), UnpackOptions{Owner: &Owner{os.Getuid(), os.Getgid()}}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("a program of the rootfs was run")
	}
}

func TestDecompress(t *testing.T) {
	want := bytes.Repeat([]byte("hello "), 10000)
	var g, x bytes.Buffer
	gw := gzip.NewWriter(&g)
	gw.Write(want)
	gw.Close()
	xw, _ := xz.NewWriter(&x)
	xw.Write(want)
	xw.Close()
	enc, _ := zstd.NewWriter(nil)
	skippable := []byte("\x50\x2a\x4d\x18\x03\x00\x00\x00abc")
	for name, b := range map[string][]byte{"plain": want, "gzip": g.Bytes(), "xz": x.Bytes(), "xz twice": slices.Concat(half(want[:30000]), half(want[30000:])), "zstd": enc.EncodeAll(want, nil), "empty": nil,
		"zstd:chunked": slices.Concat(skippable, enc.EncodeAll(want[:1000], nil), enc.EncodeAll(want[1000:], nil), skippable)} {
		r, err := Decompress(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := io.ReadAll(r)
		if err != nil || name != "empty" && !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		r.Close()
		if name == "plain" || name == "empty" {
			continue
		}
		r, err = Decompress(bytes.NewReader(b[:len(b)*2/3]))
		if err == nil {
			_, err = io.ReadAll(r)
		}
		if !fault.Is(err, fault.Invalid) && err != io.ErrUnexpectedEOF {
			t.Errorf("%s cut: %v", name, err)
		}
	}
}

func names(t *testing.T, b []byte) []string {
	t.Helper()
	var out []string
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, h.Name)
	}
}

func TestPackNames(t *testing.T) {
	in := t.TempDir()
	os.MkdirAll(filepath.Join(in, "etc/sub"), 0o755)
	os.WriteFile(filepath.Join(in, "etc/hosts"), []byte("h"), 0o644)
	os.Symlink("etc", filepath.Join(in, "link"))
	r := openDir(t, in)
	for _, c := range []struct {
		path string
		o    PackOptions
		want []string
	}{
		{"/etc", PackOptions{}, []string{"etc/", "etc/hosts", "etc/sub/"}},
		{"/etc/", PackOptions{}, []string{"etc/", "etc/hosts", "etc/sub/"}},
		{"/etc/.", PackOptions{}, []string{"./", "./hosts", "./sub/"}},
		{"etc/hosts", PackOptions{RebaseName: "new"}, []string{"new"}},
		{"/link", PackOptions{}, []string{"link"}},
		{"/link/", PackOptions{}, []string{"link/", "link/hosts", "link/sub/"}},
		{"/", PackOptions{}, []string{"/", "/etc/", "/etc/hosts", "/etc/sub/", "/link"}},
		{"/", PackOptions{Flat: true}, []string{"etc/", "etc/hosts", "etc/sub/", "link"}},
		{"/../..", PackOptions{Flat: true}, []string{"etc/", "etc/hosts", "etc/sub/", "link"}},
	} {
		var b bytes.Buffer
		if err := Pack(context.Background(), &b, r, c.path, c.o); err != nil {
			t.Errorf("%s: %v", c.path, err)
			continue
		}
		if got := names(t, b.Bytes()); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.path, got, c.want)
		}
	}
	if err := Pack(context.Background(), io.Discard, r, "/nope", PackOptions{}); !fault.Is(err, fault.NotFound) {
		t.Errorf("nope: %v", err)
	}
}

// TestAttributes: what a tar says of a file is what the file gets, and what
// Pack says again.
func TestAttributes(t *testing.T) {
	root(t)
	at := time.Unix(1234567890, 0)
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	list := []ent{
		{tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o1755, Uid: 5, Gid: 6, ModTime: at}, ""},
		{tar.Header{Name: "d/f", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 7, Gid: 8, ModTime: at, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": capability}}, "body"},
		{tar.Header{Name: "d/hard", Typeflag: tar.TypeLink, Linkname: "d/f", Mode: 0o4755, Uid: 7, Gid: 8, ModTime: at}, ""},
		{tar.Header{Name: "d/null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3, ModTime: at}, ""},
		{tar.Header{Name: "d/pipe", Typeflag: tar.TypeFifo, Mode: 0o622, ModTime: at}, ""},
		{tar.Header{Name: "d/sym", Typeflag: tar.TypeSymlink, Linkname: "../x", Mode: 0o777, Uid: 9, ModTime: at}, ""},
	}
	in := t.TempDir()
	r := openDir(t, in)
	if err := Unpack(context.Background(), r, "/", bytes.NewReader(tarOf(t, list...)), UnpackOptions{}); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := Pack(context.Background(), &b, r, "/d", PackOptions{}); err != nil {
		t.Fatal(err)
	}
	tr := tar.NewReader(&b)
	for i := 0; ; i++ {
		h, err := tr.Next()
		if err == io.EOF {
			if i != len(list) {
				t.Errorf("%d entries", i)
			}
			break
		}
		w := list[i].Header
		if h.Name != w.Name || h.Typeflag != w.Typeflag || h.Mode != w.Mode || h.Uid != w.Uid || h.Gid != w.Gid || !h.ModTime.Equal(at) ||
			h.Linkname != w.Linkname || h.Devmajor != w.Devmajor || h.Devminor != w.Devminor || w.PAXRecords != nil && h.PAXRecords["SCHILY.xattr.security.capability"] != capability {
			t.Errorf("got  %+v\nwant %+v", h, w)
		}
	}
}

func TestOverwrite(t *testing.T) {
	in := t.TempDir()
	os.MkdirAll(filepath.Join(in, "d/sub"), 0o755)
	os.WriteFile(filepath.Join(in, "f"), []byte("old"), 0o644)
	r := openDir(t, in)
	no := UnpackOptions{NoOverwriteDirNonDir: true, Owner: &Owner{os.Getuid(), os.Getgid()}}
	if err := Unpack(context.Background(), r, "/", bytes.NewReader(tarOf(t, reg("d", "x"))), no); !fault.Is(err, fault.Invalid) {
		t.Errorf("file over directory: %v", err)
	}
	if err := Unpack(context.Background(), r, "/", bytes.NewReader(tarOf(t, dir("f"))), no); !fault.Is(err, fault.Invalid) {
		t.Errorf("directory over file: %v", err)
	}
	yes := UnpackOptions{Owner: no.Owner}
	if err := Unpack(context.Background(), r, "/", bytes.NewReader(tarOf(t, reg("d", "x"), dir("f"), reg("f/new", "y"))), yes); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(filepath.Join(in, "f/new")); string(b) != "y" {
		t.Errorf("f/new: %q", b)
	}
	if err := Unpack(context.Background(), r, "/none", bytes.NewReader(tarOf(t)), yes); !fault.Is(err, fault.NotFound) {
		t.Errorf("into nothing: %v", err)
	}
}

func TestStat(t *testing.T) {
	in := t.TempDir()
	os.MkdirAll(filepath.Join(in, "run/deep"), 0o755)
	os.Mkdir(filepath.Join(in, "var"), 0o755)
	os.Symlink("/run", filepath.Join(in, "var/run"))
	os.Symlink("../../../../run/deep/../none", filepath.Join(in, "dangling"))
	r := openDir(t, in)
	s, err := Stat(r, "/var/run")
	if err != nil || s.Mode&fs.ModeSymlink == 0 || s.LinkTarget != "/run" || s.Name != "run" {
		t.Errorf("got %+v, %v", s, err)
	}
	if s, err = Stat(r, "/var/run/"); err != nil || !s.Mode.IsDir() {
		t.Errorf("got %+v, %v", s, err)
	}
	if s, err = Stat(r, "/dangling"); err != nil || s.LinkTarget != "/run/none" {
		t.Errorf("got %+v, %v", s, err)
	}
	if _, err = Stat(r, "/none"); !fault.Is(err, fault.NotFound) {
		t.Errorf("none: %v", err)
	}
	if s, err = Stat(r, "/"); err != nil || !s.Mode.IsDir() || s.Name != "/" {
		t.Errorf("got %+v, %v", s, err)
	}
}

// TestRemoveDeep: a tree deeper than there are descriptors goes away.
func TestRemoveDeep(t *testing.T) {
	top := t.TempDir()
	os.Mkdir(filepath.Join(top, "x"), 0o755)
	fd, err := unix.Open(filepath.Join(top, "x"), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 2500 {
		if err := unix.Mkdirat(fd, "d", 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "d", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		unix.Close(fd)
		if err != nil {
			t.Fatal(err)
		}
		fd = next
	}
	unix.Close(fd)
	if err := Pack(context.Background(), io.Discard, openDir(t, top), "/", PackOptions{}); !fault.Is(err, fault.Invalid) {
		t.Errorf("packed: %v", err)
	}
	if err := RemoveChildren(top); err != nil {
		t.Fatal(err)
	}
	if list, _ := os.ReadDir(top); len(list) != 0 {
		t.Errorf("left: %v", list)
	}
}

func FuzzDecompress(f *testing.F) {
	f.Add([]byte("\x1f\x8b\x08"))
	f.Add([]byte("\x28\xb5\x2f\xfd"))
	f.Add([]byte("\xfd7zXZ\x00"))
	f.Add([]byte("BZh9"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Decompress(bytes.NewReader(b))
		if err != nil {
			return
		}
		io.Copy(io.Discard, io.LimitReader(r, 64<<20))
		r.Close()
	})
}
