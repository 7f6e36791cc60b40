package host

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"machine/agent/fault"
)

// A hierarchy is one mounted cgroup file system.
type hierarchy struct {
	dir  string // mount point
	v2   bool
	opts string // mount data: controllers or name=…
}

// hierarchies reads them from the text of /proc/PID/mountinfo (proc(5)).
func hierarchies(mountinfo io.Reader) []hierarchy {
	var hs []hierarchy
	seen := map[string]bool{}
	sc := bufio.NewScanner(mountinfo)
	for sc.Scan() {
		left, right, ok := strings.Cut(sc.Text(), " - ")
		f, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(f) < 5 || len(r) < 3 || !strings.HasPrefix(r[0], "cgroup") {
			continue
		}
		if !strings.HasPrefix(f[4], "/sys/fs/cgroup") || seen[f[4]] {
			continue
		}
		seen[f[4]] = true
		h := hierarchy{dir: f[4], v2: r[0] == "cgroup2"}
		if !h.v2 {
			var keep []string
			for _, o := range strings.Split(r[2], ",") {
				switch {
				case o == "rw", o == "ro", strings.HasPrefix(o, "release_agent="):
				default:
					keep = append(keep, o)
				}
			}
			h.opts = strings.Join(keep, ",")
		}
		hs = append(hs, h)
	}
	return hs
}

func ownHierarchies() ([]hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return hierarchies(f), nil
}

// enterCgroups makes the machine's group in every hierarchy and moves this
// process there, so that the cgroup namespace of its child begins there.
func enterCgroups(id string) error {
	hs, err := ownHierarchies()
	if err != nil {
		return fault.Internal.Errorf("cgroups: %w", err)
	}
	for _, h := range hs {
		top := filepath.Join(h.dir, "machine")
		dir := filepath.Join(top, id)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fault.Internal.Errorf("make cgroup: %w", err)
		}
		if h.v2 {
			delegate(h.dir)
			delegate(top)
		} else if strings.Contains(h.opts, "cpuset") {
			if err := errors.Join(fillCpuset(top), fillCpuset(dir)); err != nil {
				return fault.Internal.Errorf("cgroup: %w", err)
			}
		}
		err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0o644)
		if err != nil {
			return fault.Internal.Errorf("enter cgroup %s: %w", dir, err)
		}
	}
	return nil
}

// delegate hands all controllers of a v2 group to its children. Each by
// itself: one that cannot be handed on must not keep the others back.
func delegate(dir string) {
	list, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return
	}
	for _, c := range strings.Fields(string(list)) {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644)
	}
}

// fillCpuset copies cpus and mems from the parent: a v1 cpuset begins empty,
// and nothing can enter it.
func fillCpuset(dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		now, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || strings.TrimSpace(string(now)) != "" {
			continue
		}
		parent, err := os.ReadFile(filepath.Join(filepath.Dir(dir), name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), parent, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// removeCgroups removes the machine's groups with all below them. Processes
// that still die are waited for a little.
func removeCgroups(id string) error {
	hs, err := ownHierarchies()
	if err != nil {
		return fmt.Errorf("cgroups: %w", err)
	}
	var errs []error
	for _, h := range hs {
		dir := filepath.Join(h.dir, "machine", id)
		leave(h.dir, dir)
		errs = append(errs, rmTree(dir))
		_ = os.Remove(filepath.Join(h.dir, "machine")) // when it was the last
	}
	return errors.Join(errs...)
}

// leaveCgroups moves this process to the roots of the hierarchies. What fails
// is told by what comes after.
func leaveCgroups(id string) {
	hs, err := ownHierarchies()
	if err != nil {
		return
	}
	for _, h := range hs {
		leave(h.dir, filepath.Join(h.dir, "machine", id))
	}
}

// leave moves this process out of dir, if it is there.
func leave(root, dir string) {
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return
	}
	self := strconv.Itoa(os.Getpid())
	for _, p := range strings.Fields(string(procs)) {
		if p == self {
			_ = os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte(self), 0o644)
		}
	}
}

func rmTree(dir string) error {
	var err error
	for range 150 {
		var dirs []string
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, walkErr error) error {
			if walkErr == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		err = nil
		for i := len(dirs) - 1; i >= 0; i-- {
			if rmErr := unix.Rmdir(dirs[i]); rmErr != nil && !errors.Is(rmErr, unix.ENOENT) {
				err = fmt.Errorf("remove cgroup %s: %w", dirs[i], rmErr)
			}
		}
		if err == nil || !errors.Is(err, unix.EBUSY) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}
