package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/publicsuffix"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/oci"
)

// token is what a token server gave, or basic credentials.
type token struct {
	header  string // value of Authorization
	expires time.Time
}

// tokenKey separates users, hosts and scopes; the secret itself is not kept
// as a key.
func tokenKey(e endpoint, k call) string {
	h := sha256.New()
	for _, s := range []string{e.base.String(), k.scope, k.auth.Username, k.auth.Password, k.auth.IdentityToken, k.auth.RegistryToken} {
		h.Write([]byte(s))
		h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil))
}

// setAuth adds what is known already.
func (c *Client) setAuth(req *http.Request, e endpoint, k call) {
	if e.mirror {
		k.auth = model.RegistryAuth{}
	}
	if k.auth.RegistryToken != "" {
		req.Header.Set("Authorization", "Bearer "+k.auth.RegistryToken)
		return
	}
	c.mu.Lock()
	t, ok := c.token[tokenKey(e, k)]
	c.mu.Unlock()
	if ok && time.Now().Before(t.expires) {
		req.Header.Set("Authorization", t.header)
	}
}

// A challenge is a parsed WWW-Authenticate header (RFC 9110, 11.6.1).
type challenge struct {
	scheme string
	params map[string]string
}

// parseChallenges reads what a server wants, which may be several things in
// one header; what is no challenge is passed over.
func parseChallenges(headers []string) []challenge {
	var out []challenge
	for _, h := range headers {
		if len(h) > 16<<10 {
			continue
		}
		scheme, rest, _ := strings.Cut(strings.TrimSpace(h), " ")
		ch := challenge{strings.ToLower(scheme), map[string]string{}}
		for rest = strings.TrimLeft(rest, " ,"); rest != ""; rest = strings.TrimLeft(rest, " ,") {
			name, after, ok := strings.Cut(rest, "=")
			if !ok {
				break
			}
			// A name after a word is the first of another challenge.
			if next, first, ok := strings.Cut(strings.TrimSpace(name), " "); ok {
				out = append(out, ch)
				ch = challenge{strings.ToLower(next), map[string]string{}}
				name = first
			}
			var value string
			if strings.HasPrefix(after, `"`) {
				value, rest = quoted(after[1:])
			} else {
				i := strings.IndexByte(after, ',')
				if i < 0 {
					i = len(after)
				}
				value, rest = strings.TrimSpace(after[:i]), after[i:]
			}
			ch.params[strings.ToLower(strings.TrimSpace(name))] = value
		}
		out = append(out, ch)
	}
	return out
}

// quoted reads up to the closing quote.
func quoted(s string) (value, rest string) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case s[i] == '"':
			return b.String(), s[i+1:]
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), ""
}

// authorize gets what a 401 asks for and remembers it.
func (c *Client) authorize(ctx context.Context, h *http.Client, e endpoint, k call, resp *http.Response) error {
	if e.mirror {
		k.auth = model.RegistryAuth{} // they are not the mirror's
	}
	refused := apiError(resp, "")
	c.mu.Lock()
	delete(c.token, tokenKey(e, k))
	c.mu.Unlock()
	for _, ch := range parseChallenges(resp.Header.Values("Www-Authenticate")) {
		switch ch.scheme {
		case "basic":
			if k.auth.Username == "" {
				refused = fault.Unauthorized.Errorf("no basic auth credentials") // as Docker says it
				continue
			}
			if e.base.Scheme == "http" && !e.insecure {
				continue
			}
			req := &http.Request{Header: http.Header{}}
			req.SetBasicAuth(k.auth.Username, k.auth.Password)
			c.remember(e, k, token{req.Header.Get("Authorization"), time.Now().Add(time.Hour)})
			return nil
		case "bearer":
			t, err := c.fetchToken(ctx, h, e, k, ch.params)
			if err != nil {
				return err
			}
			c.remember(e, k, t)
			return nil
		}
	}
	if fault.Is(refused, fault.Unauthorized) || fault.Is(refused, fault.Forbidden) {
		return refused
	}
	return fault.Unauthorized.Errorf("no basic auth credentials")
}

