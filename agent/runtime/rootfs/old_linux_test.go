package rootfs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"machine/agent/runtime/wire"
)

// TestF48OldKernel: 125 layers fit on kernels without "lowerdir+", too, and
// the mount shows nowhere but where it is moved to.
func TestF48OldKernel(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	top := t.TempDir()
	r := &wire.Root{Upper: filepath.Join(top, "c-"+strings.Repeat("a", 64), "diff"), Work: filepath.Join(top, "c-"+strings.Repeat("a", 64), "work")}
	os.MkdirAll(r.Upper, 0o755)
	os.MkdirAll(r.Work, 0o755)
	for i := range 126 {
		d := filepath.Join(top, fmt.Sprintf("%016d", i), "diff")
		os.MkdirAll(d, 0o755)
		os.WriteFile(filepath.Join(d, fmt.Sprint("f", i)), nil, 0o644)
		r.Lower = append(r.Lower, d)
	}
	fd, err := oldOverlay(r)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	table, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(table), top) {
		t.Error("the mount is in the table")
	}
	to := filepath.Join(top, "to")
	os.Mkdir(to, 0o755)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, to, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(to, unix.MNT_DETACH)
	list, err := os.ReadDir(to)
	if err != nil || len(list) != 126 {
		t.Errorf("%d files, %v", len(list), err)
	}
	if err := os.WriteFile(filepath.Join(to, "new"), nil, 0o644); err != nil {
		t.Error(err)
	}
}
