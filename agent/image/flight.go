package image

import (
	"context"
	"io"
	"sync"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"machine/agent/model"
)

// Registry is what images need of registries.
type Registry interface {
	// Manifest gets a manifest or index by reference: a tag, or a digest,
	// which is checked.
	Manifest(ctx context.Context, ref string, auth model.RegistryAuth) (b []byte, mediaType string, err error)
	// Blob reads a blob from offset on, to its end.
	Blob(ctx context.Context, ref string, d v1.Descriptor, offset int64, auth model.RegistryAuth) (io.ReadCloser, error)
	// HasBlob asks whether a push of the blob is needed. from, when set, is
	// another repository of the same registry to mount it from.
	HasBlob(ctx context.Context, ref string, d v1.Descriptor, from string, auth model.RegistryAuth) (has, mounted bool, err error)
	// PutBlob uploads a blob whose digest becomes known while it is read. It
	// closes what open gives, and may open more than once.
	PutBlob(ctx context.Context, ref string, open func() (io.ReadCloser, error), auth model.RegistryAuth) (v1.Descriptor, error)
	// PutManifest uploads a manifest under ref.
	PutManifest(ctx context.Context, ref string, b []byte, mediaType string, auth model.RegistryAuth) error
	// Tags lists the tags of a repository.
	Tags(ctx context.Context, ref string, auth model.RegistryAuth) ([]string, error)
}

// flights lets callers who want the same thing at once share the work.
type flights struct {
	mu      sync.Mutex
	running map[string]*flight
}

type flight struct {
	done    chan struct{}
	err     error
	waiters int
	cancel  context.CancelFunc
}

// do runs f once for all that ask for key meanwhile. f ends early only when
// all who wait have given up: one killed client ends nobody else's pull.
func (fl *flights) do(ctx context.Context, key string, f func(context.Context) error) error {
	for {
		mine, err := fl.join(ctx, key, f)
		if err == nil || mine || ctx.Err() != nil {
			return err
		}
		// Another caller's credentials or luck failed: try with our own.
	}
}

func (fl *flights) join(ctx context.Context, key string, f func(context.Context) error) (mine bool, err error) {
	fl.mu.Lock()
	w := fl.running[key]
	if mine = w == nil; mine {
		fctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		w = &flight{done: make(chan struct{}), cancel: cancel}
		fl.running[key] = w
		go func() {
			err := f(fctx)
			cancel()
			fl.mu.Lock()
			w.err = err
			if fl.running[key] == w {
				delete(fl.running, key)
			}
			fl.mu.Unlock()
			close(w.done)
		}()
	}
	w.waiters++
	fl.mu.Unlock()
	select {
	case <-w.done:
		return mine, w.err
	case <-ctx.Done():
	}
	fl.mu.Lock()
	w.waiters--
	last := w.waiters == 0
	if last && fl.running[key] == w {
		delete(fl.running, key) // who comes now begins anew
	}
	fl.mu.Unlock()
	if last {
		w.cancel()
		<-w.done // the work stops before the caller goes on
	}
	return mine, ctx.Err()
}
