package api

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"slices"

	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"machine/agent/container"
	"machine/agent/fault"
)

func (s *Server) containers(o Options) {
	c := &containerAPI{o.Backend}
	s.handle("GET", "containers/json", c.list)
	s.handle("POST", "containers/create", c.create)
	s.handle("POST", "containers/prune", c.prune)
	s.handle("GET", "containers/{id}/json", c.inspect)
	s.handle("POST", "containers/{id}/start", c.start)
	s.handle("POST", "containers/{id}/stop", c.stop)
	s.handle("POST", "containers/{id}/restart", c.restart)
	s.handle("POST", "containers/{id}/kill", c.kill)
	s.handle("POST", "containers/{id}/pause", c.pause)
	s.handle("POST", "containers/{id}/unpause", c.unpause)
	s.handle("POST", "containers/{id}/rename", c.rename)
	s.handle("POST", "containers/{id}/update", c.update)
	s.handle("POST", "containers/{id}/wait", c.wait)
	s.handle("POST", "containers/{id}/resize", c.resize)
	s.handle("POST", "containers/{id}/attach", c.attach)
	s.handle("GET", "containers/{id}/attach/ws", c.attachWS)
	s.handle("GET", "containers/{id}/logs", c.logs)
	s.handle("GET", "containers/{id}/top", c.top)
	s.handle("GET", "containers/{id}/stats", c.stats)
	s.handle("GET", "containers/{id}/changes", c.changes)
	s.handle("GET", "containers/{id}/export", c.export)
	s.handle("HEAD", "containers/{id}/archive", c.headArchive)
	s.handle("GET", "containers/{id}/archive", c.getArchive)
	s.handle("PUT", "containers/{id}/archive", c.putArchive)
	s.handle("DELETE", "containers/{id}", c.remove)
	s.handle("POST", "containers/{id}/checkpoints", notBuilt("checkpoints"))
}

// containerAPI answers the container routes.
type containerAPI struct{ b Backend }

// notBuilt answers 501 for a part of the API that this engine lacks.
func notBuilt(what string) handler {
	return func(http.ResponseWriter, *request) error {
		return fault.NotImplemented.Errorf("%s: not implemented by this engine", what)
	}
}

func (c *containerAPI) list(w http.ResponseWriter, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	limit, err := r.number("limit")
	if err != nil {
		return err
	}
	list, err := c.b.Info.List(r.Context(), container.ListOptions{All: r.boolean("all"), Size: r.boolean("size"), Limit: limit, Filters: f})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, list)
}

// createBody is the request with the field that newer types dropped.
type createBody struct {
	apicontainer.CreateRequest
	legacy struct {
		MacAddress string
	}
}

func (b *createBody) UnmarshalJSON(p []byte) error {
	if err := json.Unmarshal(p, &b.CreateRequest); err != nil {
		return err
	}
	return json.Unmarshal(p, &b.legacy)
}

func (c *containerAPI) create(w http.ResponseWriter, r *request) error {
	var body createBody
	if r.ContentLength == 0 {
		return fault.Invalid.Errorf("invalid JSON: got EOF while reading request body")
	}
	if err := r.readJSON(&body); err != nil {
		return err
	}
	req := &body.CreateRequest
	if err := legacyMAC(req, body.legacy.MacAddress); err != nil {
		return err
	}
	resp, err := c.b.Create.Create(r.Context(), r.query("name"), r.query("platform"), req)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, resp)
}

// legacyMAC moves the container-wide address of API < 1.44 to the endpoint
// of the network mode.
func legacyMAC(req *apicontainer.CreateRequest, mac string) error {
	if mac == "" {
		return nil
	}
	var hw network.HardwareAddr
	if err := hw.UnmarshalText([]byte(mac)); err != nil {
		return fault.Invalid.Errorf("invalid MAC address %q: %w", mac, err)
	}
	mode := "bridge"
	if req.HostConfig != nil && req.HostConfig.NetworkMode != "" && req.HostConfig.NetworkMode != "default" {
		mode = string(req.HostConfig.NetworkMode)
	}
	if req.NetworkingConfig == nil {
		req.NetworkingConfig = &network.NetworkingConfig{}
	}
	if req.NetworkingConfig.EndpointsConfig == nil {
		req.NetworkingConfig.EndpointsConfig = map[string]*network.EndpointSettings{}
	}
	ep := req.NetworkingConfig.EndpointsConfig[mode]
	if ep == nil {
		ep = &network.EndpointSettings{}
		req.NetworkingConfig.EndpointsConfig[mode] = ep
	}
	ep.MacAddress = hw
	return nil
}

func (c *containerAPI) prune(w http.ResponseWriter, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	rep, err := c.b.Create.Prune(r.Context(), f)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, rep)
}

// legacySettings are the fields of the default network that API 1.52 dropped
// and that clients of 1.51 and before read.
type legacySettings struct {
	*apicontainer.NetworkSettings
	Bridge                 string
	HairpinMode            bool
	LinkLocalIPv6Address   string
	LinkLocalIPv6PrefixLen int
	SecondaryIPAddresses   []string
	SecondaryIPv6Addresses []string
	EndpointID             string
	Gateway                netip.Addr
	GlobalIPv6Address      netip.Addr
	GlobalIPv6PrefixLen    int
	IPAddress              netip.Addr
	IPPrefixLen            int
	IPv6Gateway            netip.Addr
	MacAddress             network.HardwareAddr
}

// inspected is an inspect answer for clients of API 1.51.
type inspected struct {
	*apicontainer.InspectResponse
	NetworkSettings legacySettings
}

