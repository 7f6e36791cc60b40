// Package blob keeps bytes by their digest. A blob is there whole and
// checked, or not there; one that is still arriving can be resumed by a later
// run. Layout: sha256/HEX for what is whole, partial/sha256-HEX for the rest.
package blob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/oci"
	"machine/agent/state"
)

// partialAge is how long the beginning of a blob waits for its rest.
const partialAge = 7 * 24 * time.Hour

// A Store keeps blobs in a folder. It is safe for concurrent use; only one
// process may have the folder open.
type Store struct {
	dir string

	mu   sync.Mutex
	busy map[digest.Digest]chan struct{} // closed when the writer is done
}

// Open opens the store in dir, made (0700) when absent. Partial blobs nobody
// has touched for a week are dropped.
func Open(dir string) (*Store, error) {
	for _, d := range []string{dir, filepath.Join(dir, "partial"), filepath.Join(dir, "sha256")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open blobs: %w", err)
		}
	}
	if err := state.Sweep(filepath.Join(dir, "sha256")); err != nil {
		return nil, fmt.Errorf("open blobs: %w", err)
	}
	s := &Store{dir: dir, busy: map[digest.Digest]chan struct{}{}}
	list, err := os.ReadDir(filepath.Join(dir, "partial"))
	if err != nil {
		return nil, fmt.Errorf("open blobs: %w", err)
	}
	for _, e := range list {
		if i, err := e.Info(); err == nil && time.Since(i.ModTime()) > partialAge {
			os.Remove(filepath.Join(dir, "partial", e.Name()))
		}
	}
	return s, nil
}

// At is the store that another process may have open in dir: nothing is made
// or swept. It is for Get and List alone.
func At(dir string) *Store { return &Store{dir: dir} }

func (s *Store) path(d digest.Digest) (string, error) {
	if _, err := oci.ParseDigest(string(d)); err != nil { // no "..": it becomes a file name
		return "", err
	}
	return filepath.Join(s.dir, string(d.Algorithm()), d.Encoded()), nil
}

// Put stores b, durably, and returns its digest. Safe to repeat.
func (s *Store) Put(b []byte) (digest.Digest, error) {
	d := digest.FromBytes(b)
	name, err := s.path(d)
	if err != nil {
		return "", err
	}
	if have, err := os.ReadFile(name); err == nil && bytes.Equal(have, b) { // not damaged meanwhile
		return d, nil
	}
	if err := state.WriteFile(name, b, 0o600); err != nil {
		return "", fmt.Errorf("store blob %s: %w", d, err)
	}
	return d, nil
}

// Get reads a small blob and checks it. NotFound when it is not there.
func (s *Store) Get(d digest.Digest) ([]byte, error) {
	name, err := s.path(d)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(name)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fault.NotFound.Errorf("blob %s is not here", d)
		}
		return nil, err
	}
	defer f.Close()
	b, err := oci.ReadLimited(f, oci.MaxManifest)
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", d, err)
	}
	if d.Algorithm().FromBytes(b) != d {
		return nil, fmt.Errorf("blob %s is damaged on disk: pull or load the image again", d)
	}
	return b, nil
}

// List gives the digests of all whole blobs.
func (s *Store) List() ([]digest.Digest, error) {
	var out []digest.Digest
	for _, a := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		list, err := os.ReadDir(filepath.Join(s.dir, a.String()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list blobs: %w", err)
		}
		for _, e := range list {
			if d := digest.NewDigestFromEncoded(a, e.Name()); d.Validate() == nil {
				out = append(out, d)
			}
		}
	}
	return out, nil
}

// Delete removes a blob, whole or partial. Safe to repeat.
func (s *Store) Delete(d digest.Digest) error {
	name, err := s.path(d)
	if err != nil {
		return err
	}
	for _, n := range []string{name, s.partial(d)} {
		if err := os.Remove(n); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("delete blob %s: %w", d, err)
		}
	}
	return nil
}

