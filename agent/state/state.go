// Package state keeps typed records, one file each, atomic and durable.
//
// A record is written to a temporary file, fsynced, renamed over the old one,
// and its folder is fsynced: after a crash at any point the old record or the
// new one is there, whole. A record that cannot be read is set aside under
// the name ID.json.broken and reported; it never stops the others.
package state

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"machine/agent/fault"
)

// A Reserve is disk space set aside, so that records of what exists already
// can be saved when the disk is full: what is there can always be stopped and
// removed. It is safe for concurrent use.
type Reserve struct {
	mu   sync.Mutex
	name string
	size int64
}

// NewReserve sets size bytes aside in the file name. On a disk that is full
// already it goes without, until Refill finds room.
func NewReserve(name string, size int64) *Reserve {
	r := &Reserve{name: name, size: size}
	r.Refill()
	return r
}

// Refill sets the space aside again when there is room for twice as much.
// Safe to repeat.
func (r *Reserve) Refill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	var st unix.Stat_t
	if unix.Stat(r.name, &st) == nil && st.Size == r.size {
		return
	}
	var fs unix.Statfs_t
	if unix.Statfs(filepath.Dir(r.name), &fs) != nil || int64(fs.Bavail)*fs.Bsize < 2*r.size {
		return
	}
	f, err := os.OpenFile(r.name, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	if unix.Fallocate(int(f.Fd()), 0, 0, r.size) != nil {
		os.Remove(r.name)
	}
}

// use gives the space to whoever needs it now; false when it is used up.
func (r *Reserve) use() bool {
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return os.Remove(r.name) == nil
}

// A Store holds records of one type in memory and on disk. It is safe for
// concurrent use. Only one process may have a folder open.
type Store[T any] struct {
	dir    string
	folder folder
	res    *Reserve
	writes [16]sync.Mutex // of ids with that hash: writes of one keep their order
	mu     sync.RWMutex   // of recs
	recs   map[string]T
}

// Open reads all records of dir, which is made (0700) when absent. The second
// result has an error for each record that was set aside.
func Open[T any](dir string) (*Store[T], []error, error) {
	return OpenChecked(dir, func(string, *T) error { return nil })
}

// OpenChecked is Open for records that must hold more than JSON: one that
// check refuses is set aside, too.
func OpenChecked[T any](dir string, check func(id string, v *T) error) (*Store[T], []error, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("open records: %w", err)
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("open records: %w", err)
	}
	s := &Store[T]{dir: dir, folder: folder{name: dir}, recs: map[string]T{}}
	var broken []error
	for _, e := range list {
		name := filepath.Join(dir, e.Name())
		if leftover(e) {
			os.Remove(name)
			continue
		}
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || e.IsDir() {
			continue
		}
		v, err := read(name, id, check)
		if err != nil {
			broken = append(broken, fmt.Errorf("record %s set aside as %s: %w", name, filepath.Base(name)+aside, err))
			os.Rename(name, name+aside)
			continue
		}
		s.recs[id] = v
	}
	return s, broken, nil
}

// aside is what the name of a record that cannot be used ends in.
const aside = ".broken"

func read[T any](name, id string, check func(id string, v *T) error) (v T, err error) {
	b, err := os.ReadFile(name)
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err == nil {
		err = check(id, &v)
	}
	return v, err
}

// SetReserve lets records that exist already be saved on a full disk. Call it
// before the store is shared.
func (s *Store[T]) SetReserve(r *Reserve) { s.res = r }

// Broken tells whether a record of id was set aside.
func (s *Store[T]) Broken(id string) bool {
	_, err := os.Lstat(s.asideName(id))
	return err == nil
}

func (s *Store[T]) asideName(id string) string { return filepath.Join(s.dir, id+".json"+aside) }

