package api

import (
	"net/http"

	"github.com/moby/moby/api/types/volume"

	"machine/agent/fault"
)

func (s *Server) volumes(o Options) {
	v := &volumeAPI{o.Volumes}
	s.handle("GET", "volumes", v.list)
	s.handle("POST", "volumes/create", v.create)
	s.handle("POST", "volumes/prune", v.prune)
	s.handle("GET", "volumes/{name...}", v.inspect)
	s.handle("DELETE", "volumes/{name...}", v.remove)
	s.handle("PUT", "volumes/{name...}", func(http.ResponseWriter, *request) error {
		return fault.Unavailable.Errorf(notManager)
	})
}

type volumeAPI struct{ b Volumes }

func (v *volumeAPI) list(w http.ResponseWriter, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	list, err := v.b.List(r.Context(), f)
	if err != nil {
		return err
	}
	if list == nil {
		list = []volume.Volume{}
	}
	return writeJSON(w, http.StatusOK, map[string]any{"Volumes": list, "Warnings": []string{}})
}

func (v *volumeAPI) inspect(w http.ResponseWriter, r *request) error {
	vol, err := v.b.Inspect(r.Context(), r.vars["name"])
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, vol)
}

func (v *volumeAPI) create(w http.ResponseWriter, r *request) error {
	var req volume.CreateRequest
	if err := r.readJSON(&req); err != nil {
		return err
	}
	vol, err := v.b.Create(r.Context(), req)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, vol)
}

func (v *volumeAPI) remove(w http.ResponseWriter, r *request) error {
	return done(w, v.b.Remove(r.Context(), r.vars["name"], r.boolean("force")))
}

func (v *volumeAPI) prune(w http.ResponseWriter, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	if r.before("1.42") { // before, all unused volumes went
		f["all"] = []string{"true"}
	}
	gone, size, err := v.b.Prune(r.Context(), f)
	if err != nil {
		return err
	}
	if gone == nil {
		gone = []string{}
	}
	return writeJSON(w, http.StatusOK, map[string]any{"VolumesDeleted": gone, "SpaceReclaimed": size})
}
