package image

import (
	"maps"

	"github.com/distribution/reference"

	"machine/agent/oci"
)

// An Event is something that happened to an image.
type Event struct {
	// Action is "pull", "push", "tag", "untag", "delete", "import", "load",
	// "save" or "create".
	Action string
	// Actor is the image's id, or for pull and push the reference.
	Actor string
	// Attributes are the image's labels and its "name", which for most
	// actions is the id once more.
	Attributes map[string]string
}

// event tells of an image. e is nil when it is not known.
func (s *Store) event(action, actor, name string, e *entry) {
	attrs := map[string]string{}
	if e != nil {
		maps.Copy(attrs, e.config.Config.Labels)
	}
	attrs["name"] = name
	s.o.Event(Event{Action: action, Actor: actor, Attributes: attrs})
}

// happened tells of an image by its id alone.
func (s *Store) happened(action string, e *entry) {
	s.event(action, e.ID.String(), e.ID.String(), e)
}

// moved tells of a pull or push: the actor is what was asked for, the name
// its repository. s.mu is not held.
func (s *Store) moved(action string, n reference.Named) {
	s.mu.Lock()
	e, _, err := s.resolve(n.String())
	s.mu.Unlock()
	if err != nil {
		e = nil
	}
	s.event(action, oci.Familiar(n), reference.FamiliarName(n), e)
}