func legacyInspect(in *apicontainer.InspectResponse) inspected {
	out := inspected{in, legacySettings{NetworkSettings: in.NetworkSettings}}
	if b := in.NetworkSettings.Networks["bridge"]; b != nil {
		l := &out.NetworkSettings
		l.EndpointID, l.Gateway, l.IPAddress, l.IPPrefixLen = b.EndpointID, b.Gateway, b.IPAddress, b.IPPrefixLen
		l.GlobalIPv6Address, l.GlobalIPv6PrefixLen, l.IPv6Gateway, l.MacAddress = b.GlobalIPv6Address, b.GlobalIPv6PrefixLen, b.IPv6Gateway, b.MacAddress
	}
	return out
}

func (c *containerAPI) inspect(w http.ResponseWriter, r *request) error {
	in, err := c.b.Info.Inspect(r.Context(), r.vars["id"], r.boolean("size"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, legacyInspect(in))
}

// done answers 204 for an act that has nothing to say.
func done(w http.ResponseWriter, err error) error {
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (c *containerAPI) start(w http.ResponseWriter, r *request) error {
	if r.ContentLength > 0 {
		var v any
		if err := r.readJSON(&v); err != nil {
			return err
		}
	}
	return done(w, c.b.Life.Start(r.Context(), r.vars["id"]))
}

// stopOptions reads t and signal.
func stopOptions(r *request) (container.StopOptions, error) {
	o := container.StopOptions{Signal: r.query("signal")}
	if r.query("t") != "" {
		t, err := r.number("t")
		if err != nil {
			return o, err
		}
		o.Timeout = &t
	}
	return o, nil
}

func (c *containerAPI) stop(w http.ResponseWriter, r *request) error {
	o, err := stopOptions(r)
	if err != nil {
		return err
	}
	return done(w, c.b.Life.Stop(r.Context(), r.vars["id"], o))
}

func (c *containerAPI) restart(w http.ResponseWriter, r *request) error {
	o, err := stopOptions(r)
	if err != nil {
		return err
	}
	return done(w, c.b.Life.Restart(r.Context(), r.vars["id"], o))
}

func (c *containerAPI) kill(w http.ResponseWriter, r *request) error {
	return done(w, c.b.Life.Kill(r.Context(), r.vars["id"], r.query("signal")))
}

func (c *containerAPI) pause(w http.ResponseWriter, r *request) error {
	return done(w, c.b.Life.Pause(r.Context(), r.vars["id"]))
}

func (c *containerAPI) unpause(w http.ResponseWriter, r *request) error {
	return done(w, c.b.Life.Unpause(r.Context(), r.vars["id"]))
}

func (c *containerAPI) rename(w http.ResponseWriter, r *request) error {
	return done(w, c.b.Create.Rename(r.Context(), r.vars["id"], r.query("name")))
}

func (c *containerAPI) remove(w http.ResponseWriter, r *request) error {
	o := container.RemoveOptions{Volumes: r.boolean("v"), Force: r.boolean("force"), Link: r.boolean("link")}
	return done(w, c.b.Create.Remove(r.Context(), r.vars["id"], o))
}

func (c *containerAPI) update(w http.ResponseWriter, r *request) error {
	var body struct {
		apicontainer.Resources
		RestartPolicy apicontainer.RestartPolicy
	}
	if err := r.readJSON(&body); err != nil {
		return err
	}
	warn, err := c.b.Create.Update(r.Context(), r.vars["id"], body.Resources, body.RestartPolicy)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, apicontainer.UpdateResponse{Warnings: warn})
}

// wait sends its headers at once: docker run starts the container only when
// they have come.
func (c *containerAPI) wait(w http.ResponseWriter, r *request) error {
	cond := apicontainer.WaitCondition(r.query("condition"))
	if cond == "" {
		cond = apicontainer.WaitConditionNotRunning
	}
	if !slices.Contains([]apicontainer.WaitCondition{"not-running", "next-exit", "removed"}, cond) {
		return fault.Invalid.Errorf("invalid condition: %q", cond)
	}
	ch, forget, err := c.b.Info.Wait(r.vars["id"], cond)
	if err != nil {
		return err
	}
	defer forget()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	http.NewResponseController(w).Flush()
	select {
	case resp := <-ch:
		json.NewEncoder(w).Encode(resp)
	case <-r.Context().Done():
	}
	return nil
}

func (c *containerAPI) resize(w http.ResponseWriter, r *request) error {
	h, wd, err := size(r)
	if err != nil {
		return err
	}
	if err := c.b.Streams.Resize(r.vars["id"], h, wd); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func size(r *request) (h, w uint, err error) {
	for _, p := range []struct {
		key string
		to  *uint
	}{{"h", &h}, {"w", &w}} {
		n, err := r.number(p.key)
		if err != nil {
			return 0, 0, err
		}
		if n < 0 || n > 65535 {
			return 0, 0, fault.Invalid.Errorf("invalid size %s=%d", p.key, n)
		}
		*p.to = uint(n)
	}
	return h, w, nil
}

func (c *containerAPI) changes(w http.ResponseWriter, r *request) error {
	list, err := c.b.Info.Changes(r.Context(), r.vars["id"])
	if err != nil {
		return err
	}
	out := []apicontainer.FilesystemChange{}
	for _, ch := range list {
		out = append(out, apicontainer.FilesystemChange{Kind: apicontainer.ChangeType(ch.Kind), Path: ch.Path})
	}
	return writeJSON(w, http.StatusOK, out)
}
