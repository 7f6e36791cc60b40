// Package overlay keeps layers for the kernel's overlayfs.
//
// Layout below its root:
//
//	overlay2/NAME/diff         files of an image layer; NAME begins its chain
//	overlay2/NAME/layer.json   its record
//	overlay2/NAME/skel.zst     its tar without the files' content
//	overlay2/NAME/displaced    files that the tar itself replaced
//	overlay2/c-ID/diff, work   upper and work directory of a container
//	overlay2/c-ID/parent       symlink that names the chain below it
//	overlay2/init/diff         mount points that every container has
//	staging, trash             not yet, and no longer, layers
//
// A layer comes and goes by one rename, so it is whole or absent after a
// crash at any point; staging and trash are emptied when the store opens.
package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"machine/agent/archive"
	"machine/agent/fault"
	"machine/agent/layer"
	"machine/agent/model"
)

var _ layer.Store = (*Store)(nil)

// A Store is layer storage on overlayfs. It is safe for concurrent use; only
// one process may have its root open.
type Store struct {
	root     string
	layers   string // root/overlay2
	staging  string
	trash    string
	log      *slog.Logger
	sweeping sync.Mutex
	bg       sync.WaitGroup
	sync     syncer

	mu         sync.Mutex
	images     map[digest.Digest]*image
	containers map[string]digest.Digest // id to parent
}

// An image layer on disk.
type image struct {
	model.Layer
	Moved map[int]string `json:",omitempty"` // see archive.LayerInfo
	Depth int

	dir   string
	users int // layers and containers on top
}

// Open opens the store below root, which is made (0700) when absent. A layer
// whose record cannot be read, or whose parent is gone, is set aside in the
// trash and reported in the log: its image must be pulled again.
func Open(root string, log *slog.Logger) (*Store, error) {
	s := &Store{root: root, layers: filepath.Join(root, "overlay2"), staging: filepath.Join(root, "staging"),
		trash: filepath.Join(root, "trash"), log: log,
		images: map[digest.Digest]*image{}, containers: map[string]digest.Digest{}}
	s.sync.dir = s.layers
	for _, d := range []string{root, s.layers, s.staging, s.trash} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open layers: %w", err)
		}
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

// topdir is FS_TOPDIR_FL of linux/fs.h.
const topdir = 0x20000

// spread asks ext4 to put each directory made in dir into a block group of
// its own (chattr +T), as it does for the top of a file system. Otherwise all
// layers crowd into the groups of their common parent, where finding a free
// inode costs up to 0.5 ms once many have come and gone. Other file systems
// know no such thing, and need none.
func spread(dir string) {
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil && flags&topdir == 0 {
		unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags|topdir))
	}
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

func (s *Store) initDiff() string { return filepath.Join(s.layers, "init", "diff") }
func (s *Store) empty() string    { return filepath.Join(s.layers, "init", "empty") }

