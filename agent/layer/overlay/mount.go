package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"machine/agent/model"
)

// OpenRoot mounts a stopped container's root for the returned descriptor
// only.
func (s *Store) OpenRoot(ctx context.Context, id string) (*os.File, func() error, error) {
	r, err := s.Rootfs(id)
	if err != nil {
		return nil, nil, err
	}
	root, release, err := s.mount(r, "root of container "+id)
	if err != nil {
		return nil, nil, fmt.Errorf("mount the root of container %s: %w", id, err)
	}
	return root, release, nil
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

// mount makes a detached overlay: no table of mounts shows it, and it is gone
// with its last descriptor.
func (s *Store) mount(r model.Rootfs, name string) (*os.File, func() error, error) {
	if len(r.Lower) == 1 && r.Upper == "" { // an overlay needs two
		f, err := os.Open(r.Lower[0])
		if err != nil {
			return nil, nil, err
		}
		return f, f.Close, nil
	}
	fd, err := fsmount(r)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		fd, err = s.oldMount(r) // before Linux 6.5 there is no lowerdir+
	}
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

func fsmount(r model.Rootfs) (int, error) {
	ctx, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(ctx)
	set := func(k, v string) {
		if err == nil {
			if err = unix.FsconfigSetString(ctx, k, v); err != nil {
				err = fmt.Errorf("overlay option %s=%s: %w", k, v, err)
			}
		}
	}
	set("source", "overlay")
	for _, l := range r.Lower {
		set("lowerdir+", l)
	}
	attr := unix.MOUNT_ATTR_RDONLY
	if r.Upper != "" {
		attr = 0
		set("upperdir", r.Upper)
		set("workdir", r.Work)
	}
	// What a host's module parameters may have switched on would put things
	// into upper that are no part of the image format.
	set("index", "off")
	set("metacopy", "off")
	set("redirect_dir", "off")
	if err != nil {
		return -1, err
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, fmt.Errorf("create overlay: %w", err)
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return -1, fmt.Errorf("fsmount overlay: %w", err)
	}
	// The descriptor of fsmount is O_PATH-like: reading the directory needs a
	// real one, which keeps the mount as well.
	defer unix.Close(fd)
	return unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// oldMount does the same with mount(2): names relative to the layers' folder,
// so that 125 of them fit in the page that it takes. The thread that changes
// its folder is not used again. The mount is visible for a moment, below our
// own staging.
func (s *Store) oldMount(r model.Rootfs) (int, error) {
	dir, err := os.MkdirTemp(s.staging, "m")
	if err != nil {
		return -1, err
	}
	defer os.Remove(dir)
	rel := func(p string) string {
		q, err := filepath.Rel(s.layers, p)
		if err != nil {
			return p
		}
		return q
	}
	var lower []string
	for _, l := range r.Lower {
		lower = append(lower, rel(l))
	}
	data := "lowerdir=" + strings.Join(lower, ":")
	flags := uintptr(unix.MS_RDONLY)
	if r.Upper != "" {
		flags = 0
		data += ",upperdir=" + rel(r.Upper) + ",workdir=" + rel(r.Work)
	}
	type result struct {
		fd  int
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var res result
		if res.err = unix.Unshare(unix.CLONE_FS); res.err == nil {
			res.err = unix.Chdir(s.layers)
		}
		if res.err == nil {
			res.err = unix.Mount("overlay", dir, "overlay", flags, data+",index=off,metacopy=off,redirect_dir=off")
		}
		if res.err == nil {
			res.fd, res.err = unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			res.err = errors.Join(res.err, unix.Unmount(dir, unix.MNT_DETACH))
		}
		done <- res
	}()
	res := <-done
	if res.err != nil {
		return -1, fmt.Errorf("mount overlay: %w", res.err)
	}
	return res.fd, nil
}
