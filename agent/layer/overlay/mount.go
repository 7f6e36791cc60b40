package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"machine/agent/aside"
	"machine/agent/fault"
	"machine/agent/model"
)

// opened is the root of a stopped container, mounted for all who want it at
// the same time: two overlays on one upper directory would spoil each other.
type opened struct {
	mu    sync.Mutex
	root  *os.File // nil before the first, and after an error
	users int      // guarded by Store.mu
}

// OpenRoot mounts a stopped container's root for the returned descriptor
// only.
func (s *Store) OpenRoot(ctx context.Context, id string) (*os.File, func() error, error) {
	r, err := s.Rootfs(id)
	if err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	o := s.roots[id]
	if o == nil {
		o = &opened{}
		s.roots[id] = o
	}
	o.users++
	s.mu.Unlock()
	leave := func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if o.users--; o.users > 0 {
			return nil
		}
		delete(s.roots, id)
		return o.root.Close() // of nil it says so
	}
	f, err := o.open(func() (*os.File, error) {
		f, _, err := s.mount(r, "root of container "+id)
		return f, err
	})
	if err != nil {
		leave()
		return nil, nil, fmt.Errorf("mount the root of container %s: %w", id, err)
	}
	return f, sync.OnceValue(func() error { return errors.Join(f.Close(), leave()) }), nil
}

// open gives a descriptor of its own, and mounts if that was not done.
func (o *opened) open(mount func() (*os.File, error)) (_ *os.File, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.root == nil {
		if o.root, err = mount(); err != nil {
			o.root = nil
			return nil, err
		}
	}
	fd, err := unix.Openat(int(o.root.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), o.root.Name()), nil
}

// OpenImage mounts an image's layers read-only for the returned descriptor
// only.
func (s *Store) OpenImage(ctx context.Context, chain digest.Digest) (*os.File, func() error, error) {
	lower, err := s.diffs(chain)
	if err != nil {
		return nil, nil, err
	}
	root, release, err := s.mount(model.Rootfs{Lower: append(lower, s.empty())}, "image "+string(chain))
	if err != nil {
		return nil, nil, fmt.Errorf("mount image layer %s: %w", chain, err)
	}
	return root, release, nil
}

// ImageRootfs tells how to mount an image's layers.
func (s *Store) ImageRootfs(chain digest.Digest) (model.Rootfs, error) {
	lower, err := s.diffs(chain)
	if err != nil {
		return model.Rootfs{}, fmt.Errorf("mount image layer %s: %w", chain, err)
	}
	return model.Rootfs{Lower: append(lower, s.empty()), Readonly: true}, nil
}

// CanMap tells whether this kernel and the file system of the store can mount
// layers with the ids of the user namespace that owns the namespace owner; ids
// are its map. Unavailable says why not.
func (s *Store) CanMap(owner *os.File, ids *model.IDMap) error {
	ns, err := aside.OwnerOf(int(owner.Fd()))
	if err != nil {
		return fmt.Errorf("user namespace: %w", err)
	}
	defer unix.Close(ns)
	r := model.Rootfs{Lower: []string{s.initDiff(), s.empty()}, Mapped: true}
	err = aside.Mapped(ns, ids.UID, ids.GID, r.Lower, func() error {
		_, release, err := s.mount(r, "test")
		if err != nil {
			return err
		}
		return release()
	})
	if err != nil {
		return fault.Unavailable.Errorf("layers of %s cannot be mounted with mapped ids, which needs Linux 5.19 or newer and a file system like ext4, xfs or btrfs: %w", s.layers, err)
	}
	return nil
}

// mount makes a detached overlay: no table of mounts shows it, and it is gone
// with its last descriptor.
func (s *Store) mount(r model.Rootfs, name string) (*os.File, func() error, error) {
	o := aside.Overlay{Lower: r.Lower, Upper: r.Upper, Work: r.Work, Mapped: r.Mapped}
	tree, err := o.Mount()
	if err != nil {
		return nil, nil, err
	}
	// A mount's descriptor is O_PATH-like: reading the directory needs a real
	// one, which keeps the mount as well.
	defer unix.Close(tree)
	fd, err := unix.Openat(tree, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	var once sync.Once
	return f, func() (err error) {
		once.Do(func() { err = f.Close() })
		return err
	}, nil
}
