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
//	broken                     layers that could not be used, by their names
//
// A layer comes and goes by one rename, so it is whole or absent after a
// crash at any point; staging and trash are emptied when the store opens.
package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"

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
	root    string
	layers  string // root/overlay2
	staging string
	trash   string
	log     *slog.Logger
	bg      sync.WaitGroup
	sync    syncer

	discarded atomic.Int64 // names in the trash
	dirty     atomic.Int32 // the trash may hold something
	sweeping  sync.Mutex

	mu         sync.Mutex
	images     map[digest.Digest]*image
	containers map[string]digest.Digest // id to parent
	roots      map[string]*opened       // stopped containers' roots that are mounted
}

// An image layer on disk.
type image struct {
	model.Layer
	Moved map[int]string `json:",omitempty"` // see archive.LayerInfo
	Depth int

	dir   string
	users int // layers and containers on top
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

func (s *Store) initDiff() string { return filepath.Join(s.layers, "init", "diff") }
func (s *Store) empty() string    { return filepath.Join(s.layers, "init", "empty") }

// recordName is the file with an image layer's record.
const recordName = "layer.json"

// keepAside moves a layer that cannot be used out of the way: what is in it
// may be all there is of somebody's work.
func (s *Store) keepAside(dir string, why error) {
	to, err := keepAside(s.root, dir)
	s.log.Error("a layer cannot be used and was set aside", "dir", to, "reason", why, "err", err)
}

// keepAside moves dir to the folder of what cannot be used, and gives its name
// there. What was kept under that name before is replaced.
func keepAside(root, dir string) (to string, err error) {
	to = filepath.Join(root, brokenDir, filepath.Base(dir))
	if err = os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return to, err
	}
	err = unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
	if err == unix.ENOENT { // nothing is there
		return to, os.Rename(dir, to)
	}
	if err == nil { // the older one is where dir was
		err = errors.Join(archive.RemoveChildren(dir), os.Remove(dir))
	}
	return to, err
}

// brokenDir holds what could not be used, below the root.
const brokenDir = "broken"

// discard moves dir to the trash. On a full disk even the name there may find
// no room: then it is taken apart where it is, its record first.
func (s *Store) discard(dir string) error {
	for {
		name := filepath.Join(s.trash, fmt.Sprintf("%s-%d-%d", filepath.Base(dir), os.Getpid(), s.discarded.Add(1)))
		err := unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, name, unix.RENAME_NOREPLACE)
		switch {
		case err == unix.EEXIST || err == unix.EINTR:
			continue
		case err == unix.ENOENT:
			return nil
		case err != unix.ENOSPC && err != unix.EDQUOT:
			return err
		}
		break
	}
	for _, record := range []string{recordName, "parent"} {
		if err := os.Remove(filepath.Join(dir, record)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return errors.Join(archive.RemoveChildren(dir), os.Remove(dir))
}

// sweep has the trash emptied in the background, by one goroutine at a time.
func (s *Store) sweep() {
	if s.dirty.Swap(1) == 1 { // whoever is at it looks once more
		return
	}
	s.bg.Go(func() {
		s.sweeping.Lock()
		defer s.sweeping.Unlock()
		for s.dirty.Swap(0) == 1 {
			if err := archive.RemoveChildren(s.trash); err != nil {
				s.log.Warn("empty the trash of layers", "dir", s.trash, "err", err)
				return
			}
		}
	})
}

// Close waits for what runs in the background. No layer can be committed
// afterwards.
func (s *Store) Close() error {
	s.bg.Wait()
	return s.sync.f.Close()
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

// Parent gives the chain that a container's layer stands on; empty when there
// is no such container, or nothing below it.
func (s *Store) Parent(id string) digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.containers[id]
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
		return nil
	}
	top := filepath.Dir(dirs[0])
	out := map[string]string{"UpperDir": dirs[0], "WorkDir": filepath.Join(top, "work"), "MergedDir": filepath.Join(top, "merged")}
	if len(dirs) > 1 {
		out["LowerDir"] = strings.Join(dirs[1:], ":")
	}
	return out
}
