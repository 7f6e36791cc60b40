package api

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"

	"machine/agent/container"
	"machine/agent/fault"
	"machine/agent/model"
)

func (s *Server) system(o Options) {
	a := &systemAPI{o.Backend}
	s.handle("GET", "_ping", a.ping)
	s.handle("HEAD", "_ping", a.ping)
	s.handle("GET", "version", func(w http.ResponseWriter, r *request) error {
		return writeJSON(w, http.StatusOK, a.b.System.Version())
	})
	s.handle("GET", "info", a.info)
	s.handle("GET", "events", a.events)
	s.handle("GET", "system/df", a.df)
}

type systemAPI struct{ b Backend }

func (a *systemAPI) ping(w http.ResponseWriter, r *request) error {
	h := w.Header()
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Builder-Version", "1")
	h.Set("Swarm", "inactive")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		w.WriteHeader(http.StatusOK)
		return nil
	}
	w.WriteHeader(http.StatusOK)
	w.Write([]byte("OK"))
	return nil
}

func (a *systemAPI) info(w http.ResponseWriter, r *request) error {
	return writeJSON(w, http.StatusOK, a.b.System.Info(r.Context()))
}

// legacyEvent is an event with the fields that API 1.52 dropped.
type legacyEvent struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	events.Message
}

func legacy(m events.Message) legacyEvent {
	e := legacyEvent{Message: m}
	switch m.Type {
	case events.ContainerEventType:
		e.Status, e.ID, e.From = string(m.Action), m.Actor.ID, m.Actor.Attributes["image"]
	case events.ImageEventType:
		e.Status, e.ID = string(m.Action), m.Actor.ID
	}
	return e
}

// eventKeys are the filters of the event feed.
var eventKeys = []string{"config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope", "secret", "service", "type", "volume"}

// events streams what happens; the headers go out at once.
func (a *systemAPI) events(w http.ResponseWriter, r *request) error {
	f, err := r.filters(eventKeys...)
	if err != nil {
		return err
	}
	now := time.Now()
	since, err := model.ParseTime(r.query("since"), now)
	if err != nil {
		return err
	}
	until, err := model.ParseTime(r.query("until"), now)
	if err != nil {
		return err
	}
	if r.query("since") != "" && since.IsZero() { // "0": all that is remembered
		since = time.Unix(0, 0)
	}
	if !until.IsZero() && !since.IsZero() && until.Before(since) {
		return fault.Invalid.Errorf("`since` time (%v) cannot be after `until` time (%v)", since.Unix(), until.Unix())
	}
	past, ch := a.b.Events.Subscribe(r.Context(), since)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	out := newFlushWriter(w)
	out.rc.Flush()
	enc := json.NewEncoder(out)
	send := func(m events.Message) error {
		if !matchEvent(f, m) || r.before("1.46") && madeImage(m) || !until.IsZero() && m.TimeNano > until.UnixNano() {
			return nil
		}
		return enc.Encode(legacy(m))
	}
	for _, m := range past {
		if send(m) != nil {
			return nil
		}
	}
	var end <-chan time.Time
	if !until.IsZero() {
		if !until.After(time.Now()) {
			return nil
		}
		t := time.NewTimer(time.Until(until))
		defer t.Stop()
		end = t.C
	}
	for {
		select {
		case m, ok := <-ch:
			if !ok || send(m) != nil {
				return nil
			}
		case <-end:
			return nil
		}
	}
}

// madeImage tells of an event that API 1.46 brought.
func madeImage(m events.Message) bool {
	return m.Type == events.ImageEventType && m.Action == events.ActionCreate
}

// matchEvent applies the filters: keys AND, values OR, labels AND.
func matchEvent(f model.Filters, m events.Message) bool {
	attrs := m.Actor.Attributes
	for key, want := range f {
		ok := false
		switch key {
		case "type":
			ok = slices.Contains(want, string(m.Type))
		case "scope":
			ok = slices.Contains(want, m.Scope)
		case "event":
			ok = slices.ContainsFunc(want, func(w string) bool {
				return w == string(m.Action) || strings.HasPrefix(string(m.Action), w+":")
			})
		case "label":
			ok = model.MatchLabels(want, attrs)
		case "image":
			ok = matchEventImage(want, m)
		default: // container, network, volume, daemon ...: by id, prefix or name
			ok = string(m.Type) == key && slices.ContainsFunc(want, func(w string) bool {
				return strings.HasPrefix(m.Actor.ID, w) && w != "" || attrs["name"] == strings.TrimPrefix(w, "/")
			})
			if key == "network" || key == "volume" {
				ok = ok || string(m.Type) == key && slices.Contains(want, attrs["container"])
			}
		}
		if !ok {
			return false
		}
	}
	return true
}

func matchEventImage(want []string, m events.Message) bool {
	names := []string{m.Actor.Attributes["image"], m.Actor.Attributes["name"]}
	if m.Type == events.ImageEventType {
		names = append(names, m.Actor.ID)
	}
	for _, n := range names {
		if n == "" {
			continue
		}
		repo := n
		if i := strings.LastIndexByte(n, ':'); i > strings.LastIndexByte(n, '/') {
			repo = n[:i]
		}
		if slices.Contains(want, n) || slices.Contains(want, repo) {
			return true
		}
	}
	return false
}

// df tells how much room is used, in the form of API 1.51 and before.
func (a *systemAPI) df(w http.ResponseWriter, r *request) error {
	types := r.URL.Query()["type"]
	for _, t := range types {
		if !slices.Contains([]string{"container", "image", "volume", "build-cache"}, t) {
			return fault.Invalid.Errorf("unknown object type: %s", t)
		}
	}
	want := func(t string) bool { return len(types) == 0 || slices.Contains(types, t) }
	out := map[string]any{"BuildCache": []any{}, "BuilderSize": 0, "LayersSize": 0, "Images": []any{}, "Containers": []any{}, "Volumes": []any{}}
	ctx := r.Context()
	if want("image") {
		imgs, layers, err := imageUsage(ctx, a.b.Images)
		if err != nil {
			return err
		}
		out["Images"], out["LayersSize"] = imgs, layers
	}
	if want("container") {
		list, err := a.b.Info.List(ctx, container.ListOptions{All: true, Size: true})
		if err != nil {
			return err
		}
		out["Containers"] = list
	}
	if want("volume") {
		vols, err := a.b.Volumes.Usage(ctx)
		if err != nil {
			return err
		}
		out["Volumes"] = vols
	}
	return writeJSON(w, http.StatusOK, out)
}
