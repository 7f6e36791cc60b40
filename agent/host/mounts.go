package host

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"machine/agent/state"
)

// oldRoot is where the computer's root is for a moment during the change.
const oldRoot = "/.machine-computer"

// enterRoot makes the machine's root and enters it. All mounts after the
// change of root are made from within, where no link of the computer's files
// leads anywhere else.
func enterRoot(boot bootConfig) error {
	resolv := resolvConf()
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	hs, err := ownHierarchies()
	if err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := os.Chdir(boot.Dir); err != nil {
		return err
	}
	// Relative names: the folder's own may hold commas and colons.
	if err := unix.Mount("machine", "root", "overlay", 0, "lowerdir=/,upperdir=upper,workdir=work"); err != nil {
		return fmt.Errorf("mount the machine's root over the computer's (overlay in %s): %w", boot.Dir, err)
	}
	if err := os.Chdir("root"); err != nil {
		return err
	}
	if err := os.MkdirAll("."+oldRoot, 0o700); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."+oldRoot); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := fillRoot(boot, otherDisks(strings.NewReader(string(info))), hs); err != nil {
		return err
	}
	if err := installAgent(boot.Agent); err != nil {
		return fmt.Errorf("install agent: %w", err)
	}
	if err := unix.Unmount(oldRoot, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the computer's root: %w", err)
	}
	_ = os.Remove(oldRoot)
	_ = os.Remove("/etc/resolv.conf")
	return state.WriteFile("/etc/resolv.conf", resolv, 0o644)
}

func fillRoot(boot bootConfig, disks []string, hs []hierarchy) error {
	for i, dir := range disks {
		if err := overDisk(boot.Dir, dir, i); err != nil {
			fmt.Fprintf(os.Stderr, "disk at %s is not visible: %v\n", dir, err)
		}
	}
	type mnt struct {
		src, dst, fs string
		flags        uintptr
		data         string
	}
	const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	mounts := []mnt{
		{"proc", "/proc", "proc", quiet, ""},
		{"sysfs", "/sys", "sysfs", quiet, ""},
		{"tmpfs", "/dev", "tmpfs", unix.MS_NOSUID, "mode=755,size=1m"},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		{"shm", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"mqueue", "/dev/mqueue", "mqueue", quiet, ""},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		{"tmpfs", "/sys/fs/cgroup", "tmpfs", quiet, "mode=755"},
	}
	if len(hs) == 1 && hs[0].v2 && hs[0].dir == "/sys/fs/cgroup" {
		mounts = mounts[:len(mounts)-1]
	}
	for _, m := range mounts {
		if err := os.MkdirAll(m.dst, 0o755); err != nil {
			return fmt.Errorf("mount %s: %w", m.dst, err)
		}
		if err := unix.Mount(m.src, m.dst, m.fs, m.flags, m.data); err != nil {
			if m.fs == "mqueue" { // not in every kernel
				continue
			}
			return fmt.Errorf("mount %s: %w", m.dst, err)
		}
	}
	if err := errors.Join(makeDevices(), os.MkdirAll("/run/lock", 0o1777)); err != nil {
		return err
	}
	if err := mountCgroups(hs); err != nil {
		return err
	}
	if err := emptyDir(oldRoot + boot.Dir + "/tmp"); err != nil {
		return err
	}
	for dst, src := range map[string]string{"/var/lib/docker": "data", "/tmp": "tmp"} {
		if err := os.MkdirAll(dst, 0o710); err != nil {
			return err
		}
		if err := unix.Mount(oldRoot+filepath.Join(boot.Dir, src), dst, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", dst, err)
		}
	}
	return mask(boot)
}

// mask hides the computer's other engines, and its machines with their keys.
func mask(boot bootConfig) error {
	hide := []string{"/var/lib/containerd", "/var/lib/containers", "/var/lib/kubelet", "/var/lib/rancher", "/etc/docker"}
	for _, dir := range hide {
		fi, err := os.Lstat(dir)
		if err != nil || !fi.IsDir() {
			continue
		}
		if dir == "/etc/docker" {
			// Ours is written by provisioning: it stays, the computer's goes.
			if err := hideOnce(dir); err != nil {
				return err
			}
			continue
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
			return fmt.Errorf("hide %s: %w", dir, err)
		}
	}
	for _, dir := range []string{boot.Store, boot.Dir} {
		if fi, err := os.Lstat(dir); dir == "" || err != nil || !fi.IsDir() {
			continue
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID, "mode=700,size=4k"); err != nil {
			return fmt.Errorf("hide %s: %w", dir, err)
		}
		break // the machine's folder is in the store
	}
	return nil
}

// hideOnce empties dir on the machine's first boot.
func hideOnce(dir string) error {
	mark := filepath.Join(confDir, "booted")
	if _, err := os.Stat(mark); err == nil {
		return nil
	}
	if err := emptyDir(dir); err != nil {
		return fmt.Errorf("hide %s: %w", dir, err)
	}
	return errors.Join(os.MkdirAll(confDir, 0o700), os.WriteFile(mark, nil, 0o600))
}