// load reads all records.
func (s *Store) load() error {
	list, err := os.ReadDir(s.layers)
	if err != nil {
		return err
	}
	for _, e := range list {
		name := e.Name()
		dir := filepath.Join(s.layers, name)
		if id, ok := strings.CutPrefix(name, "c-"); ok {
			target, err := os.Readlink(filepath.Join(dir, "parent"))
			if err != nil {
				s.setAside(dir, err)
				continue
			}
			s.containers[id] = digest.Digest(strings.TrimPrefix(target, "none"))
			continue
		}
		if name == "init" || strings.HasPrefix(name, ".") || !e.IsDir() {
			continue
		}
		img := &image{dir: dir}
		b, err := os.ReadFile(filepath.Join(dir, "layer.json"))
		if err == nil {
			err = json.Unmarshal(b, img)
		}
		if err == nil && shortName(img.Chain) != name {
			err = fmt.Errorf("the record is of chain %q", img.Chain)
		}
		if err != nil {
			s.setAside(dir, err)
			continue
		}
		s.images[img.Chain] = img
	}
	s.dropOrphans()
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

// dropOrphans sets layers aside that have lost a layer below them.
func (s *Store) dropOrphans() {
	for again := true; again; {
		again = false
		for c, img := range s.images {
			if img.Parent != "" && s.images[img.Parent] == nil {
				delete(s.images, c)
				s.setAside(img.dir, fmt.Errorf("the layer %s below it is gone", img.Parent))
				again = true
			}
		}
	}
}

func (s *Store) setAside(dir string, err error) {
	s.log.Error("layer set aside: pull or load its image again", "dir", dir, "err", err)
	s.discard(dir)
}

// discard moves dir to the trash.
func (s *Store) discard(dir string) error {
	f, err := os.MkdirTemp(s.trash, "x")
	if err != nil {
		return err
	}
	err = os.Rename(dir, filepath.Join(f, "x"))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return err
}

// sweep empties the trash in the background.
func (s *Store) sweep() {
	s.bg.Add(1)
	go func() {
		defer s.bg.Done()
		s.sweeping.Lock() // one at a time: two would trip over each other
		defer s.sweeping.Unlock()
		if err := archive.RemoveChildren(s.trash); err != nil {
			s.log.Warn("empty the trash of layers", "dir", s.trash, "err", err)
		}
	}()
}

// Close waits for what runs in the background.
func (s *Store) Close() error {
	s.bg.Wait()
	return nil
}

func shortName(chain digest.Digest) string {
	h := chain.Encoded()
	return h[:min(len(h), 16)]
}

// Has tells whether a layer is there.
func (s *Store) Has(chain digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return chain == "" || s.images[chain] != nil
}

// Get returns a layer's record.
func (s *Store) Get(chain digest.Digest) (model.Layer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	img := s.images[chain]
	if img == nil {
		return model.Layer{}, fault.NotFound.Errorf("layer %s does not exist", chain)
	}
	return img.Layer, nil
}

// List gives all image layers.
func (s *Store) List() []model.Layer {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]model.Layer, 0, len(s.images))
	for _, img := range s.images {
		list = append(list, img.Layer)
	}
	return list
}

// Release removes an image layer.
func (s *Store) Release(ctx context.Context, chain digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	img := s.images[chain]
	if img == nil {
		return nil
	}
	if img.users > 0 {
		return fault.Conflict.Errorf("layer %s is in use by %d others", chain, img.users)
	}
	if err := s.discard(img.dir); err != nil {
		return fmt.Errorf("remove layer %s: %w", chain, err)
	}
	delete(s.images, chain)
	if p := s.images[img.Parent]; p != nil {
		p.users--
	}
	s.sweep()
	return nil
}

// stack gives the layers of a chain, topmost first. s.mu is held.
func (s *Store) stack(chain digest.Digest) ([]*image, error) {
	var list []*image
	for c := chain; c != ""; {
		img := s.images[c]
		if img == nil {
			return nil, fault.NotFound.Errorf("layer %s does not exist", c)
		}
		list = append(list, img)
		c = img.Parent
	}
	return list, nil
}

func (s *Store) diffs(chain digest.Digest) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list, err := s.stack(chain)
	if err != nil {
		return nil, err
	}
	dirs := make([]string, len(list))
	for i, img := range list {
		dirs[i] = filepath.Join(img.dir, "diff")
	}
	return dirs, nil
}

