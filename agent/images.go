package agent

import (
	"context"

	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"

	"machine/agent/image"
)

// imageStore is the image store with what it must know of containers.
type imageStore struct {
	*image.Store
	a *Agent
}

// Count is the number of images.
func (s *imageStore) Count() int {
	list, err := s.List(context.Background())
	if err != nil {
		return 0
	}
	return len(list)
}

// InUse tells removals which images containers stand on.
func (s *imageStore) InUse(id digest.Digest) (image.Use, bool) {
	running, stopped := s.a.containers.UsesOfImage(string(id))
	switch {
	case len(running) > 0:
		return image.Use{Container: running[0], Running: true}, true
	case len(stopped) > 0:
		return image.Use{Container: stopped[0]}, true
	}
	return image.Use{}, false
}

func (a *Agent) imageEvent(action string, id digest.Digest, name string) {
	attrs := map[string]string{}
	if name != "" {
		attrs["name"] = name
	}
	actor := string(id)
	if action == "pull" || action == "push" {
		actor = name
	}
	a.events.Publish(events.ImageEventType, events.Action(action), actor, attrs)
}

// registry is the client that pulls and pushes; nil until there is one.
func (a *Agent) registry() image.Registry { return nil }

func (s *imageStore) Usage(context.Context) (any, int64, error) { return []any{}, 0, nil }