func (c *Client) remember(e endpoint, k call, t token) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.token) > 1000 {
		clear(c.token)
	}
	c.token[tokenKey(e, k)] = t
}

// trusts tells whether credentials for host may be shown to a token server:
// the same host at whatever port, or one of the same organisation
// (auth.docker.io for registry-1.docker.io, gitlab.com for
// registry.gitlab.com).
func trusts(host, realm string) bool {
	a, b := hostOf(host), hostOf(realm)
	if a == b {
		return true // a registry at 5000 with its token server at 5001
	}
	if a == "registry.redhat.io" && b == "sso.redhat.com" {
		return true
	}
	own := organisation(a)
	return own != "" && own == organisation(b)
}

// hostOf is a host's name or address without the port.
func hostOf(s string) string {
	if h, _, err := net.SplitHostPort(s); err == nil {
		s = h
	}
	return strings.ToLower(s)
}

// organisation gives the domain of a host's owner, as the Public Suffix List
// has it: example.co.uk for registry.example.co.uk. It is empty for addresses
// and names of which nobody knows.
func organisation(host string) string {
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return ""
	}
	// RFC 6762, appendix G: domains that are a private network's own.
	private := []string{"local", "lan", "internal", "intranet", "private", "corp", "home"}
	if top := host[strings.LastIndex(host, ".")+1:]; top != host && slices.Contains(private, top) {
		return top
	}
	own, err := publicsuffix.EffectiveTLDPlusOne(host)
	if err != nil {
		return ""
	}
	return own
}

// fetchToken asks a token server (distribution-spec's token authentication;
// with an identity token OAuth2's refresh).
func (c *Client) fetchToken(ctx context.Context, h *http.Client, e endpoint, k call, p map[string]string) (token, error) {
	u, err := url.Parse(p["realm"])
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil {
		return token{}, fault.Unavailable.Errorf("registry %s names no token server that can be used: %.200q", e.base.Host, p["realm"])
	}
	// Who calls a registry insecure means the other ports of its host, too.
	insecure := e.insecure && (hostOf(u.Host) == hostOf(e.base.Host) || c.IsInsecure(ctx, u.Host))
	if u.Scheme == "http" && !insecure && !(e.insecure && e.base.Scheme == "http") {
		return token{}, fault.Forbidden.Errorf("registry %s sends to a token server over plain HTTP at %s: refused", e.base.Host, u.Host)
	}
	var withheld string
	if !trusts(e.base.Host, u.Host) && k.auth != (model.RegistryAuth{}) {
		withheld = fmt.Sprintf("; its token server %s is another host: the credentials were not shown to it", u.Host)
		c.o.Log.Warn("credentials withheld from a token server on another host", "registry", e.base.Host, "server", u.Host)
		k.auth = model.RegistryAuth{}
	}
	scopes := []string{}
	if k.scope != "" && !(e.mirror && p["scope"] != "") { // a mirror may have its own names
		scopes = strings.Split(k.scope, " ")
	} else if p["scope"] != "" {
		scopes = []string{p["scope"]}
	}
	if u.Host != e.base.Host {
		if h, err = c.client(endpoint{base: u, insecure: insecure}); err != nil {
			return token{}, err
		}
	}
	offline := k.refresh != nil && k.auth.Username != ""
	req, err := tokenRequest(ctx, u, k.auth, p["service"], scopes, offline)
	if err != nil {
		return token{}, fault.Unavailable.Errorf("token of registry %s: %w", e.base.Host, err)
	}
	req.Header.Set("User-Agent", c.o.UserAgent)
	resp, err := h.Do(req)
	if err != nil {
		return token{}, fault.Unavailable.Errorf("token of registry %s: %w", e.base.Host, noSecrets(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		if err := apiError(resp, ""); withheld == "" {
			return token{}, err
		}
		return token{}, fault.Unauthorized.Errorf("unauthorized: registry %s%s", e.base.Host, withheld)
	}
	t, refresh, err := readToken(resp)
	if offline {
		*k.refresh = refresh
	}
	return t, err
}

func tokenRequest(ctx context.Context, u *url.URL, auth model.RegistryAuth, service string, scopes []string, offline bool) (*http.Request, error) {
	if auth.IdentityToken != "" {
		form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {auth.IdentityToken}, "service": {service}, "client_id": {"docker"}, "scope": {strings.Join(scopes, " ")}}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), strings.NewReader(form.Encode()))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		return req, err
	}
	v := u.Query()
	if service != "" {
		v.Set("service", service)
	}
	for _, s := range scopes {
		v.Add("scope", s)
	}
	if auth.Username != "" {
		v.Set("account", auth.Username)
	}
	if offline { // also a token to log in with instead of the password
		v.Set("offline_token", "true")
		v.Set("client_id", "docker")
	}
	with := *u
	with.RawQuery = v.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, with.String(), nil)
	if err == nil && auth.Username != "" {
		req.SetBasicAuth(auth.Username, auth.Password)
	}
	return req, err
}

