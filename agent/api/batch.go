package api

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

// A batchWriter gathers small writes and sends them when there are many, or
// shortly after the first: a log of a million lines must not be a million
// packets, and a line that is followed must come at once.
type batchWriter struct {
	mu    sync.Mutex
	w     http.ResponseWriter
	rc    *http.ResponseController
	buf   []byte
	timer *time.Timer
	err   error
}

// Sizes and patience of a batch.
const (
	batchSize  = 64 << 10
	batchDelay = 5 * time.Millisecond
)

func newBatchWriter(w http.ResponseWriter, rc *http.ResponseController) *batchWriter {
	b := &batchWriter{w: w, rc: rc}
	b.timer = time.AfterFunc(time.Hour, b.timed)
	b.timer.Stop()
	return b
}

func (b *batchWriter) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return 0, b.err
	}
	if len(b.buf) == 0 {
		b.timer.Reset(batchDelay)
	}
	b.buf = append(b.buf, p...)
	if len(b.buf) >= batchSize {
		b.flush()
	}
	return len(p), b.err
}

func (b *batchWriter) timed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.flush()
}

// flush sends what there is; b.mu is held.
func (b *batchWriter) flush() {
	if len(b.buf) == 0 || b.err != nil {
		return
	}
	if _, b.err = b.w.Write(b.buf); b.err == nil {
		b.err = b.rc.Flush()
	}
	b.buf = b.buf[:0]
}

// Close sends the rest. The writer must not be used afterwards.
func (b *batchWriter) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.timer.Stop()
	b.flush()
	if b.err == nil {
		b.err = http.ErrHandlerTimeout // a late timer must not touch the response
		return nil
	}
	return b.err
}

// appendAttrs writes a record's attributes as docker logs --details shows
// them.
func appendAttrs(p []byte, attrs map[string]string) []byte {
	for i, k := range slices.Sorted(maps.Keys(attrs)) {
		if i > 0 {
			p = append(p, ',')
		}
		p = append(append(append(p, url.QueryEscape(k)...), '='), url.QueryEscape(attrs[k])...)
	}
	return p
}
