package transfer

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// sender walks a tree and sends it.
type sender struct {
	*wire
	order Order
	tell  Progress
	stats Stats
	list  []entry       // delta: what was announced, by index
	above []fs.FileInfo // the folders that we are in
	buf   []byte
}

// within tells whether a folder is one that we are in: a link made it so.
func (s *sender) within(dir fs.FileInfo) bool {
	return slices.ContainsFunc(s.above, func(up fs.FileInfo) bool { return os.SameFile(up, dir) })
}

func send(c *wire, o Order, tell Progress) (Stats, error) {
	if tell == nil {
		tell = func(string, int64) {}
	}
	s := &sender{wire: c, order: o, tell: tell, buf: make([]byte, piece)}
	info, err := os.Stat(o.Path)
	if err != nil {
		return s.stats, err
	}
	if info.IsDir() && !o.Recursive {
		return s.stats, fmt.Errorf("%s: is a directory: use -r", o.Path)
	}
	root := []byte{0}
	if info.IsDir() {
		root[0] = 1
	}
	if err := c.send(kindRoot, append(root, baseName(o.Path)...)); err != nil {
		return s.stats, err
	}
	if err := s.walk("", info); err != nil {
		return s.stats, err
	}
	if err := errors.Join(c.send(kindDone, []byte(rolling)), c.flush()); err != nil {
		return s.stats, err
	}
	if o.Delta {
		if err := s.answer(); err != nil {
			return s.stats, err
		}
	}
	kind, _, err := c.recv()
	if err == nil && kind != kindOK {
		err = strange(kind)
	}
	return s.stats, err
}

// baseName is the name under which scp puts p into a folder; "." for what is
// in it.
func baseName(p string) string {
	p = filepath.ToSlash(p)
	if strings.HasSuffix(p, "/.") || p == "." {
		return "."
	}
	return path.Base(path.Clean(p))
}

func (s *sender) path(rel string) string {
	if rel == "" {
		return s.order.Path
	}
	return filepath.Join(s.order.Path, filepath.FromSlash(rel))
}

func (s *sender) walk(rel string, info fs.FileInfo) error {
	e := entry{rel: rel, mode: info.Mode(), time: info.ModTime(), size: info.Size()}
	if !info.IsDir() {
		return s.file(e, info)
	}
	if err := s.send(kindDir, e.encode()); err != nil {
		return err
	}
	s.above = append(s.above, info)
	defer func() { s.above = s.above[:len(s.above)-1] }()
	entries, err := os.ReadDir(s.path(rel))
	if err != nil {
		return err
	}
	for _, d := range entries {
		child := path.Join(rel, d.Name())
		fi, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // it went while we walked
		}
		if err == nil && fi.Mode()&fs.ModeSymlink != 0 {
			fi, err = os.Stat(s.path(child)) // as scp: what it points to
		}
		if err != nil {
			return err
		}
		if fi.IsDir() && s.within(fi) {
			continue // a link that leads back to where we are: it has no end
		}
		if !fi.IsDir() && !fi.Mode().IsRegular() {
			return fmt.Errorf("%s: not a regular file", s.path(child))
		}
		if err := s.walk(child, fi); err != nil {
			return err
		}
	}
	return nil
}

func (s *sender) file(e entry, info fs.FileInfo) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s: not a regular file", s.path(e.rel))
	}
	if err := s.send(kindFile, e.encode()); err != nil {
		return err
	}
	if s.order.Delta {
		s.list = append(s.list, e)
		return nil
	}
	return s.data(e, have{})
}

// answer sends what the receiver wants, until it is done.
func (s *sender) answer() error {
	for {
		kind, payload, err := s.recv()
		if err != nil {
			return err
		}
		if kind == kindDone {
			s.stats.Skipped = len(s.list) - s.stats.Files
			return errors.Join(s.send(kindDone, nil), s.flush())
		}
		index, n := binary.Uvarint(payload)
		if kind != kindWant && kind != kindSums || n <= 0 || index >= uint64(len(s.list)) {
			return strange(kind)
		}
		h := have{aligned: true}
		if kind == kindWant {
			h.hashes = bytes.Clone(payload[n:])
		} else if h.sig, err = readSignature(payload[n:]); err != nil {
			return err
		}
		e := s.list[index]
		if err := s.send(kindFile, e.encode()); err != nil {
			return err
		}
		if err := s.data(e, h); err != nil {
			return err
		}
		// The receiver may wait for this before it asks for more.
		if s.r.Buffered() == 0 {
			if err := s.flush(); err != nil {
				return err
			}
		}
	}
}

// have is what the receiver has of a file.
type have struct {
	aligned bool       // it wants blocks
	hashes  []byte     // of blocks, each at its own place
	sig     *signature // of blocks, wherever they are
}

// data sends a file's content. Holes travel as their length, and so do the
// blocks that the receiver has.
func (s *sender) data(e entry, has have) error {
	name := s.path(e.rel)
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	s.tell(name, 0)
	s.stats.Files++
	holes := sparse(f)
	if has.sig != nil {
		return s.roll(f, has.sig, holes)
	}
	buf := s.buf
	if has.aligned {
		buf = buf[:blockSize]
	}
	for off := int64(0); ; {
		if hole := holes(f, off); hole > 0 {
			if err := s.sendInt(kindHole, hole); err != nil {
				return err
			}
			off += hole
			continue
		}
		n, err := readBlock(f, buf, off, has.aligned)
		if n > 0 {
			if err := s.block(buf[:n], off, has.hashes); err != nil {
				return err
			}
			off += int64(n)
		}
		if errors.Is(err, io.EOF) {
			return s.send(kindEnd, nil)
		}
		if err != nil {
			return err
		}
	}
}

// readBlock reads at off; with aligned, no further than the block's end.
func readBlock(f *os.File, buf []byte, off int64, aligned bool) (int, error) {
	if aligned {
		buf = buf[:blockSize-off%blockSize]
	}
	return f.ReadAt(buf, off)
}

func (s *sender) block(b []byte, off int64, hashes []byte) error {
	if at := off / blockSize * hashSize; off%blockSize == 0 && at+hashSize <= int64(len(hashes)) {
		if sum := blockSum(b); bytes.Equal(sum[:], hashes[at:at+hashSize]) {
			s.stats.Kept += int64(len(b))
			return s.sendInt(kindKeep, int64(len(b)))
		}
	}
	s.stats.Sent += int64(len(b))
	s.tell("", int64(len(b)))
	return s.send(kindData, b)
}

// blockSum is half of a SHA-256 over the block and its length.
func blockSum(b []byte) (sum [hashSize]byte) {
	h := sha256.New()
	_, _ = h.Write(b)
	_, _ = h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
	copy(sum[:], h.Sum(nil))
	return sum
}