func readToken(resp *http.Response) (t token, refresh string, err error) {
	b, err := oci.ReadLimited(resp.Body, 1<<20)
	if err != nil {
		return token{}, "", fault.Unavailable.Errorf("read token: %w", err)
	}
	var got struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
		Refresh     string `json:"refresh_token"`
	}
	if err := json.Unmarshal(b, &got); err != nil {
		return token{}, "", fault.Unavailable.Errorf("read token: %w", err)
	}
	if got.Token == "" {
		got.Token = got.AccessToken
	}
	if got.Token == "" || strings.ContainsAny(got.Token, "\r\n") {
		return token{}, "", fault.Unauthorized.Errorf("authorization server did not include a token in the response")
	}
	life := min(max(time.Duration(got.ExpiresIn)*time.Second, time.Minute), 24*time.Hour)
	return token{"Bearer " + got.Token, time.Now().Add(life - 10*time.Second)}, got.Refresh, nil
}

// noSecrets drops the query of a URL from an error: it may hold a name.
func noSecrets(err error) error {
	if u, ok := err.(*url.Error); ok {
		return u.Err
	}
	return err
}

// Login checks credentials at a registry; their ServerAddress may be empty for
// Docker Hub. Unauthorized when they are refused. The identity token is empty
// unless the registry gave one.
func (c *Client) Login(ctx context.Context, auth model.RegistryAuth) (status, identityToken string, err error) {
	host := auth.ServerAddress
	if u, err := url.Parse(host); err == nil && u.Host != "" {
		host = u.Host
	}
	host, _, _ = strings.Cut(host, "/")
	if host == "" || host == "index.docker.io" {
		host = hubDomain
	}
	err = c.each(ctx, repo{domain: host}, true, func(e endpoint) error {
		k := call{method: http.MethodGet, path: "/", auth: auth, refresh: &identityToken}
		c.mu.Lock()
		delete(c.token, tokenKey(e, k)) // only a fresh one comes with an identity token
		c.mu.Unlock()
		resp, err := c.do(ctx, e, k)
		if err != nil {
			return unavailable(e, err)
		}
		defer drain(resp)
		if resp.StatusCode/100 != 2 {
			return refusedLogin(resp)
		}
		return nil
	})
	if err != nil {
		return "", "", err
	}
	return "Login Succeeded", identityToken, nil
}

// refusedLogin has Docker's words for what the registry itself, not a token
// server, answered.
func refusedLogin(resp *http.Response) error {
	text := fmt.Sprintf("login attempt to %s failed with status: %s", resp.Request.URL.Redacted(), resp.Status)
	switch {
	case resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusForbidden:
		return fault.Unauthorized.Errorf("%s", text)
	case resp.StatusCode >= 500:
		return fault.Unavailable.Errorf("%s", text)
	}
	return fault.Invalid.Errorf("%s", text)
}
