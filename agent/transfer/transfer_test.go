package transfer

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// copyBetween runs both ends in this process.
func copyBetween(t *testing.T, from, to string, delta bool) (sent, got Stats, err error) {
	t.Helper()
	r1, w1 := io.Pipe()
	r2, w2 := io.Pipe()
	var wg sync.WaitGroup
	var sendErr error
	wg.Go(func() {
		sent, sendErr = Send(r2, w1, Order{Path: from, Recursive: true, Delta: delta}, nil)
		_ = w1.Close()
		_ = r2.Close()
	})
	got, err = Receive(r1, w2, Order{Path: to, Recursive: true, Delta: delta}, nil)
	_ = r1.Close()
	_ = w2.Close()
	wg.Wait()
	if errors.Is(err, ErrPeer) || err == nil {
		err = sendErr
	}
	return sent, got, err
}

func write(t *testing.T, name, text string, mode os.FileMode, when time.Time) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(name, mode), os.Chtimes(name, when, when)); err != nil {
		t.Fatal(err)
	}
}

func TestTree(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	when := time.Unix(1e9, 123456789)
	write(t, src+"/a/b/deep", "deep", 0o640, when)
	write(t, src+"/a/-o $(x)\n", "odd", 0o755, when)
	write(t, src+"/a/empty", "", 0o444, when)
	for link, to := range map[string]string{"link": "empty", "linked": "../there", "b/up": "..", "b/self": "."} {
		if err := os.Symlink(to, src+"/a/"+link); err != nil {
			t.Fatal(err)
		}
	}
	write(t, src+"/there/in", "in", 0o600, when)
	if err := os.Symlink("../a", src+"/there/back"); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(src+"/a/b", when, when); err != nil {
		t.Fatal(err)
	}
	for _, delta := range []bool{false, true, true} {
		if _, _, err := copyBetween(t, src+"/a", dst, delta); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]os.FileMode{"b/deep": 0o640, "-o $(x)\n": 0o755, "empty": 0o444, "link": 0o444} {
		fi, err := os.Lstat(filepath.Join(dst, "a", name))
		if err != nil || fi.Mode() != mode || !fi.ModTime().Equal(when) {
			t.Errorf("%q: %v %v", name, fi, err)
		}
	}
	// Linked folders are copied, as scp does; links that lead back are not.
	if data, err := os.ReadFile(dst + "/a/linked/in"); err != nil || string(data) != "in" {
		t.Errorf("linked folder: %v %q", err, data)
	}
	for _, loop := range []string{"b/up", "b/self", "linked/back"} {
		if _, err := os.Lstat(dst + "/a/" + loop); err == nil {
			t.Errorf("%s leads back and was copied", loop)
		}
	}
	if fi, err := os.Stat(dst + "/a/b"); err != nil || !fi.ModTime().Equal(when) {
		t.Errorf("folder's time: %v %v", fi, err)
	}
	if left, _ := filepath.Glob(dst + "/a/.scp-*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestDelta: of a big file only the changed blocks travel, of others nothing.
func TestDelta(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
	write(t, src+"/big", string(data), 0o600, time.Unix(1e9, 0))
	write(t, src+"/same", "same", 0o600, time.Unix(1e9, 0))
	if _, _, err := copyBetween(t, src+"/.", dst, false); err != nil {
		t.Fatal(err)
	}
	data[3<<20] = 'X'
	data = append(data, "tail"...)
	write(t, src+"/big", string(data), 0o600, time.Unix(2e9, 0))
	sent, got, err := copyBetween(t, src+"/.", dst, true)
	if err != nil {
		t.Fatal(err)
	}
	if sent.Sent < 5 || sent.Sent > int64(2*rollBlock(4<<20)) || sent.Skipped != 1 || got.Skipped != 1 {
		t.Errorf("sent %+v, got %+v", sent, got)
	}
	if back, _ := os.ReadFile(dst + "/big"); !bytes.Equal(back, data) {
		t.Error("the file differs")
	}
	// Shorter again.
	write(t, src+"/big", string(data[:1<<20]), 0o600, time.Unix(3e9, 0))
	if sent, _, err = copyBetween(t, src+"/.", dst, true); err != nil || sent.Sent != 0 {
		t.Errorf("shorter: %+v %v", sent, err)
	}
	if fi, _ := os.Stat(dst + "/big"); fi.Size() != 1<<20 {
		t.Errorf("size %d", fi.Size())
	}
}

// TestS44HostileSender: names that lead elsewhere, and links, do not.
func TestS44HostileSender(t *testing.T) {
	for _, rel := range []string{"../x", "/etc/x", "a/../../x", "x\x00y", "a//b", "./a"} {
		outside := t.TempDir()
		dst := filepath.Join(outside, "in")
		if err := os.Mkdir(dst, 0o755); err != nil {
			t.Fatal(err)
		}
		var stream bytes.Buffer
		c := newWire(&stream, &stream)
		_ = c.send(kindRoot, []byte("\x01."))
		_ = c.send(kindFile, entry{rel: rel, mode: 0o644}.encode())
		_ = c.send(kindEnd, nil)
		_ = c.send(kindDone, nil)
		_ = c.flush()
		if _, err := Receive(&stream, io.Discard, Order{Path: dst, Recursive: true}, nil); err == nil || !strings.Contains(err.Error(), "which is not one") {
			t.Errorf("%q: %v", rel, err)
		}
	}
	oneFile(t)
	outside, dst := t.TempDir(), t.TempDir()
	if err := os.Symlink(outside, dst+"/link"); err != nil {
		t.Fatal(err)
	}
	src := t.TempDir()
	write(t, src+"/link/file", "x", 0o600, time.Now())
	if _, _, err := copyBetween(t, src+"/.", dst, false); err == nil {
		t.Error("a link out of the folder was followed")
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("written outside: %v", left)
	}
}

// oneFile: who asks for a file gets that file, and nothing beside it.
func oneFile(t *testing.T) {
	t.Helper()
	for what, frames := range map[string]func(c *wire){
		"another file": func(c *wire) {
			_ = c.send(kindRoot, []byte("\x00f"))
			_ = c.send(kindFile, entry{rel: ".bashrc", mode: 0o644}.encode())
		},
		"a folder beside it": func(c *wire) {
			_ = c.send(kindRoot, []byte("\x00f"))
			_ = c.send(kindDir, entry{rel: "d", mode: 0o755}.encode())
		},
		"the folder itself": func(c *wire) {
			_ = c.send(kindRoot, []byte("\x00f"))
			_ = c.send(kindDir, entry{mode: 0o777}.encode())
		},
		"a tree": func(c *wire) {
			_ = c.send(kindRoot, []byte("\x01f"))
			_ = c.send(kindFile, entry{rel: "x", mode: 0o644}.encode())
		},
	} {
		for _, delta := range []bool{false, true} {
			dir := t.TempDir()
			before, _ := os.Stat(dir)
			var stream bytes.Buffer
			c := newWire(&stream, &stream)
			frames(c)
			_ = errors.Join(c.send(kindEnd, nil), c.send(kindDone, nil), c.flush())
			_, err := Receive(&stream, io.Discard, Order{Path: dir + "/f", Delta: delta}, nil)
			left, _ := os.ReadDir(dir)
			after, _ := os.Stat(dir)
			if err == nil || len(left) > 0 || before.Mode() != after.Mode() {
				t.Errorf("%s: %v; written: %v, mode %v", what, err, left, after.Mode())
			}
		}
	}
}

func TestErrors(t *testing.T) {
	dst := t.TempDir()
	if _, _, err := copyBetween(t, "/nonexistent", dst, false); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("no source: %v", err)
	}
	var out, errs bytes.Buffer
	if code := Main(strings.NewReader("garbage that is no frame"), &out, &errs); code != 1 || out.String() != Magic {
		t.Errorf("garbage: %d %q %q", code, out.String(), errs.String())
	}
	// Devices are written to, and stay.
	src := t.TempDir()
	write(t, src+"/f", "x", 0o600, time.Now())
	if _, _, err := copyBetween(t, src+"/f", "/dev/null", false); err != nil {
		t.Error(err)
	}
	if fi, err := os.Stat("/dev/null"); err != nil || fi.Mode().IsRegular() {
		t.Fatal("/dev/null was replaced")
	}
}

func FuzzReceive(f *testing.F) {
	var seed bytes.Buffer
	c := newWire(&seed, &seed)
	_ = c.send(kindRoot, []byte("\x01."))
	_ = c.send(kindDir, entry{rel: "d", mode: 0o755}.encode())
	_ = c.send(kindFile, entry{rel: "d/f", mode: 0o644}.encode())
	_ = c.send(kindData, []byte("x"))
	_ = c.send(kindEnd, nil)
	_ = c.send(kindDone, nil)
	_ = c.flush()
	f.Add(seed.Bytes(), false)
	f.Add(seed.Bytes(), true)
	var delta bytes.Buffer
	c = newWire(&delta, &delta)
	_ = c.send(kindRoot, []byte("\x01."))
	_ = c.send(kindFile, entry{rel: "f", mode: 0o644, size: 9}.encode())
	_ = c.send(kindDone, []byte(rolling))
	_ = c.send(kindFile, entry{rel: "f", mode: 0o644, size: 9}.encode())
	_ = c.send(kindCopy, []byte("\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x03"))
	_ = c.sendInt(kindKeep, 2)
	_ = c.sendInt(kindHole, 4)
	_ = c.send(kindEnd, nil)
	_ = c.send(kindDone, nil)
	_ = c.flush()
	f.Add(delta.Bytes(), true)
	f.Fuzz(func(t *testing.T, data []byte, delta bool) {
		dir := t.TempDir()
		write(t, dir+"/in/f", "0123456789", 0o600, time.Unix(1e9, 0))
		_, _ = Receive(bytes.NewReader(data), io.Discard, Order{Path: dir + "/in", Recursive: true, Delta: delta}, nil)
		if list, _ := os.ReadDir(dir); len(list) > 1 {
			t.Errorf("written outside: %v", list)
		}
	})
}
