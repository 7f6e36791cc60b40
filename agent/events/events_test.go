package events

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"
)

func TestReplayAndFollow(t *testing.T) {
	var f Feed
	for i := range remembered + 10 {
		f.Publish(events.ContainerEventType, "start", fmt.Sprint(i), nil)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	past, ch := f.Subscribe(ctx, time.Unix(1, 0))
	if len(past) != remembered || past[0].Actor.ID != "10" {
		t.Errorf("replayed %d events, the first of %s", len(past), past[0].Actor.ID)
	}
	f.Publish(events.ImageEventType, "pull", "x", nil)
	if m := <-ch; m.Actor.ID != "x" || m.Scope != "local" || m.TimeNano == 0 {
		t.Errorf("followed %+v", m)
	}
	cancel()
	for range ch { // closed soon
	}
	if none, _ := f.Subscribe(context.Background(), time.Time{}); none != nil {
		t.Errorf("replay unasked: %d", len(none))
	}
}

// A reader that does not read is cut off; nobody waits for it.
func TestSlowReaderIsCutOff(t *testing.T) {
	var f Feed
	_, ch := f.Subscribe(context.Background(), time.Time{})
	for range backlog + 5 {
		f.Publish(events.ContainerEventType, "start", "a", nil)
	}
	n := 0
	for range ch {
		n++
	}
	if n != backlog || f.Listeners() != 0 {
		t.Errorf("%d events, %d listeners", n, f.Listeners())
	}
}