// Forget removes what has arrived of a blob that a writer fills. A blob that
// was Put stays. Safe to repeat.
func (s *Store) Forget(d digest.Digest) error {
	if _, err := s.path(d); err != nil {
		return err
	}
	if err := os.Remove(s.partial(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete blob %s: %w", d, err)
	}
	return nil
}

func (s *Store) partial(d digest.Digest) string {
	return filepath.Join(s.dir, "partial", string(d.Algorithm())+"-"+d.Encoded())
}

// Resume opens a blob for writing where an earlier writer left it, which may
// be at its end. While it is open, another Resume of the same blob waits, or
// fails when ctx ends. The caller closes it.
func (s *Store) Resume(ctx context.Context, d digest.Digest) (model.BlobWriter, error) {
	if _, err := s.path(d); err != nil {
		return nil, err
	}
	for {
		s.mu.Lock()
		ch, taken := s.busy[d]
		if !taken {
			s.busy[d] = make(chan struct{})
			s.mu.Unlock()
			break
		}
		s.mu.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	w := &writer{s: s, d: d}
	if err := w.open(); err != nil {
		w.Close()
		return nil, fmt.Errorf("blob %s: %w", d, err)
	}
	return w, nil
}

type writer struct {
	s      *Store
	d      digest.Digest
	f      *os.File
	off    int64
	hash   hash.Hash // of the first hashed bytes
	hashed int64
	once   sync.Once
}

func (w *writer) open() error {
	w.hash = w.d.Algorithm().Hash()
	f, err := os.OpenFile(w.s.partial(w.d), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	w.f = f
	w.off, err = f.Seek(0, io.SeekEnd)
	return err
}

func (w *writer) Offset() int64 { return w.off }

// Reader also takes what it reads into the digest, so that what came in an
// earlier run is read from the disk once only.
func (w *writer) Reader() io.Reader {
	return &again{w: w, end: w.off}
}

type again struct {
	w        *writer
	pos, end int64
}

func (a *again) Read(p []byte) (int, error) {
	if a.pos >= a.end {
		return 0, io.EOF
	}
	n, err := a.w.f.ReadAt(p[:min(int64(len(p)), a.end-a.pos)], a.pos)
	if a.pos == a.w.hashed {
		a.w.hash.Write(p[:n])
		a.w.hashed += int64(n)
	}
	a.pos += int64(n)
	if err == io.EOF && n > 0 {
		err = nil
	}
	return n, err
}

func (w *writer) Write(p []byte) (int, error) {
	n, err := w.f.WriteAt(p, w.off)
	if w.hashed == w.off {
		w.hash.Write(p[:n])
		w.hashed += int64(n)
	}
	w.off += int64(n)
	if err != nil {
		err = fmt.Errorf("write blob %s: %w", w.d, err)
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			err = fault.Unavailable.Errorf("%w", err)
		}
	}
	return n, err
}

func (w *writer) Reset() error {
	w.off, w.hashed = 0, 0
	w.hash.Reset()
	return w.f.Truncate(0)
}

func (w *writer) Check(ctx context.Context) error {
	if w.hashed < w.off { // began in an earlier run and was not read yet
		if _, err := io.Copy(io.Discard, &again{w: w, pos: w.hashed, end: w.off}); err != nil {
			return err
		}
	}
	if got := digest.NewDigest(w.d.Algorithm(), w.hash); got != w.d {
		w.Reset()
		return fault.Invalid.Errorf("blob %s arrived as %s: it was damaged or changed on the way", w.d, got)
	}
	return nil
}

func (w *writer) Close() error {
	w.once.Do(func() {
		if w.f != nil {
			w.f.Close()
			if w.off == 0 {
				os.Remove(w.s.partial(w.d))
			}
		}
		w.s.mu.Lock()
		ch := w.s.busy[w.d]
		delete(w.s.busy, w.d)
		w.s.mu.Unlock()
		close(ch)
	})
	return nil
}
