package overlay

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"machine/agent/archive"
	"machine/agent/fault"
	"machine/agent/model"
)

// maxNesting bounds the directories below each other that are walked: each
// costs descriptors, and a container may nest without end.
const maxNesting = 1000

// Changes compares a container's own layer with its image.
func (s *Store) Changes(ctx context.Context, id string) ([]model.Change, error) {
	r, err := s.Rootfs(id)
	if err != nil {
		return nil, err
	}
	low, release, err := s.mount(model.Rootfs{Lower: r.Lower}, "image of container "+id)
	if err != nil {
		return nil, fmt.Errorf("changes of container %s: %w", id, err)
	}
	defer release()
	up, err := os.Open(r.Upper)
	if err != nil {
		return nil, fmt.Errorf("changes of container %s: %w", id, err)
	}
	defer up.Close()
	c := &comparison{ctx: ctx}
	if err := c.dir(int(up.Fd()), int(low.Fd()), "", 0); err != nil {
		return nil, fmt.Errorf("changes of container %s: %w", id, err)
	}
	return c.list, nil
}

type comparison struct {
	ctx  context.Context
	list []model.Change
}

func openDir(dir int, name string) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func names(dir int) ([]string, error) {
	fd, err := openDir(dir, ".")
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "directory")
	defer f.Close()
	list, err := f.Readdirnames(-1)
	slices.Sort(list)
	return list, err
}

func lstat(dir int, name string) (st unix.Stat_t, err error) {
	for {
		err = unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err != unix.EINTR {
			return st, err
		}
	}
}

func isDir(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFDIR }

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// dir compares two open directories; low is -1 when there is none below.
func (c *comparison) dir(up, low int, at string, depth int) error {
	if depth > maxNesting {
		return fault.Invalid.Errorf("directories nest deeper than %d", maxNesting)
	}
	if err := c.ctx.Err(); err != nil {
		return err
	}
	ups, err := names(up)
	if err != nil {
		return err
	}
	all := ups
	b := make([]byte, 4)
	if n, err := unix.Fgetxattr(up, "trusted.overlay.opaque", b); low >= 0 && err == nil && n == 1 && b[0] == 'y' {
		lows, err := names(low)
		if err != nil {
			return err
		}
		all = slices.Compact(slices.Sorted(slices.Values(append(slices.Clone(ups), lows...))))
	}
	for _, n := range all {
		_, mine := slices.BinarySearch(ups, n)
		if err := c.entry(up, low, n, at+"/"+n, mine, depth); err != nil {
			return err
		}
	}
	return nil
}

func (c *comparison) entry(up, low int, name, at string, mine bool, depth int) error {
	var below unix.Stat_t
	hasBelow := false
	if low >= 0 {
		st, err := lstat(low, name)
		below, hasBelow = st, err == nil
	}
	if !mine {
		if hasBelow {
			c.list = append(c.list, model.Change{Kind: model.Deleted, Path: at})
		}
		return nil
	}
	st, err := lstat(up, name)
	if err != nil { // went away meanwhile
		return nil
	}
	if isWhiteout(&st) {
		if hasBelow {
			c.list = append(c.list, model.Change{Kind: model.Deleted, Path: at})
		}
		return nil
	}
	kind := model.Modified
	if !hasBelow {
		kind = model.Added
	}
	mark := len(c.list)
	c.list = append(c.list, model.Change{Kind: kind, Path: at})
	if !isDir(&st) {
		return nil
	}
	if err := c.below(up, low, name, at, hasBelow && isDir(&below), depth); err != nil {
		return err
	}
	// A directory that only leads to nothing new is not a change.
	if hasBelow && isDir(&below) && len(c.list) == mark+1 && same(&st, &below) {
		c.list = c.list[:mark]
	}
	return nil
}

func same(a, b *unix.Stat_t) bool {
	return a.Mode == b.Mode && a.Uid == b.Uid && a.Gid == b.Gid && a.Mtim == b.Mtim
}

func (c *comparison) below(up, low int, name, at string, both bool, depth int) error {
	fd, err := openDir(up, name)
	if err != nil {
		return nil // replaced meanwhile
	}
	defer unix.Close(fd)
	lfd := -1
	if both {
		if lfd, err = openDir(low, name); err != nil {
			return err
		}
		defer unix.Close(lfd)
	}
	return c.dir(fd, lfd, at, depth+1)
}

// DiffContainer packs a container's own layer.
func (s *Store) DiffContainer(ctx context.Context, id string) (io.ReadCloser, error) {
	r, err := s.Rootfs(id)
	if err != nil {
		return nil, err
	}
	up, err := os.Open(r.Upper)
	if err != nil {
		return nil, fmt.Errorf("diff of container %s: %w", id, err)
	}
	return generate(ctx, func(ctx context.Context, w io.Writer) error {
		err := archive.Pack(ctx, w, up, "/", archive.PackOptions{Flat: true, Whiteouts: true})
		if err != nil {
			return fmt.Errorf("diff of container %s: %w", id, err)
		}
		return nil
	}, func() { up.Close() }), nil
}

// Size adds up a container's own files.
func (s *Store) Size(ctx context.Context, id string) (int64, error) {
	r, err := s.Rootfs(id)
	if err != nil {
		return 0, err
	}
	up, err := os.Open(r.Upper)
	if err != nil {
		return 0, fmt.Errorf("size of container %s: %w", id, err)
	}
	defer up.Close()
	z := &sizer{ctx: ctx, seen: map[[2]uint64]bool{}}
	if err := z.dir(int(up.Fd()), 0); err != nil {
		return 0, fmt.Errorf("size of container %s: %w", id, err)
	}
	return z.n, nil
}

type sizer struct {
	ctx  context.Context
	seen map[[2]uint64]bool // files with several names
	n    int64
}

func (z *sizer) dir(fd, depth int) error {
	if depth > maxNesting {
		return nil
	}
	if err := z.ctx.Err(); err != nil {
		return err
	}
	list, err := names(fd)
	if err != nil {
		return err
	}
	for _, n := range list {
		st, err := lstat(fd, n)
		if err != nil {
			continue
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			key := [2]uint64{uint64(st.Dev), st.Ino}
			if st.Nlink > 1 && z.seen[key] {
				continue
			}
			if st.Nlink > 1 {
				z.seen[key] = true
			}
			z.n += st.Size
		case unix.S_IFLNK:
			z.n += st.Size
		case unix.S_IFDIR:
			sub, err := openDir(fd, n)
			if err != nil {
				continue
			}
			err = z.dir(sub, depth+1)
			unix.Close(sub)
			if err != nil {
				return err
			}
		}
	}
	return nil
}
