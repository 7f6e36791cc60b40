//go:build linux

package aside

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestF48OldKernel: 125 layers fit on kernels without "lowerdir+", too, and
// the mount shows nowhere but where it is moved to.
func TestF48OldKernel(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	top := t.TempDir()
	r := &Overlay{Upper: filepath.Join(top, "c-"+strings.Repeat("a", 64), "diff"), Work: filepath.Join(top, "c-"+strings.Repeat("a", 64), "work")}
	os.MkdirAll(r.Upper, 0o755)
	os.MkdirAll(r.Work, 0o755)
	for i := range 126 {
		d := filepath.Join(top, fmt.Sprintf("%016d", i), "diff")
		os.MkdirAll(d, 0o755)
		os.WriteFile(filepath.Join(d, fmt.Sprint("f", i)), nil, 0o644)
		r.Lower = append(r.Lower, d)
	}
	fd, err := r.oldMount()
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

// An image's layers alone are an overlay, too, which is read-only.
func TestNoUpper(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	o := &Overlay{Lower: []string{t.TempDir(), t.TempDir()}}
	os.WriteFile(filepath.Join(o.Lower[1], "f"), nil, 0o644)
	one := &Overlay{Lower: o.Lower[1:]}
	for name, mount := range map[string]func() (int, error){"new": o.Mount, "old": o.oldMount, "one directory": one.Mount} {
		fd, err := mount()
		if err != nil {
			t.Fatal(name, err)
		}
		defer unix.Close(fd)
		var st unix.Stat_t
		if err := unix.Fstatat(fd, "f", &st, 0); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if name == "one directory" { // is itself
			continue
		}
		if err := unix.Mkdirat(fd, "new", 0o755); err != unix.EROFS {
			t.Errorf("%s: writing got %v", name, err)
		}
	}
}

// TestOldKernelMapped: with mapped ids, too, and files that are made there
// belong on disk to the namespace's root.
func TestOldKernelMapped(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	c := exec.Command("sleep", "100")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 1000}}
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { c.Process.Kill(); c.Wait() }()
	top := t.TempDir()
	r := &Overlay{Lower: []string{filepath.Join(top, "one", "diff"), filepath.Join(top, "two", "diff")}, Upper: filepath.Join(top, "c", "diff"), Work: filepath.Join(top, "c", "work"), Mapped: true}
	for _, d := range append([]string{r.Upper, r.Work}, r.Lower...) {
		os.MkdirAll(d, 0o755)
	}
	os.WriteFile(filepath.Join(r.Lower[1], "f"), nil, 0o644)
	os.Chown(filepath.Join(r.Lower[1], "f"), 7, 8)
	for _, way := range []func(*Overlay) (int, error){(*Overlay).oldMount, (*Overlay).Mount} {
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", c.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		err = Mapped(int(ns.Fd()), 100000, 100000, append([]string{filepath.Dir(r.Upper)}, r.Lower...), func() error {
			fd, err := way(r)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			var st unix.Stat_t
			if err := unix.Fstatat(fd, "f", &st, 0); err != nil || st.Uid != 100007 || st.Gid != 100008 {
				t.Errorf("in the overlay: %d:%d, %v", st.Uid, st.Gid, err)
			}
			return unix.Mkdirat(fd, "new", 0o755)
		})
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(r.Upper, "new"), &st); err != nil || st.Uid != 0 || st.Gid != 0 {
			t.Errorf("on disk: %d:%d, %v", st.Uid, st.Gid, err)
		}
		os.Remove(filepath.Join(r.Upper, "new"))
	}
}
