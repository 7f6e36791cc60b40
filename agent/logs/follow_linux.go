package logs

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"machine/agent/fault"
)

// A watcher tells of changes in a log's directory.
type watcher struct {
	f    *os.File
	wake chan struct{}
	done chan struct{}
}

// newWatcher watches the directory of path, which need not exist yet: then it
// wakes by time only.
func newWatcher(path string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fault.Unavailable.Errorf("watch log %s: %w", path, err)
	}
	w := &watcher{f: os.NewFile(uintptr(fd), "inotify"), wake: make(chan struct{}, 1), done: make(chan struct{})}
	_, _ = unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_MOVED_FROM)
	go w.run()
	return w, nil
}

func (w *watcher) run() {
	defer close(w.done)
	buf := make([]byte, 4096)
	for {
		if _, err := w.f.Read(buf); err != nil {
			return
		}
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

func (w *watcher) close() {
	w.f.Close()
	<-w.done
}

// follow goes on after the files that there were, from the scanner of the
// current one, which is nil when there was none.
func (r *reader) follow(w *watcher, s *scanner, done <-chan struct{}) error {
	bound, stop := until(r.opt)
	defer stop()
	// For a kernel out of watches, and a directory that did not exist.
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var owned *os.File
	defer func() {
		if owned != nil {
			owned.Close()
		}
	}()
	advance := func() error {
		for {
			next, err := r.step(s)
			if err != nil || next == nil {
				return err
			}
			if owned != nil {
				owned.Close()
			}
			owned = next
			s = newScanner(next, r.decode)
		}
	}
	for {
		// Looked at before reading: what was written before it was closed is
		// then read.
		ended := false
		select {
		case <-done:
			ended = true
		default:
		}
		if err := advance(); err != nil {
			return err
		}
		if ended {
			return nil
		}
		select {
		case <-w.wake:
		case <-tick.C:
		case <-done:
		case <-bound:
			return errStop
		case <-r.ctx.Done():
			return r.ctx.Err()
		}
	}
}

// step reads what the current file has, and gives the file to go on with when
// it was rotated away.
func (r *reader) step(s *scanner) (*os.File, error) {
	if s == nil {
		f, err := os.Open(r.cfg.Path)
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return f, err
	}
	moved := inode(r.cfg.Path) != inodeOf(s.f)
	if !moved && s.truncated() {
		s.restart()
	}
	if err := r.drain(s); err != nil {
		return nil, err
	}
	if !moved {
		return nil, nil
	}
	return r.successor(inodeOf(s.f))
}

// successor opens the file that was begun after the one with the given inode.
func (r *reader) successor(ino uint64) (*os.File, error) {
	for i := 1; i < max(r.cfg.MaxFiles, 1); i++ {
		if inode(r.cfg.Path+"."+strconv.Itoa(i)) != ino {
			continue
		}
		if i > 1 {
			if f, err := r.rotated(i - 1); err == nil {
				return f, nil
			}
		}
		break
	}
	f, err := os.Open(r.cfg.Path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // between rename and creation: the next wake finds it
	}
	return f, err
}
