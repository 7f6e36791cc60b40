package api

import (
	"net/http"

	"github.com/moby/moby/api/types/network"
)

func (s *Server) networks(o Options) {
	n := &networkAPI{o.Networks}
	s.handle("GET", "networks", n.list)
	s.handle("POST", "networks/create", n.create)
	s.handle("POST", "networks/prune", n.prune)
	s.handle("POST", "networks/{id...}/connect", n.connect)
	s.handle("POST", "networks/{id...}/disconnect", n.disconnect)
	s.handle("GET", "networks/{id...}", n.inspect)
	s.handle("DELETE", "networks/{id...}", n.remove)
}

type networkAPI struct{ b Networks }

func (n *networkAPI) list(w http.ResponseWriter, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	list, err := n.b.List(r.Context(), f)
	if err != nil {
		return err
	}
	if list == nil {
		list = []network.Inspect{}
	}
	return writeJSON(w, http.StatusOK, list)
}

func (n *networkAPI) inspect(w http.ResponseWriter, r *request) error {
	in, err := n.b.Inspect(r.Context(), r.vars["id"])
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, in)
}

func (n *networkAPI) create(w http.ResponseWriter, r *request) error {
	var req network.CreateRequest
	if err := r.readJSON(&req); err != nil {
		return err
	}
	resp, err := n.b.Create(r.Context(), req)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, resp)
}

func (n *networkAPI) remove(w http.ResponseWriter, r *request) error {
	return done(w, n.b.Remove(r.Context(), r.vars["id"]))
}

func (n *networkAPI) prune(w http.ResponseWriter, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	gone, err := n.b.Prune(r.Context(), f)
	if err != nil {
		return err
	}
	if gone == nil {
		gone = []string{}
	}
	return writeJSON(w, http.StatusOK, map[string]any{"NetworksDeleted": gone})
}

func (n *networkAPI) connect(w http.ResponseWriter, r *request) error {
	var req network.ConnectRequest
	if err := r.readJSON(&req); err != nil {
		return err
	}
	if err := n.b.Connect(r.Context(), r.vars["id"], req.Container, req.EndpointConfig); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (n *networkAPI) disconnect(w http.ResponseWriter, r *request) error {
	var req network.DisconnectRequest
	if err := r.readJSON(&req); err != nil {
		return err
	}
	if err := n.b.Disconnect(r.Context(), r.vars["id"], req.Container, req.Force); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}
