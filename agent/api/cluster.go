package api

import (
	"net/http"

	"machine/agent/fault"
)

// notManager is what an engine outside a swarm answers, word for word:
// clients look for it.
const notManager = `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`

// cluster answers the swarm and plugin routes of an engine that is in no
// swarm and has no plugins.
func (s *Server) cluster() {
	unavailable := func(http.ResponseWriter, *request) error { return fault.Unavailable.Errorf(notManager) }
	for _, kind := range []string{"services", "tasks", "secrets", "configs", "nodes"} {
		s.handle("GET", kind, unavailable)
		s.handle("GET", kind+"/{id...}", unavailable)
		s.handle("POST", kind+"/{id...}", unavailable)
		s.handle("DELETE", kind+"/{id...}", unavailable)
	}
	s.handle("GET", "swarm", unavailable)
	s.handle("GET", "swarm/unlockkey", unavailable)
	s.handle("POST", "swarm/leave", unavailable)
	s.handle("POST", "swarm/update", unavailable)
	s.handle("POST", "swarm/init", notBuilt("swarm mode"))
	s.handle("POST", "swarm/join", notBuilt("swarm mode"))
	s.handle("POST", "swarm/unlock", notBuilt("swarm mode"))
	s.handle("GET", "plugins", func(w http.ResponseWriter, r *request) error { return writeJSON(w, http.StatusOK, []string{}) })
	s.handle("GET", "plugins/{name...}", noPlugin)
	s.handle("DELETE", "plugins/{name...}", noPlugin)
	s.handle("POST", "plugins/{name...}", notBuilt("plugins"))
	s.handle("POST", "build", notBuilt("building images"))
	s.handle("POST", "build/prune", func(w http.ResponseWriter, r *request) error {
		return writeJSON(w, http.StatusOK, map[string]any{"CachesDeleted": []string{}, "SpaceReclaimed": 0})
	})
	s.handle("POST", "build/cancel", notBuilt("building images"))
	s.handle("POST", "session", notBuilt("BuildKit sessions"))
	s.handle("POST", "grpc", notBuilt("BuildKit"))
}

func noPlugin(_ http.ResponseWriter, r *request) error {
	return fault.NotFound.Errorf("plugin %q not found", r.vars["name"])
}
