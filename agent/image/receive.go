package image

import (
	"context"
	"io"
	"sync/atomic"
	"time"

	"github.com/opencontainers/image-spec/specs-go/v1"

	"machine/agent/archive"
	"machine/agent/fault"
	"machine/agent/model"
)

// receive downloads layer i from where w ends, and unpacks it meanwhile. The
// blob is checked when its last byte has come; a layer that was made from
// another one fails.
func (p *pull) receive(ctx context.Context, i int, w model.BlobWriter) (model.StagedLayer, error) {
	d := p.manifest.Layers[i]
	if w.Offset() > d.Size {
		if err := w.Reset(); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	start := w.Offset()
	net, err := p.s.o.Source.Blob(ctx, p.repo(), d, start, p.auth)
	if err != nil {
		cancel()
		return nil, p.denied(err)
	}
	defer net.Close()
	down := &download{ctx: ctx, r: net, w: w, p: p, d: d, m: meter{status: "Downloading", n: start}}
	in := archive.Ahead(ctx, io.MultiReader(w.Reader(), down))
	defer in.Close()
	defer cancel() // first of all: a read that waits for the registry ends
	unpacked := &unpacking{r: in, d: down, m: meter{status: "Extracting"}}
	g, err := p.s.o.Layers.Stage(ctx, unpacked)
	if err != nil {
		return nil, err
	}
	if _, err = io.Copy(io.Discard, unpacked); err == nil && g.DiffID() != p.diffs[i] {
		err = fault.Invalid.Errorf("it unpacks to %s, the configuration says %s", g.DiffID(), p.diffs[i])
	}
	if err != nil {
		g.Discard()
		return nil, err
	}
	return g, nil
}

// A download is a blob on its way into a writer. Its reader gets io.EOF only
// behind the last byte of the right blob; an error of the disk is the
// reader's, too.
type download struct {
	ctx  context.Context
	r    io.Reader
	w    model.BlobWriter
	p    *pull
	d    v1.Descriptor
	m    meter
	done atomic.Bool // all of it is here, and checked
}

func (d *download) Read(b []byte) (int, error) {
	n, err := d.r.Read(b)
	if n > 0 {
		if _, werr := d.w.Write(b[:n]); werr != nil {
			return 0, werr
		}
		d.m.add(d.p, d.d, n)
	}
	if err == io.EOF && !d.done.Load() {
		if cerr := d.check(); cerr != nil {
			return n, cerr
		}
	}
	return n, err
}

func (d *download) check() error {
	if d.w.Offset() != d.d.Size {
		return fault.Invalid.Errorf("blob has %d bytes instead of %d", d.w.Offset(), d.d.Size)
	}
	d.p.say(short(d.d.Digest), "Verifying Checksum")
	if err := d.w.Check(d.ctx); err != nil {
		return err
	}
	d.p.say(short(d.d.Digest), "Download complete")
	d.done.Store(true)
	return nil
}

// unpacking tells how far the unpacking of a blob is once all of it is here:
// before, it is as far as the download.
type unpacking struct {
	r io.Reader
	d *download
	m meter
}

func (u *unpacking) Read(b []byte) (int, error) {
	n, err := u.r.Read(b)
	u.m.n += int64(n)
	if n > 0 && u.d.done.Load() {
		u.m.add(u.d.p, u.d.d, 0)
	}
	return n, err
}

// meter tells how far something is, now and then.
type meter struct {
	status string
	n, at  int64
	last   time.Time
}

func (m *meter) add(p *pull, d v1.Descriptor, n int) {
	m.n += int64(n)
	slow := time.Since(m.last) > time.Second
	if slow || m.n-m.at >= max(d.Size/50, 512<<10) || m.n == d.Size {
		m.at, m.last = m.n, time.Now()
		p.progress(model.ProgressEvent{ID: short(d.Digest), Status: m.status, Current: m.n, Total: d.Size})
	}
}
