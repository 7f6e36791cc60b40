package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/oci"
)

// Search asks an index for images by a term: Docker Hub's, or that of the
// registry which the term begins with, as in "host:5000/term". limit 0 is 25.
// NotImplemented when the registry offers no search: few but Docker Hub do.
func (c *Client) Search(ctx context.Context, term string, limit int, auth model.RegistryAuth) (out []Found, err error) {
	if limit <= 0 {
		limit = 25
	}
	host, rest, ok := strings.Cut(term, "/")
	if !ok || !strings.ContainsAny(host, ".:") && host != "localhost" || host == hubDomain || host == "index.docker.io" {
		if ok && (host == hubDomain || host == "index.docker.io") {
			term = rest
		}
		return c.searchAt(ctx, endpoint{base: hubIndex()}, term, limit, auth)
	}
	err = c.each(ctx, repo{domain: host}, true, func(e endpoint) (err error) {
		out, err = c.searchAt(ctx, e, rest, limit, auth)
		return err
	})
	return out, err
}

func (c *Client) searchAt(ctx context.Context, e endpoint, term string, limit int, auth model.RegistryAuth) ([]Found, error) {
	h, err := c.client(e)
	if err != nil {
		return nil, err
	}
	u := *e.base
	u.Path, u.RawQuery = "/v1/search", fmt.Sprintf("q=%s&n=%d", url.QueryEscape(term), min(limit, 100))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fault.Invalid.Errorf("search: %w", err)
	}
	req.Header.Set("User-Agent", c.o.UserAgent)
	if auth.Username != "" && (u.Scheme == "https" || e.insecure) {
		req.SetBasicAuth(auth.Username, auth.Password)
	}
	resp, err := h.Do(req)
	if err != nil {
		return nil, unavailable(e, err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return nil, fault.NotImplemented.Errorf("registry %s offers no search: its catalogue may be at /v2/_catalog", e.base.Host)
	default:
		return nil, apiError(resp, "")
	}
	b, err := oci.ReadLimited(resp.Body, oci.MaxManifest)
	if err != nil {
		return nil, unavailable(e, err)
	}
	var out struct {
		Results []Found `json:"results"`
	}
	if err := json.Unmarshal(b, &out); err != nil {
		return nil, fault.NotImplemented.Errorf("registry %s offers no search: it answers something else: %w", e.base.Host, err)
	}
	return out.Results, nil
}

// A Found is one result of a search.
type Found struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	StarCount   int    `json:"star_count"`
	IsOfficial  bool   `json:"is_official"`
	IsAutomated bool   `json:"is_automated"`
}