func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return errors.Join(errs...)
}

// diskTypes are file systems whose files a machine should see.
var diskTypes = map[string]bool{"ext2": true, "ext3": true, "ext4": true, "xfs": true, "btrfs": true, "f2fs": true, "zfs": true}

// otherDisks lists what is mounted beside the root and is part of the system,
// from the text of mountinfo.
func otherDisks(mountinfo io.Reader) []string {
	var dirs []string
	sc := bufio.NewScanner(mountinfo)
	for sc.Scan() {
		left, right, ok := strings.Cut(sc.Text(), " - ")
		f, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(f) < 5 || len(r) < 1 || !diskTypes[r[0]] {
			continue
		}
		for _, top := range []string{"/usr", "/opt", "/home", "/srv", "/var", "/root"} {
			if f[4] == top || f[4] == "/var/lib" || f[4] == "/var/log" || f[4] == "/usr/local" {
				dirs = append(dirs, f[4])
				break
			}
		}
	}
	return dirs
}

// overDisk shows another disk of the computer as its root is shown: below, and
// with the machine's own changes over it.
func overDisk(machineDir, dir string, i int) error {
	base := filepath.Join(oldRoot, machineDir, "more", strconv.Itoa(i))
	for _, d := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(base, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chdir(base); err != nil {
		return err
	}
	defer func() { _ = os.Chdir("/") }()
	if err := unix.Symlink(oldRoot+dir, "lower"); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return unix.Mount("machine", dir, "overlay", 0, "lowerdir=lower,upperdir=upper,workdir=work")
}

// makeDevices fills /dev with what every host has; other devices stay away.
func makeDevices() error {
	type node struct {
		name         string
		major, minor uint32
		mode         uint32
		must         bool
	}
	for _, n := range []node{
		{"null", 1, 3, 0o666, true}, {"zero", 1, 5, 0o666, true}, {"full", 1, 7, 0o666, true},
		{"random", 1, 8, 0o666, true}, {"urandom", 1, 9, 0o666, true}, {"tty", 5, 0, 0o666, true},
		{"kmsg", 1, 11, 0o600, false}, {"fuse", 10, 229, 0o666, false}, {"net/tun", 10, 200, 0o666, false},
		{"loop-control", 10, 237, 0o660, false}, {"kvm", 10, 232, 0o660, false},
	} {
		path := "/dev/" + n.name
		if !n.must {
			if _, err := os.Lstat(oldRoot + path); err != nil {
				continue
			}
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		err := unix.Mknod(path, unix.S_IFCHR|n.mode, int(unix.Mkdev(n.major, n.minor)))
		if err == nil {
			err = os.Chmod(path, os.FileMode(n.mode))
		}
		if err != nil && n.must {
			return fmt.Errorf("make %s: %w", path, err)
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
		"stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx", "core": "/proc/kcore",
	} {
		if err := os.Symlink(target, "/dev/"+name); err != nil {
			return err
		}
	}
	return nil
}

// mountCgroups mounts each hierarchy at the place where the computer has it.
// In the cgroup namespace its root is the machine's own group.
func mountCgroups(hs []hierarchy) error {
	for _, h := range hs {
		if err := os.MkdirAll(h.dir, 0o755); err != nil {
			return fmt.Errorf("cgroup %s: %w", h.dir, err)
		}
		fs, data := "cgroup", h.opts
		if h.v2 {
			fs, data = "cgroup2", ""
		}
		const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
		if err := unix.Mount(fs, h.dir, fs, flags, data); err != nil {
			return fmt.Errorf("mount cgroup %s: %w", h.dir, err)
		}
		// Names of the single controllers of a joint hierarchy.
		if names := strings.Split(filepath.Base(h.dir), ","); len(names) > 1 {
			for _, n := range names {
				_ = os.Symlink(filepath.Base(h.dir), filepath.Join(filepath.Dir(h.dir), n))
			}
		}
		if h.v2 && len(hs) == 1 {
			// No process may be in a v2 group that hands controllers on.
			leaf := filepath.Join(h.dir, "init")
			err := os.MkdirAll(leaf, 0o755)
			if err == nil {
				err = os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("1"), 0o644)
			}
			if err != nil {
				return fmt.Errorf("cgroup of init: %w", err)
			}
			delegate(h.dir)
		}
	}
	return nil
}

// installAgent copies the agent that started the machine, on its first boot;
// later ones come by provisioning.
func installAgent(from string) error {
	if _, err := os.Stat(filepath.Join(confDir, "agent-installed")); err == nil {
		return nil
	}
	src, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	if err := os.MkdirAll(filepath.Dir(agentPath), 0o755); err != nil {
		return err
	}
	dst, err := os.OpenFile(agentPath+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	if err = errors.Join(err, dst.Chmod(0o755), dst.Close()); err != nil {
		return err
	}
	if err := os.Rename(agentPath+".new", agentPath); err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(confDir, 0o700), os.WriteFile(filepath.Join(confDir, "agent-installed"), []byte(from+"\n"), 0o600))
}
