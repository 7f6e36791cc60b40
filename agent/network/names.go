package network

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// names is the table of service names: what the embedded resolvers answer
// from. Queries never wait for an attachment.
type names struct {
	mu    sync.RWMutex
	byNet map[string]*netNames
}

type netNames struct {
	addrs map[string]map[string][]netip.Addr // name to endpoint id to addresses
	rev   map[netip.Addr]string              // address to the container's name
}

func newNames() *names { return &names{byNet: map[string]*netNames{}} }

// add makes an endpoint's names known. Safe to repeat.
func (t *names) add(ep *Endpoint) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byNet[ep.NetworkID]
	if n == nil {
		n = &netNames{addrs: map[string]map[string][]netip.Addr{}, rev: map[netip.Addr]string{}}
		t.byNet[ep.NetworkID] = n
	}
	var list []netip.Addr
	for _, p := range []netip.Prefix{ep.IPv4, ep.IPv6} {
		if p.IsValid() {
			list = append(list, p.Addr())
			n.rev[p.Addr()] = ep.ContainerName + "." + ep.NetworkName
		}
	}
	for _, name := range ep.DNSNames {
		name = strings.ToLower(name)
		if n.addrs[name] == nil {
			n.addrs[name] = map[string][]netip.Addr{}
		}
		n.addrs[name][ep.ID] = list
	}
}

// remove forgets an endpoint's names. Safe to repeat.
func (t *names) remove(ep *Endpoint) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byNet[ep.NetworkID]
	if n == nil {
		return
	}
	for name, eps := range n.addrs {
		delete(eps, ep.ID)
		if len(eps) == 0 {
			delete(n.addrs, name)
		}
	}
	for _, p := range []netip.Prefix{ep.IPv4, ep.IPv6} {
		if p.IsValid() {
			delete(n.rev, p.Addr())
		}
	}
	if len(n.addrs) == 0 {
		delete(t.byNet, ep.NetworkID)
	}
}

// A view is what one sandbox sees of a network.
type view struct {
	netID, netName string
	links          map[string]string // alias to container name, lower case
}

// views implements the records of one sandbox's resolver.
type views struct {
	t    *names
	list atomic.Pointer[[]view]
}

func (v *views) set(eps map[string]*Endpoint) {
	list := make([]view, 0, len(eps))
	for _, ep := range eps {
		w := view{netID: ep.NetworkID, netName: strings.ToLower(ep.NetworkName), links: map[string]string{}}
		for _, l := range ep.Links {
			target, alias, ok := strings.Cut(strings.ToLower(l), ":")
			if !ok {
				alias = target
			}
			w.links[strings.TrimPrefix(alias, "/")] = strings.TrimPrefix(target, "/")
		}
		list = append(list, w)
	}
	slices.SortFunc(list, func(a, b view) int { return strings.Compare(a.netName, b.netName) })
	v.list.Store(&list)
}

// Lookup implements dns.Records: links first, then names, then name.network.
func (v *views) Lookup(name string) (out []netip.Addr, known bool) {
	list := v.list.Load()
	if list == nil {
		return nil, false
	}
	v.t.mu.RLock()
	defer v.t.mu.RUnlock()
	for _, w := range *list {
		if target, ok := w.links[name]; ok {
			if a, ok := v.in(w, target); ok {
				return a, true
			}
		}
	}
	for _, w := range *list {
		a, ok := v.in(w, name)
		if !ok {
			if short, in := strings.CutSuffix(name, "."+w.netName); in {
				a, ok = v.in(w, short)
			}
		}
		known = known || ok
		out = append(out, a...)
	}
	return out, known
}

func (v *views) in(w view, name string) (out []netip.Addr, known bool) {
	n := v.t.byNet[w.netID]
	if n == nil {
		return nil, false
	}
	for _, a := range n.addrs[name] {
		out, known = append(out, a...), true
	}
	return out, known
}

// Reverse implements dns.Records.
func (v *views) Reverse(a netip.Addr) (string, bool) {
	list := v.list.Load()
	if list == nil {
		return "", false
	}
	v.t.mu.RLock()
	defer v.t.mu.RUnlock()
	for _, w := range *list {
		if n := v.t.byNet[w.netID]; n != nil {
			if name, ok := n.rev[a]; ok {
				return name, true
			}
		}
	}
	return "", false
}
