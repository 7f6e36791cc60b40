package overlay

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"machine/agent/archive"
	"machine/agent/model"
)

// A Found layer is one on disk, as Check saw it.
type Found struct {
	model.Layer        // zero when its record cannot be read
	Dir         string // its folder
	Aside       bool   // it was set aside by the process that met it
	Container   string // id, when it is a writable layer
	Err         error  // why it cannot be used; nil for one set aside that is whole
}

// Check looks through the layers below root and changes nothing, so a store
// may have them open meanwhile. With content it also reads every file of the
// image layers; of those set aside it always does. What cannot be read is told
// of in the list; an error is one of the check itself.
func Check(ctx context.Context, root string, content bool) ([]Found, error) {
	s, err := scan(filepath.Join(root, "overlay2"))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("check layers: %w", err)
	}
	var out []Found
	for id, parent := range s.containers {
		f := Found{Layer: model.Layer{Parent: parent}, Dir: filepath.Join(root, "overlay2", "c-"+id), Container: id}
		if parent != "" && s.images[parent] == nil {
			f.Err = fmt.Errorf("the layer %s below it is gone", parent)
		}
		out = append(out, f)
	}
	for dir, why := range s.bad {
		f := Found{Dir: dir, Container: containerOf(dir), Err: why}
		if img, err := readImage(dir); err == nil {
			f.Layer = img.Layer
		}
		out = append(out, f)
	}
	for _, img := range s.images {
		out = append(out, Found{Layer: img.Layer, Dir: img.dir, Err: img.check(ctx, content)})
	}
	list, err := os.ReadDir(filepath.Join(root, brokenDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("check layers: %w", err)
	}
	for _, e := range list {
		out = append(out, s.checkAside(ctx, filepath.Join(root, brokenDir, e.Name())))
	}
	out = slices.DeleteFunc(out, func(f Found) bool { // removed while we looked
		_, err := os.Lstat(f.Dir)
		return errors.Is(err, fs.ErrNotExist)
	})
	slices.SortFunc(out, func(a, b Found) int { return strings.Compare(a.Dir, b.Dir) })
	return out, ctx.Err()
}

func (s *scanned) checkAside(ctx context.Context, dir string) Found {
	f := Found{Dir: dir, Aside: true, Container: containerOf(dir)}
	if f.Container != "" {
		f.Err = errors.New("what is below this container's layer is not known")
		return f
	}
	img, err := readImage(dir)
	if err == nil {
		f.Layer = img.Layer
		err = img.check(ctx, true)
	}
	if err == nil && f.Parent != "" && s.images[f.Parent] == nil {
		err = fmt.Errorf("the layer %s below it is gone", f.Parent)
	}
	f.Err = err
	return f
}

func containerOf(dir string) string {
	id, ok := strings.CutPrefix(filepath.Base(dir), "c-")
	if !ok {
		return ""
	}
	return id
}

// check assembles the layer's tar once more: its digest tells of every byte of
// its files, and of their names and attributes as they came.
func (img *image) check(ctx context.Context, content bool) error {
	p, err := openParts(img.dir)
	if err != nil {
		return err
	}
	defer p.close()
	if !content {
		return nil
	}
	got, _, err := p.assemble(ctx, io.Discard, img.Moved)
	if err == nil && got != img.DiffID {
		err = errors.New("its files were changed on disk")
	}
	return err
}

// SetAside takes an image layer away that Check found damaged, so that it can
// be had again. No store may have root open.
func (f Found) SetAside(root string) error {
	if _, err := keepAside(root, f.Dir); err != nil {
		return fmt.Errorf("set layer %s aside: %w", f.Dir, err)
	}
	return nil
}

// Mend brings image layers back that were set aside and are whole: the digest
// of their tar says so. A lost record is made anew when the layer is one of
// known, of which chain, DiffID and parent must be set. It gives the chains
// that are back; no store may have root open.
func Mend(ctx context.Context, root string, known []model.Layer) (back []digest.Digest, err error) {
	layers := filepath.Join(root, "overlay2")
	s, err := scan(layers)
	if err != nil {
		return nil, fmt.Errorf("mend layers: %w", err)
	}
	list, err := os.ReadDir(filepath.Join(root, brokenDir))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("mend layers: %w", err)
	}
	var whole []*image
	for _, e := range list {
		dir := filepath.Join(root, brokenDir, e.Name())
		if containerOf(dir) != "" {
			continue
		}
		if img, err := reclaim(ctx, dir, known); err == nil {
			whole = append(whole, img)
		} else if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	slices.SortFunc(whole, func(a, b *image) int { return a.Depth - b.Depth })
	for _, img := range whole {
		p := s.images[img.Parent]
		if img.Parent != "" && p == nil || s.images[img.Chain] != nil {
			continue
		}
		to := filepath.Join(layers, filepath.Base(img.dir))
		if err := unix.Renameat2(unix.AT_FDCWD, img.dir, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE); err != nil {
			return back, fmt.Errorf("put layer %s back: %w", img.Chain, err)
		}
		s.images[img.Chain] = img
		back = append(back, img.Chain)
	}
	return back, syncFS(layers)
}

// reclaim reads a layer that was set aside, with a record made anew if it has
// to be, and makes sure of its content.
func reclaim(ctx context.Context, dir string, known []model.Layer) (*image, error) {
	if img, err := readImage(dir); err == nil {
		return img, img.check(ctx, true)
	}
	for _, k := range known {
		if shortName(k.Chain) != filepath.Base(dir) {
			continue
		}
		img := &image{Layer: k, dir: dir, Depth: depthOf(k, known)}
		if err := img.measure(ctx); err != nil {
			return nil, err
		}
		return img, (&staged{dir: dir}).record(img)
	}
	return nil, errors.New("it is a layer of no image that is known")
}

// depthOf counts a layer and those below it.
func depthOf(l model.Layer, known []model.Layer) int {
	n := 1
	for l.Parent != "" && n <= len(known) {
		at := slices.IndexFunc(known, func(k model.Layer) bool { return k.Chain == l.Parent })
		if at < 0 {
			break
		}
		l, n = known[at], n+1
	}
	return n
}

// measure assembles the tar for its digest and sizes.
func (img *image) measure(ctx context.Context) error {
	p, err := openParts(img.dir)
	if err != nil {
		return err
	}
	defer p.close()
	img.Size = 0
	pr, pw := io.Pipe()
	sized := make(chan error, 1)
	go func() {
		tr := tar.NewReader(pr)
		for {
			h, err := tr.Next()
			if err != nil {
				_, rest := io.Copy(io.Discard, pr) // what is behind the end of the archive
				if err == io.EOF {
					err = rest
				}
				sized <- err
				return
			}
			switch h.Typeflag {
			case tar.TypeReg:
				img.Size += h.Size
			case tar.TypeSymlink:
				img.Size += int64(len(h.Linkname))
			}
		}
	}()
	got, n, err := p.assemble(ctx, pw, nil)
	pw.CloseWithError(err)
	if serr := <-sized; err == nil {
		err = serr
	}
	if err == nil && got != img.DiffID {
		err = errors.New("its files were changed on disk")
	}
	img.Tar = n
	return err
}

// Discard deletes what was set aside. No store may have root open.
func Discard(root string) error {
	dir := filepath.Join(root, brokenDir)
	if err := archive.RemoveChildren(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete the layers that were set aside: %w", err)
	}
	return nil
}

// syncFS writes the file system that holds dir to disk.
func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return (&syncer{f: f}).all()
}
