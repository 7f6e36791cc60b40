package archive

import (
	"context"
	"io"
)

// Ahead reads r in a goroutine of its own, so that decompression and
// unpacking each have a processor. Close ends the goroutine and waits for it;
// r's Read must return when ctx ends or its source is closed.
func Ahead(ctx context.Context, r io.Reader) io.ReadCloser {
	a := &ahead{full: make(chan chunk, 6), free: make(chan []byte, 6), stop: make(chan struct{}), done: make(chan struct{})}
	for range cap(a.free) {
		a.free <- nil
	}
	go a.run(ctx, r)
	return a
}

type chunk struct {
	b   []byte
	err error
}

type ahead struct {
	full chan chunk
	free chan []byte
	stop chan struct{}
	done chan struct{}
	cur  chunk
	buf  []byte
	shut bool
}

const aheadSize = 256 << 10

func (a *ahead) run(ctx context.Context, r io.Reader) {
	defer close(a.done)
	for {
		var b []byte
		select {
		case b = <-a.free:
		case <-a.stop:
			return
		}
		if b == nil {
			b = make([]byte, aheadSize)
		}
		n, err := 0, ctx.Err()
		for n < len(b) && err == nil {
			var m int
			m, err = r.Read(b[n:])
			n += m
		}
		a.full <- chunk{b[:n], err} // never blocks: as many slots as buffers
		if err != nil {
			return
		}
	}
}

func (a *ahead) Read(p []byte) (int, error) {
	for len(a.cur.b) == 0 {
		if a.cur.err != nil {
			return 0, a.cur.err
		}
		if a.buf != nil {
			a.free <- a.buf[:cap(a.buf)]
		}
		a.cur = <-a.full
		a.buf = a.cur.b
	}
	n := copy(p, a.cur.b)
	a.cur.b = a.cur.b[n:]
	return n, nil
}

func (a *ahead) Close() error {
	if !a.shut {
		a.shut = true
		close(a.stop)
		<-a.done
	}
	return nil
}
