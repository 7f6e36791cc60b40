package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"machine/agent/transfer"
)

// A Place is one end of a copy: a path here, or on a machine.
type Place struct {
	Machine string // empty: this computer
	User    string // empty: the machine's
	Path    string
}

// ParsePlace reads [[user@]machine:]path. "localhost:" and no colon mean this
// computer; so does a drive letter, if letters says that there are such.
func ParsePlace(s string, letters bool) Place {
	host, p, ok := strings.Cut(s, ":")
	if !ok || letters && len(host) == 1 || strings.ContainsAny(host, `/\`) {
		return Place{Path: s}
	}
	if host == "localhost" {
		return Place{Path: p}
	}
	pl := Place{Machine: host, Path: p}
	if user, name, ok := strings.Cut(host, "@"); ok {
		pl.User, pl.Machine = user, name
	}
	if pl.Path == "" {
		pl.Path = "."
	}
	return pl
}

// CopyOptions say how to copy.
type CopyOptions struct {
	Recursive bool
	Delta     bool // only what differs: files by size and time, then their blocks by hash
	// Direct lets the one machine send to the other without passing here.
	Direct bool
	// Progress is told of files as they begin, and of bytes; nil for quiet.
	Progress transfer.Progress
}

// tree is a file system at one end. Names are of the end's own kind; they are
// never handed to a shell.
type tree interface {
	Stat(name string) (fs.FileInfo, error)
	List(name string) ([]fs.FileInfo, error)
	Open(name string) (io.ReadCloser, error)
	// Write replaces a file; the old one stays until the new one is whole.
	Write(name string, r io.Reader, info fs.FileInfo, keepTime bool) error
	Mkdir(name string, mode fs.FileMode) error
	// Real is the path without links.
	Real(name string) (string, error)
}

// Copy copies files between machines and this computer. Where agents are, it is
// they who read and write; else it goes over SSH's file service, and no program
// is needed at the other end. Names are literal either way.
func (m *Manager) Copy(ctx context.Context, src, dst Place, o CopyOptions) (transfer.Stats, error) {
	from, err := m.end(ctx, src)
	if err != nil {
		return transfer.Stats{}, err
	}
	defer from.close()
	to, err := m.end(ctx, dst)
	if err != nil {
		return transfer.Stats{}, err
	}
	defer to.close()
	stats, err := fastCopy(ctx, from, to, o)
	if !errors.Is(err, errNoAgent) {
		return stats, err
	}
	m.Log.Debug("no agent to copy with", "error", err)
	return m.slowCopy(ctx, from, to, o)
}

// slowCopy goes file by file, over SFTP.
func (m *Manager) slowCopy(ctx context.Context, src, dst *end, o CopyOptions) (transfer.Stats, error) {
	from, joinFrom, closeFrom, err := src.tree(ctx)
	if err != nil {
		return transfer.Stats{}, err
	}
	defer closeFrom()
	to, joinTo, closeTo, err := dst.tree(ctx)
	if err != nil {
		return transfer.Stats{}, err
	}
	defer closeTo()
	info, err := from.Stat(src.Path)
	if err != nil {
		return transfer.Stats{}, fmt.Errorf("scp %s: %w", src.Path, err)
	}
	target := dst.Path
	if di, err := to.Stat(target); err == nil && di.IsDir() {
		// As scp: into a folder that is there, under its own name; but
		// DIR/. means what is in it.
		if base := baseName(src.Path, joinFrom); base != "." && base != ".." {
			target = joinTo(target, base)
		}
	}
	c := copier{ctx: ctx, from: from, to: to, joinFrom: joinFrom, joinTo: joinTo, CopyOptions: o}
	err = c.copy(src.Path, target, info)
	return c.stats, err
}

func baseName(p string, join func(...string) string) string {
	if strings.HasSuffix(p, "/.") || p == "." {
		return "."
	}
	p = join(p)
	if i := strings.LastIndexAny(p, `/`+string(os.PathSeparator)); i >= 0 {
		return p[i+1:]
	}
	return p
}

// maxDepth is OpenSSH's, for servers that do not know what is a link.
const maxDepth = 64

type copier struct {
	CopyOptions
	ctx              context.Context //nolint:containedctx // lives as long as one Copy
	from, to         tree
	joinFrom, joinTo func(...string) string
	stats            transfer.Stats
	above            []string // the folders that we are in, without links
}

func (c *copier) copy(src, dst string, info fs.FileInfo) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	if info.IsDir() {
		return c.copyDir(src, dst, info)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("scp %s: not a regular file", src)
	}
	if c.Delta {
		if old, err := c.to.Stat(dst); err == nil && old.Mode().IsRegular() && old.Size() == info.Size() && old.ModTime().Unix() == info.ModTime().Unix() {
			c.stats.Skipped++
			c.stats.Kept += info.Size()
			return nil
		}
	}
	r, err := c.from.Open(src)
	if err != nil {
		return fmt.Errorf("scp %s: %w", src, err)
	}
	defer func() { _ = r.Close() }()
	if err := c.to.Write(dst, r, info, true); err != nil {
		return fmt.Errorf("scp to %s: %w", dst, err)
	}
	c.stats.Files++
	c.stats.Sent += info.Size()
	if c.Progress != nil {
		c.Progress(src, info.Size())
	}
	return nil
}

func (c *copier) copyDir(src, dst string, info fs.FileInfo) error {
	if !c.Recursive {
		return fmt.Errorf("scp: %s: is a directory: use -r", src)
	}
	real, err := c.from.Real(src)
	if err != nil {
		return fmt.Errorf("scp %s: %w", src, err)
	}
	if slices.Contains(c.above, real) || len(c.above) == maxDepth {
		return nil // a link that leads back to where we are: it has no end
	}
	c.above = append(c.above, real)
	defer func() { c.above = c.above[:len(c.above)-1] }()
	if err := c.to.Mkdir(dst, info.Mode().Perm()|0o700); err != nil {
		return fmt.Errorf("scp to %s: %w", dst, err)
	}
	list, err := c.from.List(src)
	if err != nil {
		return fmt.Errorf("scp %s: %w", src, err)
	}
	for _, fi := range list {
		name := fi.Name()
		// A server that answers with paths wants to write elsewhere (CVE-2019-6111).
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || strings.ContainsRune(name, os.PathSeparator) {
			return fmt.Errorf("scp %s: the host lists the name %q, which is not one", src, name)
		}
		if fi.Mode()&fs.ModeSymlink != 0 {
			// As scp: what it points to, and links to nowhere are told.
			if fi, err = c.from.Stat(c.joinFrom(src, name)); err != nil {
				return fmt.Errorf("scp %s: %w", c.joinFrom(src, name), err)
			}
		}
		if err := c.copy(c.joinFrom(src, name), c.joinTo(dst, name), fi); err != nil {
			return err
		}
	}
	return nil
}

// localTree is this computer.
type localTree struct{}

func (localTree) Stat(name string) (fs.FileInfo, error) { return os.Stat(name) }

func (localTree) Real(name string) (string, error) {
	name, err := filepath.EvalSymlinks(name)
	if err != nil {
		return "", err
	}
	return filepath.Abs(name)
}

func (localTree) Open(name string) (io.ReadCloser, error) { return os.Open(name) }

func (localTree) Mkdir(name string, mode fs.FileMode) error { return os.MkdirAll(name, mode) }

func (localTree) List(name string) ([]fs.FileInfo, error) {
	entries, err := os.ReadDir(name)
	if err != nil {
		return nil, err
	}
	var list []fs.FileInfo
	for _, e := range entries {
		if fi, err := e.Info(); err == nil {
			list = append(list, fi)
		}
	}
	return list, nil
}

func (localTree) Write(name string, r io.Reader, info fs.FileInfo, keepTime bool) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".scp-*")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	err = errors.Join(err, f.Chmod(info.Mode().Perm()), f.Close())
	if err == nil && keepTime {
		err = os.Chtimes(f.Name(), info.ModTime(), info.ModTime())
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
