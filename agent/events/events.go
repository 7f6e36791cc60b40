// Package events is the engine's event feed: a short memory and live
// subscriptions.
package events

import (
	"context"
	"sync"
	"time"

	"github.com/moby/moby/api/types/events"
)

// remembered is how many events are kept for replay, as Docker keeps.
const remembered = 256

// backlog is how many events a slow subscriber may fall behind before it is
// dropped, so that no reader can hold up the engine.
const backlog = 1024

// A Feed remembers the last events and passes new ones to subscribers. Its
// zero value is ready; it is safe for concurrent use.
type Feed struct {
	mu   sync.Mutex
	past []events.Message
	subs map[chan events.Message]struct{}
}

// Publish stamps and sends an event. It never blocks.
func (f *Feed) Publish(t events.Type, action events.Action, id string, attrs map[string]string) {
	now := time.Now()
	m := events.Message{
		Type: t, Action: action,
		Actor: events.Actor{ID: id, Attributes: attrs},
		Scope: "local", Time: now.Unix(), TimeNano: now.UnixNano(),
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.past) == remembered {
		copy(f.past, f.past[1:])
		f.past = f.past[:remembered-1]
	}
	f.past = append(f.past, m)
	for c := range f.subs {
		select {
		case c <- m:
		default: // too slow: cut it off rather than lose events silently
			delete(f.subs, c)
			close(c)
		}
	}
}

// Subscribe returns the remembered events since a time (zero: none of them)
// and a channel of those to come, with no gap in between. The channel is
// closed when ctx ends or when the reader falls too far behind.
func (f *Feed) Subscribe(ctx context.Context, since time.Time) ([]events.Message, <-chan events.Message) {
	c := make(chan events.Message, backlog)
	f.mu.Lock()
	defer f.mu.Unlock()
	var past []events.Message
	if !since.IsZero() {
		for _, m := range f.past {
			if m.TimeNano >= since.UnixNano() {
				past = append(past, m)
			}
		}
	}
	if f.subs == nil {
		f.subs = map[chan events.Message]struct{}{}
	}
	f.subs[c] = struct{}{}
	context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if _, ok := f.subs[c]; ok {
			delete(f.subs, c)
			close(c)
		}
	})
	return past, c
}

// Listeners reports how many subscriptions are open.
func (f *Feed) Listeners() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.subs)
}
