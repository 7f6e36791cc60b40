// Package check looks through an engine's data root: whether all that is
// recorded is there and whole, and brings back what can be. It is the fsck of
// images, layers and records.
//
// What cannot be used is set aside by the engine when it starts (a record gets
// the name NAME.json.broken, a layer goes to DATA-ROOT/broken), so that it
// runs on with the rest and nothing is lost. Here it is told of, put back when
// it is whole after all, or deleted when asked to.
package check

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"

	"machine/agent/blob"
	"machine/agent/container"
	"machine/agent/image"
	"machine/agent/layer/overlay"
	"machine/agent/model"
	"machine/agent/state"
)

// Options of Run.
type Options struct {
	Root    string    // the engine's data root
	Quick   bool      // the layers' files are not read
	Repair  bool      // put back and make anew what can be; no engine may run
	Discard bool      // delete what is set aside; no engine may run
	Out     io.Writer // is told what is wrong, and what was done
}

// Run checks a data root and gives the number of faults that are left. Without
// Repair and Discard it changes nothing and may run beside the engine. Safe to
// repeat. An error means that it could not be checked.
func Run(ctx context.Context, o Options) (left int, err error) {
	if _, err := os.Stat(o.Root); err != nil {
		return 0, fmt.Errorf("check: %w", err)
	}
	c := &checker{o: o}
	if err := c.read(ctx, !o.Quick); err != nil {
		return 0, err
	}
	if o.Repair {
		if err := c.repair(ctx); err != nil {
			return 0, err
		}
	}
	if o.Discard {
		if err := c.discard(); err != nil {
			return 0, err
		}
	}
	if o.Repair || o.Discard {
		if err := c.read(ctx, false); err != nil {
			return 0, err
		}
	}
	return c.report(), nil
}

type checker struct {
	o       Options
	layers  []overlay.Found
	images  []image.Found
	records []state.Bad // of containers, networks, volumes and names
	count   string      // of what is fine
	busy    []digest.Digest
}

func (c *checker) path(p string) string { return filepath.Join(c.o.Root, p) }

// recordDirs are the folders of records whose content nothing here depends on.
func (c *checker) recordDirs() []string {
	return []string{c.path("records/containers"), c.path("network/networks"), c.path("volumes/.records")}
}

// read takes in what is on disk. What an earlier look found damaged stays so
// when content is not read again.
func (c *checker) read(ctx context.Context, content bool) error {
	known := map[string]error{}
	for _, f := range c.layers {
		known[f.Dir] = f.Err
	}
	var err error
	if c.layers, err = overlay.Check(ctx, c.o.Root, content); err != nil {
		return err
	}
	for i := range c.layers {
		if f := &c.layers[i]; f.Err == nil {
			f.Err = known[f.Dir]
		}
	}
	if c.images, c.records, err = image.Check(c.path("image"), blob.At(c.path("image/blobs")).Get); err != nil {
		return err
	}
	conts, bad, err := state.Check(c.recordDirs()[0], container.CheckRecord)
	if err != nil {
		return err
	}
	c.records = append(c.records, bad...)
	n := []int{}
	for _, dir := range c.recordDirs()[1:] {
		good, bad, err := state.Check(dir, func(string, *json.RawMessage) error { return nil })
		if err != nil {
			return err
		}
		c.records, n = append(c.records, bad...), append(n, len(good))
	}
	c.count = fmt.Sprintf("images %d, %s, containers %d, networks %d, volumes %d", len(c.images), c.countLayers(), len(conts), n[0], n[1])
	c.checkContainers(conts)
	return nil
}

func (c *checker) countLayers() string {
	n, size := 0, int64(0)
	for _, f := range c.layers {
		if f.Chain != "" && !f.Aside {
			n, size = n+1, size+f.Size
		}
	}
	return fmt.Sprintf("layers %d of %s", n, units.HumanSize(float64(size)))
}

// checkContainers looks for containers that have lost their own layer.
func (c *checker) checkContainers(conts map[string]container.Record) {
	has := map[string]bool{}
	for _, f := range c.layers {
		has[f.Container] = has[f.Container] || !f.Aside
	}
	for id, r := range conts {
		if !has[id] {
			c.records = append(c.records, state.Bad{ID: id, File: c.path("records/containers/" + id + ".json"), Err: fmt.Errorf("the layer of container %s is gone", r.Name)})
		}
	}
}

// images of a layer, by their names.
func (c *checker) imagesOf(chain digest.Digest) string {
	var out []string
	for _, i := range c.images {
		if slices.ContainsFunc(i.Layers, func(l model.Layer) bool { return l.Chain == chain }) {
			out = append(out, nameOf(i))
		}
	}
	return strings.Join(out, ", ")
}

func nameOf(i image.Found) string {
	if len(i.Names) > 0 {
		return strings.Join(i.Names, ", ")
	}
	return short(i.ID)
}

func short(d digest.Digest) string {
	h := d.Encoded()
	return h[:min(12, len(h))]
}

