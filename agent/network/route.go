package network

import (
	"context"
	"errors"
	"strings"

	"machine/agent/network/link"
)

// wayOut picks the endpoint that holds the default route of one family: by
// gw-priority, then the one with both families, then by network name. without
// names a network that does not count.
func wayOut(eps map[string]*Endpoint, v6 bool, without string) *Endpoint {
	var best *Endpoint
	for id, ep := range eps {
		if id == without || ep.Internal || !ep.routes(v6) {
			continue
		}
		if best == nil || better(ep, best) {
			best = ep
		}
	}
	return best
}

func (ep *Endpoint) routes(v6 bool) bool {
	if v6 {
		return ep.IPv6.IsValid() && (ep.Gateway6.IsValid() || ep.DeviceRoute)
	}
	return ep.IPv4.IsValid() && (ep.Gateway.IsValid() || ep.DeviceRoute)
}

func better(a, b *Endpoint) bool {
	if a.GwPriority != b.GwPriority {
		return a.GwPriority > b.GwPriority
	}
	if x, y := a.routes(false) && a.routes(true), b.routes(false) && b.routes(true); x != y {
		return x
	}
	return strings.Compare(a.NetworkName, b.NetworkName) < 0
}

// route gives the namespace its default routes and lets the published ports
// follow the way out. The caller holds sb.mu.
func (m *Manager) route(ctx context.Context, sb *sandbox, ns *link.NS, without string) error {
	var errs []error
	for _, v6 := range []bool{false, true} {
		ep := wayOut(sb.eps, v6, without)
		var gw *link.Gateway
		if ep != nil {
			gw = &link.Gateway{Dev: ep.IfName}
			switch {
			case ep.DeviceRoute:
			case v6:
				gw.Addr = ep.Gateway6
			default:
				gw.Addr = ep.Gateway
			}
		}
		// A namespace without IPv6 has no IPv6 route to remove.
		if v6 && gw == nil && !anyIPv6(sb.eps) {
			continue
		}
		errs = append(errs, ns.SetDefault(v6, gw))
	}
	return errors.Join(append(errs, m.movePorts(ctx, sb, without))...)
}

func anyIPv6(eps map[string]*Endpoint) bool {
	for _, ep := range eps {
		if ep.IPv6.IsValid() {
			return true
		}
	}
	return false
}

// movePorts publishes the container's ports at the endpoint that is the way
// out, and nowhere else. Ports that were published keep their host ports.
func (m *Manager) movePorts(ctx context.Context, sb *sandbox, without string) error {
	out := wayOut(sb.eps, false, without)
	if out == nil {
		out = wayOut(sb.eps, true, without)
	}
	requests := sb.moved
	var errs []error
	for _, ep := range sb.eps {
		if ep == out {
			continue
		}
		if len(ep.Ports) > 0 {
			requests = pinned(ep.Ports)
			errs = append(errs, m.unpublish(ctx, ep), m.eps.Put(ep.ID, ep))
		} else if requests == nil {
			requests = ep.Requests
		}
	}
	if out == nil {
		return errors.Join(errs...)
	}
	if len(out.Ports) > 0 {
		return errors.Join(errs...)
	}
	if len(out.Requests) > 0 && !exact(requests) {
		requests = out.Requests
	}
	if len(requests) > 0 {
		errs = append(errs, m.publish(ctx, out, requests))
	}
	return errors.Join(errs...)
}

// pinned asks for the bindings that there were.
func pinned(b []PortBinding) []PortRequest {
	var out []PortRequest
	for _, p := range b {
		out = append(out, PortRequest{Port: p.Port, HostIP: p.HostIP, HostPort: itoa(p.HostPort)})
	}
	return out
}

// exact reports whether requests came from bindings.
func exact(r []PortRequest) bool {
	for _, p := range r {
		if !p.HostIP.IsValid() || p.HostPort == "" || strings.Contains(p.HostPort, "-") {
			return false
		}
	}
	return len(r) > 0
}