// SetAside takes a record out of the store that can be read but not used.
// Its file stays, as that of one that cannot be read does.
func (s *Store[T]) SetAside(id string) error {
	l := s.lock(id)
	defer l.Unlock()
	if err := os.Rename(filepath.Join(s.dir, id+".json"), s.asideName(id)); err != nil {
		return fmt.Errorf("set record %s aside: %w", id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.recs, id)
	return nil
}

// AllBroken gives the ids of the records that were set aside, now or by an
// earlier process.
func (s *Store[T]) AllBroken() []string {
	names, _ := filepath.Glob(filepath.Join(s.dir, "*.json"+aside))
	for i, n := range names {
		names[i] = strings.TrimSuffix(filepath.Base(n), ".json"+aside)
	}
	return names
}

// Replaced deletes what was set aside under id: there is better now. Safe to
// repeat.
func (s *Store[T]) Replaced(id string) { os.Remove(s.asideName(id)) }

// Put stores v under id; when it returns nil the record is on disk. An id is
// a plain file name.
func (s *Store[T]) Put(id string, v T) error {
	if id == "" || strings.ContainsAny(id, "/\x00") || id[0] == '.' {
		return fault.Invalid.Errorf("record id %q is not a plain name", id)
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode record %s: %w", id, err)
	}
	l := s.lock(id)
	defer l.Unlock()
	name := filepath.Join(s.dir, id+".json")
	err = replace(name, b, 0o600)
	if _, exists := s.Get(id); exists && errors.Is(err, unix.ENOSPC) && s.res.use() {
		err = replace(name, b, 0o600)
	}
	if err == nil {
		err = s.folder.sync()
	}
	if err != nil {
		s.restore(id, name)
		return fmt.Errorf("save record %s: %w", id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recs[id] = v
	return nil
}

// restore has the disk say what memory says after a failed write: when the
// folder could not be synced, the new record is there under its name already.
// On a disk that fails it does what it can.
func (s *Store[T]) restore(id, name string) {
	old, exists := s.Get(id)
	if !exists {
		os.Remove(name)
		return
	}
	if b, err := json.Marshal(old); err == nil {
		if have, err := os.ReadFile(name); err != nil || !bytes.Equal(have, b) {
			_ = replace(name, b, 0o600)
		}
	}
}

// lock makes writers of the same record wait for each other.
func (s *Store[T]) lock(id string) *sync.Mutex {
	h := fnv.New32a()
	h.Write([]byte(id))
	l := &s.writes[h.Sum32()%uint32(len(s.writes))]
	l.Lock()
	return l
}

// Get returns the record of id.
func (s *Store[T]) Get(id string) (T, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	v, ok := s.recs[id]
	return v, ok
}

// Delete removes the record of id. It is safe to repeat. It does not wait for
// the disk: a power cut right behind it may bring the record back, as it was.
func (s *Store[T]) Delete(id string) error {
	l := s.lock(id)
	defer l.Unlock()
	if _, ok := s.Get(id); !ok {
		return nil
	}
	if err := unix.Unlink(filepath.Join(s.dir, id+".json")); err != nil && err != unix.ENOENT {
		return fmt.Errorf("delete record %s: %w", id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.recs, id)
	return nil
}

// All returns a copy of the table.
func (s *Store[T]) All() map[string]T {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return maps.Clone(s.recs)
}

// WriteFile writes a file so that after a crash it is the old one or the new
// one, whole: temporary file, fsync, rename, fsync of the folder. After an
// error of the last step the new one may be there. What a crash leaves of the
// temporary file, which is in the same folder, Sweep removes.
func WriteFile(name string, b []byte, perm os.FileMode) error {
	if err := replace(name, b, uint32(perm.Perm())); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(name))
}

// Sweep removes what is left in a folder of calls of WriteFile that a crash
// cut short. Nobody may write there meanwhile. Safe to repeat.
func Sweep(dir string) error {
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if leftover(e) {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
	return nil
}

// leftover reports whether e is a temporary file of replace's.
func leftover(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), tmpPrefix) }

const tmpPrefix = ".tmp-"

func syncFolder(name string) error {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Fsync(fd)
		unix.Close(fd)
	}
	if err != nil {
		return &os.PathError{Op: "fsync", Path: name, Err: err}
	}
	return nil
}

// replace is WriteFile up to the fsync of the folder.
func replace(name string, b []byte, perm uint32) error {
	tmp := filepath.Join(filepath.Dir(name), tmpPrefix+rand.Text())
	fd, err := unix.Open(tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "create", Path: tmp, Err: err}
	}
	if perm != 0o600 {
		err = unix.Fchmod(fd, perm)
	}
	for done := 0; err == nil && done < len(b); {
		var n int
		if n, err = unix.Write(fd, b[done:]); err == unix.EINTR {
			n, err = 0, nil
		}
		done += n
	}
	if err == nil {
		err = unix.Fdatasync(fd)
	}
	unix.Close(fd)
	if err == nil {
		err = unix.Rename(tmp, name)
	}
	if err != nil {
		unix.Unlink(tmp)
		return &os.PathError{Op: "write", Path: name, Err: err}
	}
	return nil
}

// A folder is fsynced for all who renamed something into it by whoever comes
// first: fifty containers that start at once need a few calls, not fifty.
type folder struct {
	name    string
	renamed atomic.Uint64
	mu      sync.Mutex
	synced  uint64 // how many of the renamed are on disk
}

// sync returns when what the caller renamed is on disk.
func (d *folder) sync() error {
	mine := d.renamed.Add(1)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.synced >= mine {
		return nil
	}
	all := d.renamed.Load()
	if err := syncFolder(d.name); err != nil {
		return err
	}
	d.synced = all
	return nil
}
