package layertest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Disk is an ext4 file system in a file, whose power can be cut.
type Disk struct {
	Dir   string // where it is mounted
	t     testing.TB
	image string
}

// NewDisk makes a disk of mb MiB; the test's end removes it, and it is
// skipped where there are no loop devices.
func NewDisk(t testing.TB, mb int) *Disk {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	top := t.TempDir()
	d := &Disk{filepath.Join(top, "mnt"), t, filepath.Join(top, "disk")}
	os.Mkdir(d.Dir, 0o755)
	if err := os.WriteFile(d.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	os.Truncate(d.image, int64(mb)<<20)
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", d.image).CombinedOutput(); err != nil {
		t.Skipf("no ext4 here: %v %s", err, out)
	}
	d.mount()
	t.Cleanup(func() { exec.Command("umount", "-l", d.Dir).Run() })
	return d
}

func (d *Disk) mount() {
	d.t.Helper()
	if out, err := exec.Command("mount", "-o", "loop", d.image, d.Dir).CombinedOutput(); err != nil {
		d.t.Skipf("no loop devices here: %v %s", err, out)
	}
}

// Cut ends the file system without flushing anything, and mounts what the
// disk has.
func (d *Disk) Cut() {
	d.t.Helper()
	d.Off()
	d.On()
}

// Off ends the file system at once, whatever is being done on it:
// EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH. What is done afterwards
// fails.
func (d *Disk) Off() {
	d.t.Helper()
	f, err := os.Open(d.Dir)
	if err != nil {
		d.t.Fatal(err)
	}
	flags := uint32(2)
	_, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), 0x8004587d, uintptr(unsafe.Pointer(&flags)))
	f.Close()
	if e != 0 {
		d.t.Skipf("the power of this file system cannot be cut: %v", e)
	}
}

// On mounts what the disk has. Nothing may be open on it any more.
func (d *Disk) On() {
	d.t.Helper()
	var out []byte
	var err error
	for range 200 { // what was closed in the background
		if out, err = exec.Command("umount", d.Dir).CombinedOutput(); err == nil {
			d.mount()
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	d.t.Fatalf("umount: %v %s", err, out)
}