// missing are the layers of an image that are not there for it to use.
func (c *checker) missing(i image.Found) []model.Layer {
	usable := map[digest.Digest]bool{}
	for _, f := range c.layers {
		if f.Chain != "" && !f.Aside && f.Err == nil {
			usable[f.Chain] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(i.Layers), func(l model.Layer) bool { return usable[l.Chain] })
}

func (c *checker) say(format string, args ...any) { fmt.Fprintf(c.o.Out, format+"\n", args...) }

// again says how to get an image anew.
const again = "pull or load it again"

// report tells of all faults and counts them.
func (c *checker) report() (n int) {
	fault := func(format string, args ...any) {
		n++
		c.say(format, args...)
	}
	for _, f := range c.layers {
		switch {
		case f.Aside && f.Err == nil:
			fault("layer %s was set aside, and is whole: --repair puts it back", f.Dir)
		case f.Aside && f.Container != "":
			fault("the layer of container %s was set aside in %s: %v; its files are in diff/, --discard deletes them", f.Container, f.Dir, f.Err)
		case f.Aside:
			fault("layer %s was set aside: %v; --repair tries to put it back, --discard deletes it", f.Dir, f.Err)
		case f.Err == nil:
		case f.Container != "":
			fault("container %s: %v: pull or load its image again", f.Container, f.Err)
		case slices.Contains(c.busy, f.Chain):
			fault("layer %s (%s): %v; a container stands on it: remove that, repeat --repair, then pull or load the image again", f.Dir, c.imagesOf(f.Chain), f.Err)
		default:
			fault("layer %s (%s): %v; --repair sets it aside, then the image can be pulled or loaded again", f.Dir, c.imagesOf(f.Chain), f.Err)
		}
	}
	for _, i := range c.images {
		gone := c.missing(i)
		switch {
		case i.Err != nil:
			fault("image %s: %v: %s", nameOf(i), i.Err, again)
		case len(gone) > 0:
			fault("image %s: its layer %s is not usable: %s", nameOf(i), short(gone[0].Chain), again)
		case i.Aside:
			fault("image %s was set aside, and is whole: --repair puts it back", nameOf(i))
		}
	}
	for _, b := range c.records {
		switch {
		case b.Aside && b.Err == nil:
			fault("record %s was set aside, and can be read: --repair puts it back", b.File)
		case b.Aside:
			fault("record %s was set aside: %v; --discard deletes it", b.File, b.Err)
		default:
			fault("record %s: %v", b.File, b.Err)
		}
	}
	c.say("faults %d (%s)", n, c.count)
	return n
}

// repair sets damaged layers aside and puts back what is whole.
func (c *checker) repair(ctx context.Context) error {
	under := c.underContainers()
	for _, f := range c.layers {
		if f.Err == nil || f.Aside || f.Container != "" {
			continue
		}
		if under[f.Chain] {
			c.busy = append(c.busy, f.Chain)
			continue
		}
		if err := f.SetAside(c.o.Root); err != nil {
			return err
		}
		c.say("set aside: layer %s: %v", f.Dir, f.Err)
	}
	var known []model.Layer
	for _, i := range c.images {
		known = append(known, i.Layers...)
	}
	back, err := overlay.Mend(ctx, c.o.Root, known)
	for _, chain := range back {
		c.say("put back: layer %s (%s)", short(chain), c.imagesOf(chain))
	}
	if err != nil {
		return err
	}
	if err := c.read(ctx, false); err != nil {
		return err
	}
	for _, i := range c.images {
		if !i.Aside && i.Err == nil || len(i.Layers) == 0 || len(c.missing(i)) > 0 {
			continue
		}
		if err := i.Mend(); err != nil {
			return err
		}
		c.say("put back: image %s", nameOf(i))
	}
	for _, b := range c.records {
		if !b.Aside || b.Err != nil {
			continue
		}
		if err := b.PutBack(); err != nil {
			return err
		}
		c.say("put back: record %s", b.File)
	}
	return nil
}

// underContainers are the layers that containers stand on.
func (c *checker) underContainers() map[digest.Digest]bool {
	parent := map[digest.Digest]digest.Digest{}
	for _, f := range c.layers {
		if f.Chain != "" && !f.Aside {
			parent[f.Chain] = f.Parent
		}
	}
	out := map[digest.Digest]bool{}
	for _, f := range c.layers {
		for chain := f.Parent; f.Container != "" && chain != "" && !out[chain]; chain = parent[chain] {
			out[chain] = true
		}
	}
	return out
}

// discard deletes what is set aside.
func (c *checker) discard() error {
	err := errors.Join(overlay.Discard(c.o.Root), image.Discard(c.path("image")))
	for _, dir := range c.recordDirs() {
		if _, serr := os.Stat(dir); !errors.Is(serr, fs.ErrNotExist) {
			err = errors.Join(err, state.Discard(dir))
		}
	}
	if err == nil {
		c.say("deleted: what was set aside")
	}
	return err
}
