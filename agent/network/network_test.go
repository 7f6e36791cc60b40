package network

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	apinetwork "github.com/moby/moby/api/types/network"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/network/link"
)

// quiet is a driver that touches nothing.
type quiet struct{ name string }

func (q quiet) Name() string                                             { return q.name }
func (quiet) Prepare(*Network) (bool, error)                             { return true, nil }
func (quiet) CreateNetwork(context.Context, *Network) error              { return nil }
func (quiet) DeleteNetwork(context.Context, *Network) error              { return nil }
func (quiet) Join(context.Context, *Network, *Endpoint, *link.NS) error  { return nil }
func (quiet) Leave(context.Context, *Network, *Endpoint, *link.NS) error { return nil }

func openTest(t *testing.T, root string) *Manager {
	t.Helper()
	m, err := Open(context.Background(), Options{Root: filepath.Join(root, "root"), ExecRoot: filepath.Join(root, "exec"),
		Drivers: []Driver{quiet{"test"}, quiet{"host"}, quiet{"null"}}, HostResolvConf: filepath.Join(root, "resolv.conf")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func create(t *testing.T, m *Manager, name string, ipam ...apinetwork.IPAMConfig) string {
	t.Helper()
	r, err := m.Create(context.Background(), apinetwork.CreateRequest{Name: name, Driver: "test", IPAM: &apinetwork.IPAM{Config: ipam}})
	if err != nil {
		t.Fatal(err)
	}
	return r.ID
}

func TestCreateInspectRemove(t *testing.T) {
	ctx, root := context.Background(), t.TempDir()
	m := openTest(t, root)
	id := create(t, m, "back", apinetwork.IPAMConfig{Subnet: netip.MustParsePrefix("10.99.0.0/24")})
	for _, ref := range []string{"back", id, id[:12]} {
		if n, err := m.Get(ref); err != nil || n.ID != id {
			t.Errorf("get %s: %v", ref, err)
		}
	}
	in, err := m.Inspect("back")
	if err != nil || in.IPAM.Config[0].Gateway.String() != "10.99.0.1" || in.Scope != "local" || !in.EnableIPv4 || in.EnableIPv6 {
		t.Errorf("got %+v, %v", in, err)
	}
	again := openTest(t, root) // a restart
	if n, err := again.Get("back"); err != nil || n.ID != id {
		t.Errorf("after a restart: %v", err)
	}
	if err := m.Remove(ctx, "back"); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Get("back"); !fault.Is(err, fault.NotFound) || err.Error() != "network back not found" {
		t.Errorf("got %v", err)
	}
	create(t, m, "next", apinetwork.IPAMConfig{Subnet: netip.MustParsePrefix("10.99.0.0/24")}) // the subnet is free again
}

func TestCreateRefuses(t *testing.T) {
	m := openTest(t, t.TempDir())
	create(t, m, "back", apinetwork.IPAMConfig{Subnet: netip.MustParsePrefix("10.99.0.0/24")})
	cfg := func(c apinetwork.IPAMConfig) *apinetwork.IPAM {
		return &apinetwork.IPAM{Config: []apinetwork.IPAMConfig{c}}
	}
	for _, c := range []struct {
		r    apinetwork.CreateRequest
		kind fault.Kind
	}{
		{apinetwork.CreateRequest{Name: "back", Driver: "test"}, fault.Conflict},
		{apinetwork.CreateRequest{Name: "host", Driver: "test"}, fault.Forbidden},
		{apinetwork.CreateRequest{Name: "", Driver: "test"}, fault.Invalid},
		{apinetwork.CreateRequest{Name: "../x", Driver: "test"}, fault.Invalid},
		{apinetwork.CreateRequest{Name: "x", Driver: "ghost"}, fault.NotFound},
		{apinetwork.CreateRequest{Name: "x", Driver: "test", IPAM: cfg(apinetwork.IPAMConfig{Subnet: netip.MustParsePrefix("10.99.0.128/25")})}, fault.Forbidden},
		{apinetwork.CreateRequest{Name: "x", Driver: "test", IPAM: cfg(apinetwork.IPAMConfig{Subnet: netip.MustParsePrefix("10.98.0.1/24")})}, fault.Invalid},
		{apinetwork.CreateRequest{Name: "x", Driver: "test", IPAM: cfg(apinetwork.IPAMConfig{Gateway: netip.MustParseAddr("10.98.0.1")})}, fault.Invalid},
	} {
		if _, err := m.Create(context.Background(), c.r); !fault.Is(err, c.kind) {
			t.Errorf("%+v: got %v, want kind %d", c.r, err, c.kind)
		}
	}
	if n := len(m.List()); n != 3 { // host, none, back: nothing half-made
		t.Errorf("%d networks, want 3", n)
	}
	create(t, m, "y", apinetwork.IPAMConfig{Subnet: netip.MustParsePrefix("10.97.0.0/24")})
}

func TestRemoveRefuses(t *testing.T) {
	ctx := context.Background()
	m := openTest(t, t.TempDir())
	if err := m.Remove(ctx, "host"); !fault.Is(err, fault.Forbidden) {
		t.Errorf("predefined: got %v", err)
	}
	id := create(t, m, "back", apinetwork.IPAMConfig{Subnet: netip.MustParsePrefix("10.99.0.0/24")})
	c := model.AttachConfig{ContainerID: strings.Repeat("c", 64), ContainerName: "/web", NetworkRef: "back"}
	if _, err := m.Attach(ctx, c); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Attach(ctx, c); !fault.Is(err, fault.Forbidden) {
		t.Errorf("second attach: got %v", err)
	}
	if err := m.Remove(ctx, "back"); !fault.Is(err, fault.Forbidden) || !strings.Contains(err.Error(), `has active endpoints (name:"web"`) {
		t.Errorf("got %v", err)
	}
	if r, err := m.Prune(ctx, nil, nil); err != nil || len(r.NetworksDeleted) != 0 {
		t.Errorf("prune: got %+v, %v", r, err)
	}
	for range 2 {
		if err := m.Detach(ctx, c.ContainerID, id); err != nil {
			t.Error(err)
		}
	}
	if r, err := m.Prune(ctx, nil, nil); err != nil || len(r.NetworksDeleted) != 1 {
		t.Errorf("prune: got %+v, %v", r, err)
	}
}

func TestListFilters(t *testing.T) {
	m := openTest(t, t.TempDir())
	create(t, m, "back", apinetwork.IPAMConfig{Subnet: netip.MustParsePrefix("10.99.0.0/24")})
	for _, c := range []struct {
		f    model.Filters
		want int
	}{
		{nil, 3}, {model.Filters{"type": {"custom"}}, 1}, {model.Filters{"type": {"builtin"}}, 2}, {model.Filters{"name": {"^ba"}}, 1},
		{model.Filters{"driver": {"test", "host"}}, 2}, {model.Filters{"dangling": {"true"}}, 1}, {model.Filters{"label": {"x"}}, 0},
	} {
		if got, err := m.ListFiltered(c.f); err != nil || len(got) != c.want {
			t.Errorf("%v: got %d, %v, want %d", c.f, len(got), err, c.want)
		}
	}
	if _, err := m.ListFiltered(model.Filters{"ghost": {"x"}}); !fault.Is(err, fault.Invalid) {
		t.Errorf("got %v", err)
	}
}

func TestWayOut(t *testing.T) {
	ep := func(name string, prio int, internal bool) *Endpoint {
		e := &Endpoint{Internal: internal}
		e.NetworkName, e.GwPriority = name, prio
		e.IPv4, e.Gateway = netip.MustParsePrefix("10.0.0.2/24"), netip.MustParseAddr("10.0.0.1")
		return e
	}
	eps := map[string]*Endpoint{"1": ep("b", 0, false), "2": ep("a", 0, false), "3": ep("z", 9, true)}
	if got := wayOut(eps, false, ""); got.NetworkName != "a" {
		t.Errorf("got %s, want a", got.NetworkName)
	}
	eps["4"] = ep("c", 1, false)
	if got := wayOut(eps, false, ""); got.NetworkName != "c" {
		t.Errorf("got %s, want c", got.NetworkName)
	}
	if got := wayOut(eps, false, "4"); got.NetworkName != "a" {
		t.Errorf("got %s, want a", got.NetworkName)
	}
	if wayOut(eps, true, "") != nil {
		t.Error("no endpoint has IPv6")
	}
}

func TestNames(t *testing.T) {
	tab := newNames()
	ep := func(id, netID, netName, container, ip string, links ...string) *Endpoint {
		e := &Endpoint{}
		e.ID, e.NetworkID, e.NetworkName, e.ContainerName = id, netID, netName, container
		e.IPv4, e.DNSNames, e.Links = netip.MustParsePrefix(ip+"/24"), []string{container, "Alias"}, links
		return e
	}
	a, b, c := ep("1", "n1", "back", "web", "10.0.0.2", "db:store"), ep("2", "n1", "back", "db", "10.0.0.3"), ep("3", "n2", "front", "far", "10.1.0.2")
	for _, e := range []*Endpoint{a, b, c} {
		tab.add(e)
	}
	v := &views{t: tab}
	v.set(map[string]*Endpoint{"n1": a})
	for name, want := range map[string]int{"web": 1, "db.back": 1, "store": 1, "alias": 2, "far": 0, "ghost": 0, "db.front": 0} {
		if got, known := v.Lookup(name); len(got) != want || known != (want > 0) {
			t.Errorf("%s: got %v, %v", name, got, known)
		}
	}
	if name, ok := v.Reverse(netip.MustParseAddr("10.0.0.3")); !ok || name != "db.back" {
		t.Errorf("got %s", name)
	}
	if _, ok := v.Reverse(netip.MustParseAddr("10.1.0.2")); ok {
		t.Error("an address of another network is not known")
	}
	tab.remove(b)
	if _, known := v.Lookup("db"); known {
		t.Error("db is gone")
	}
}

func TestResolvConf(t *testing.T) {
	root := t.TempDir()
	m := openTest(t, root)
	if err := os.WriteFile(filepath.Join(root, "resolv.conf"), []byte("# x\nnameserver 127.0.0.1\nnameserver 10.9.9.9\nsearch corp\noptions timeout:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := m.ResolvConf(context.Background(), "/none", model.DNSConfig{}, false)
	if err != nil || strings.Contains(string(got), "127.0.0.1") || !strings.Contains(string(got), "nameserver 10.9.9.9\nsearch corp\noptions timeout:1\n") {
		t.Errorf("got %q, %v", got, err)
	}
	got, err = m.ResolvConf(context.Background(), "/none", model.DNSConfig{Servers: []netip.Addr{netip.MustParseAddr("1.1.1.1")}, Search: []string{"."}, Options: []string{"ndots:2"}}, false)
	if err != nil || !strings.HasSuffix(string(got), "nameserver 1.1.1.1\noptions ndots:2\n") {
		t.Errorf("got %q, %v", got, err)
	}
	if err := os.Remove(filepath.Join(root, "resolv.conf")); err != nil {
		t.Fatal(err)
	}
	if got, _ = m.ResolvConf(context.Background(), "/none", model.DNSConfig{}, false); !strings.Contains(string(got), "nameserver 8.8.8.8") {
		t.Errorf("got %q", got)
	}
}

func TestHostPorts(t *testing.T) {
	h := newHostPorts()
	defer h.close()
	lo := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	port, got, err := h.take(apinetwork.TCP, lo, 0, 0)
	if err != nil || port == 0 || len(got) != 1 {
		t.Fatalf("got %d, %v, %v", port, got, err)
	}
	_, _, err = h.take(apinetwork.TCP, lo, port, port)
	if err == nil || !strings.Contains(err.Error(), "port is already allocated") {
		t.Errorf("held by us: got %v", err)
	}
	if next, _, err := h.take(apinetwork.TCP, lo, port, port+20); err != nil || next == port {
		t.Errorf("a range: got %d, %v", next, err)
	}
	h.release(PortBinding{Port: apinetwork.MustParsePort("80/tcp"), HostIP: lo[0], HostPort: port})
	if _, _, err = h.take(apinetwork.TCP, lo, port, port); err != nil {
		t.Errorf("after a release: %v", err)
	}
}

func TestParseHostPort(t *testing.T) {
	for s, want := range map[string][2]uint16{"": {0, 0}, "8080": {8080, 8080}, "8000-8010": {8000, 8010}} {
		if lo, hi, err := parseHostPort(s); err != nil || lo != want[0] || hi != want[1] {
			t.Errorf("%q: got %d, %d, %v", s, lo, hi, err)
		}
	}
	for _, s := range []string{"x", "70000", "10-5", "-1", "1-"} {
		if _, _, err := parseHostPort(s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}
