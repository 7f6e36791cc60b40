package transfer

import (
	"os"
	"syscall"
	"testing"
)

func TestSparse(t *testing.T) {
	dir, err := os.MkdirTemp("/var/tmp", "sparse-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	f, err := os.Create(dir + "/holes")
	if err != nil {
		t.Fatal(err)
	}
	const size = 1 << 40
	if _, err := f.WriteAt([]byte("middle"), 1<<30); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	sent, _, err := copyBetween(t, dir+"/holes", dir+"/copy", false)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(dir + "/copy")
	if err != nil || fi.Size() != size || fi.Sys().(*syscall.Stat_t).Blocks > 4096 {
		t.Errorf("copy: %v %v", fi, err)
	}
	if sent.Sent > 1<<20 {
		t.Errorf("%d bytes travelled", sent.Sent)
	}
	back, err := os.Open(dir + "/copy")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = back.Close() }()
	got := make([]byte, 8)
	if _, err := back.ReadAt(got, 1<<30); err != nil || string(got) != "middle\x00\x00" {
		t.Errorf("%q %v", got, err)
	}
}
