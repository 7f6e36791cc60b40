package overlay

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"machine/agent/fault"
)

// Open opens the store below root, which is made (0700) when absent. A layer
// whose record cannot be read, or whose parent is gone, is set aside and
// reported in the log; Mend brings back what can be.
func Open(root string, log *slog.Logger) (*Store, error) {
	s := &Store{root: root, layers: filepath.Join(root, "overlay2"), staging: filepath.Join(root, "staging"),
		trash: filepath.Join(root, "trash"), log: log,
		images: map[digest.Digest]*image{}, containers: map[string]digest.Digest{}, roots: map[string]*opened{}}
	for _, d := range []string{root, s.layers, s.staging, s.trash} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open layers: %w", err)
		}
	}
	var err error
	if s.sync.f, err = os.Open(s.layers); err != nil {
		return nil, fmt.Errorf("open layers: %w", err)
	}
	spread(s.staging)
	if err := checkFS(s.layers); err != nil {
		return nil, err
	}
	if err := s.makeInit(); err != nil {
		return nil, fmt.Errorf("open layers: %w", err)
	}
	left, _ := os.ReadDir(s.staging)
	for _, e := range left {
		s.discard(filepath.Join(s.staging, e.Name()))
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("open layers: %w", err)
	}
	s.sweep()
	return s, nil
}

// checkFS refuses file systems that overlayfs cannot work on: whiteouts need
// file types in directory entries (ext and xfs made without them).
func checkFS(dir string) error {
	name := filepath.Join(dir, ".d_type")
	if err := os.MkdirAll(name, 0o700); err != nil {
		return err
	}
	defer os.Remove(name)
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 4096)
	for {
		n, err := unix.Getdents(int(f.Fd()), buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return err
		}
		for b := buf[:n]; len(b) > 19; {
			reclen := int(b[16]) | int(b[17])<<8
			entry, typ := string(b[19:min(reclen, len(b))]), b[18]
			entry, _, _ = strings.Cut(entry, "\x00")
			if entry != "." && entry != ".." && typ == unix.DT_UNKNOWN {
				return fault.Invalid.Errorf("the file system of %s does not support d_type, which overlay needs: format it with ftype=1, or choose another data root", dir)
			}
			b = b[reclen:]
		}
	}
}

// makeInit makes the lowest layer of every container: mount points that an
// image may lack, so that mounting on them changes no container's own layer.
func (s *Store) makeInit() error {
	diff := filepath.Join(s.layers, "init", "diff")
	if _, err := os.Stat(filepath.Join(diff, "etc", "mtab")); err == nil {
		return nil
	} else if _, err := os.Lstat(filepath.Join(diff, "etc", "mtab")); err == nil {
		return nil
	}
	for _, d := range []string{"", "dev/pts", "dev/shm", "proc", "sys", "etc"} {
		if err := os.MkdirAll(filepath.Join(diff, d), 0o755); err != nil {
			return err
		}
	}
	for _, d := range []string{"", "dev", "dev/pts", "dev/shm", "proc", "sys", "etc"} {
		if err := os.Chmod(filepath.Join(diff, d), 0o755); err != nil {
			return err
		}
	}
	for _, f := range []string{".dockerenv", "dev/console", "etc/resolv.conf", "etc/hosts", "etc/hostname"} {
		if err := os.WriteFile(filepath.Join(diff, f), nil, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(filepath.Join(diff, f), 0o755); err != nil {
			return err
		}
	}
	err := os.MkdirAll(s.empty(), 0o755)
	return errors.Join(err, os.Symlink("/proc/mounts", filepath.Join(diff, "etc", "mtab")))
}

// load takes up what is on disk.
func (s *Store) load() error {
	found, err := scan(s.layers)
	if err != nil {
		return err
	}
	for dir, why := range found.bad {
		s.keepAside(dir, why)
	}
	s.images, s.containers = found.images, found.containers
	for _, img := range s.images {
		if p := s.images[img.Parent]; p != nil {
			p.users++
		}
	}
	for id, p := range s.containers {
		if img := s.images[p]; img != nil {
			img.users++
		} else if p != "" {
			s.log.Error("the image layer of a container is gone", "container", id, "chain", p)
		}
	}
	return nil
}

// scanned is what a folder of layers holds.
type scanned struct {
	images     map[digest.Digest]*image
	containers map[string]digest.Digest // id to parent
	bad        map[string]error         // folders that cannot be used, and why
}

// scan reads all records and changes nothing.
func scan(layers string) (*scanned, error) {
	list, err := os.ReadDir(layers)
	if err != nil {
		return nil, err
	}
	s := &scanned{map[digest.Digest]*image{}, map[string]digest.Digest{}, map[string]error{}}
	for _, e := range list {
		name := e.Name()
		dir := filepath.Join(layers, name)
		if id, ok := strings.CutPrefix(name, "c-"); ok {
			target, err := os.Readlink(filepath.Join(dir, "parent"))
			if err != nil {
				s.bad[dir] = err
				continue
			}
			s.containers[id] = digest.Digest(strings.TrimPrefix(target, "none"))
			continue
		}
		if name == "init" || strings.HasPrefix(name, ".") || !e.IsDir() {
			continue
		}
		img, err := readImage(dir)
		if err != nil {
			s.bad[dir] = err
			continue
		}
		s.images[img.Chain] = img
	}
	s.dropOrphans()
	return s, nil
}

// readImage reads the record of an image layer.
func readImage(dir string) (*image, error) {
	img := &image{dir: dir}
	b, err := os.ReadFile(filepath.Join(dir, recordName))
	if err == nil {
		err = json.Unmarshal(b, img)
	}
	if err == nil && shortName(img.Chain) != filepath.Base(dir) {
		err = fmt.Errorf("the record is of chain %q", img.Chain)
	}
	return img, err
}

// dropOrphans takes out layers that have lost a layer below them.
func (s *scanned) dropOrphans() {
	for again := true; again; {
		again = false
		for c, img := range s.images {
			if img.Parent != "" && s.images[img.Parent] == nil {
				delete(s.images, c)
				s.bad[img.dir] = fmt.Errorf("the layer %s below it is gone", img.Parent)
				again = true
			}
		}
	}
}