var plainName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// Create makes a container's writable layer.
func (s *Store) Create(ctx context.Context, id string, parent digest.Digest) (err error) {
	if !plainName.MatchString(id) {
		return fault.Invalid.Errorf("container id %q is not a plain name", id)
	}
	tmp, err := os.MkdirTemp(s.staging, "c")
	if err != nil {
		return fmt.Errorf("create layer of container %s: %w", id, err)
	}
	defer func() {
		if err != nil {
			os.RemoveAll(tmp)
		}
	}()
	for _, d := range []string{"diff", "work"} {
		if err := os.Mkdir(filepath.Join(tmp, d), 0o755); err != nil {
			return fmt.Errorf("create layer of container %s: %w", id, err)
		}
	}
	target := string(parent)
	if target == "" {
		target = "none"
	}
	if err := os.Symlink(target, filepath.Join(tmp, "parent")); err != nil {
		return fmt.Errorf("create layer of container %s: %w", id, err)
	}
	from, err := s.diffs(parent)
	if err != nil {
		return fmt.Errorf("create layer of container %s: %w", id, err)
	}
	if err := inheritRoot(filepath.Join(tmp, "diff"), append(from, s.initDiff())); err != nil {
		return fmt.Errorf("create layer of container %s: %w", id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.containers[id]; ok {
		return fault.Conflict.Errorf("container %s has a layer already", id)
	}
	if parent != "" && s.images[parent] == nil {
		return fault.NotFound.Errorf("layer %s does not exist", parent)
	}
	if err := os.Rename(tmp, s.containerDir(id)); err != nil {
		return fmt.Errorf("create layer of container %s: %w", id, err)
	}
	s.containers[id] = parent
	if img := s.images[parent]; img != nil {
		img.users++
	}
	return nil
}

// inheritRoot gives the upper directory the attributes of the image's root:
// the merged root shows the upper's.
func inheritRoot(diff string, from []string) error {
	to, err := os.Open(diff)
	if err != nil {
		return err
	}
	defer to.Close()
	f, err := os.Open(from[0])
	if err != nil {
		return err
	}
	defer f.Close()
	if err := to.Chmod(0o755); err != nil {
		return err
	}
	return archive.CopyAttributes(to, ".", []*os.File{f})
}

func (s *Store) containerDir(id string) string { return filepath.Join(s.layers, "c-"+id) }

func (s *Store) parentOf(id string) (digest.Digest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.containers[id]
	if !ok {
		return "", fault.NotFound.Errorf("container %s has no layer", id)
	}
	return p, nil
}

// Rootfs tells how to mount a container's root.
func (s *Store) Rootfs(id string) (model.Rootfs, error) {
	parent, err := s.parentOf(id)
	if err != nil {
		return model.Rootfs{}, err
	}
	lower, err := s.diffs(parent)
	if err != nil {
		return model.Rootfs{}, fmt.Errorf("root of container %s: %w", id, err)
	}
	dir := s.containerDir(id)
	return model.Rootfs{Lower: append(lower, s.initDiff()), Upper: filepath.Join(dir, "diff"), Work: filepath.Join(dir, "work")}, nil
}

// Containers gives the ids of all containers that have a layer.
func (s *Store) Containers() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]string, 0, len(s.containers))
	for id := range s.containers {
		ids = append(ids, id)
	}
	return ids
}

// Remove removes a container's layer.
func (s *Store) Remove(ctx context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	parent, ok := s.containers[id]
	if !ok {
		return nil
	}
	if err := s.discard(s.containerDir(id)); err != nil {
		return fmt.Errorf("remove layer of container %s: %w", id, err)
	}
	delete(s.containers, id)
	if img := s.images[parent]; img != nil {
		img.users--
	}
	s.sweep()
	return nil
}

// GraphDriver gives what inspect shows.
func (s *Store) GraphDriver(id string) (map[string]string, error) {
	r, err := s.Rootfs(id)
	if err != nil {
		return nil, err
	}
	return map[string]string{
		"LowerDir":  strings.Join(r.Lower, ":"),
		"UpperDir":  r.Upper,
		"WorkDir":   r.Work,
		"MergedDir": filepath.Join(s.containerDir(id), "merged"),
	}, nil
}

// ImageDriver gives what inspect shows of an image whose top layer is chain.
func (s *Store) ImageDriver(chain digest.Digest) map[string]string {
	dirs, err := s.diffs(chain)
	if err != nil || len(dirs) == 0 {
		return map[string]string{}
	}
	top := filepath.Dir(dirs[0])
	out := map[string]string{"UpperDir": dirs[0], "WorkDir": filepath.Join(top, "work"), "MergedDir": filepath.Join(top, "merged")}
	if len(dirs) > 1 {
		out["LowerDir"] = strings.Join(dirs[1:], ":")
	}
	return out
}
