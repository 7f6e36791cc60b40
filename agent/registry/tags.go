package registry

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"

	"github.com/distribution/reference"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/oci"
)

// How long a list of tags may get.
const (
	maxTags  = 10_000
	maxPages = 500
)

// Tags lists the tags of a repository, at most 10,000. Pages follow each other
// as the registry says in its Link headers (distribution-spec, "Listing Tags");
// how long they are is left to it, as Docker does: some refuse a large number.
func (c *Client) Tags(ctx context.Context, ref string, auth model.RegistryAuth) ([]string, error) {
	r, err := parse(ref)
	if err != nil {
		return nil, err
	}
	var all []string
	err = c.each(ctx, r, false, func(e endpoint) error {
		all = nil
		seen := map[string]bool{}
		next := e.base.JoinPath("v2", r.path, "tags/list")
		for range maxPages {
			got, after, err := c.tagPage(ctx, e, r, next, auth)
			if err != nil {
				return err
			}
			for _, t := range got {
				if !seen[t] && len(all) < maxTags {
					seen[t] = true
					all = append(all, t)
				}
			}
			if after == nil || after.String() == next.String() || len(all) >= maxTags {
				break
			}
			next = after
		}
		return nil
	})
	return all, err
}

// tagPage gets one page, and where the next one is.
func (c *Client) tagPage(ctx context.Context, e endpoint, r repo, at *url.URL, auth model.RegistryAuth) ([]string, *url.URL, error) {
	resp, err := c.do(ctx, e, call{method: http.MethodGet, url: at, scope: pullScope(r), auth: auth})
	if err != nil {
		return nil, nil, unavailable(e, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, nil, apiError(resp, "repository "+reference.FamiliarName(r.Named))
	}
	b, err := oci.ReadLimited(resp.Body, oci.MaxManifest)
	if err != nil {
		return nil, nil, unavailable(e, err)
	}
	var page struct {
		Tags []string `json:"tags"`
	}
	if err := json.Unmarshal(b, &page); err != nil {
		return nil, nil, fault.Unavailable.Errorf("registry %s: list of tags: %w", e.base.Host, err)
	}
	return page.Tags, nextPage(e, at, resp.Header.Values("Link")), nil
}

// nextPage reads the link to the next page (RFC 8288). It may be relative; of
// an absolute one only path and query count: a registry behind a proxy often
// does not know its own name, and no other host is to be asked.
func nextPage(e endpoint, at *url.URL, links []string) *url.URL {
	for _, l := range strings.Split(strings.Join(links, ","), ",") {
		target, params, ok := strings.Cut(strings.TrimSpace(l), ">")
		target, isLink := strings.CutPrefix(target, "<")
		params = strings.ReplaceAll(strings.ToLower(params), `"`, "")
		if !ok || !isLink || strings.Contains(params, "rel=") && !strings.Contains(params, "rel=next") {
			continue
		}
		u, err := at.Parse(target)
		if err != nil || u.Path == "" {
			continue
		}
		return &url.URL{Scheme: e.base.Scheme, Host: e.base.Host, Path: u.Path, RawPath: u.RawPath, RawQuery: u.RawQuery}
	}
	return nil
}
