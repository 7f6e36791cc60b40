package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apinetwork "github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"machine/agent/model"
	"machine/agent/network"
	"machine/agent/network/firewall"
	"machine/agent/network/link"
)

const inside = "MACHINE_TEST_NETNS"

var hostAddr = netip.MustParseAddr("192.0.2.1")

func TestPublish(t *testing.T) {
	b := newBench(t)
	web := b.run("web", "bridge", port("80/tcp", "", "8080"))
	web.serve(80, "web")
	other := b.run("other", "bridge")
	if web.ep.IfName != "eth0" || web.ep.IPv4.Bits() != 16 || len(web.ep.Ports) == 0 || web.ep.Ports[0].HostPort != 8080 {
		t.Errorf("got %+v", web.ep)
	}
	b.reach(nil, web.ep.IPv4.Addr().String()+":80", "web")      // the host, directly
	b.reach(nil, "127.0.0.1:8080", "web")                       // the host, published
	b.reach(nil, hostAddr.String()+":8080", "web")              // the host, by its address
	b.reach(b.outside, hostAddr.String()+":8080", "web")        // a neighbour
	b.reach(other.ns, web.ep.IPv4.Addr().String()+":80", "web") // on the bridge
	b.reach(other.ns, hostAddr.String()+":8080", "web")         // hairpin
	b.reach(web.ns, hostAddr.String()+":8080", "web")           // hairpin to itself
	b.reach(nil, "[::1]:8080", "web")                           // relayed: the container has no IPv6
	b.blocked(b.outside, web.ep.IPv4.Addr().String()+":80")     // not published
	other.serve(9000, "out")
	b.blocked(b.outside, other.ep.IPv4.Addr().String()+":9000")
	check(t, b.m.Detach(context.Background(), web.id, web.ep.NetworkID))
	b.blocked(b.outside, hostAddr.String()+":8080")
	if devs, err := web.ns.Devs(); err != nil || devs["eth0"] {
		t.Errorf("after the detach: got %v, %v", devs, err)
	}
}

func TestMasquerade(t *testing.T) {
	b := newBench(t)
	c := b.run("c", "bridge")
	var l net.Listener
	check(t, b.outside.Do(func() (err error) { l, err = net.Listen("tcp4", "0.0.0.0:80"); return err }))
	defer l.Close()
	peer := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			peer <- err.Error()
			return
		}
		peer <- conn.RemoteAddr().String()
		_, _ = io.WriteString(conn, "x")
		conn.Close()
	}()
	b.reach(c.ns, "192.0.2.2:80", "x")
	if got := <-peer; !strings.HasPrefix(got, hostAddr.String()+":") {
		t.Errorf("the neighbour saw %s, want the host's address", got)
	}
}

func TestPortConflicts(t *testing.T) {
	b := newBench(t)
	b.run("one", "bridge", port("80/tcp", "", "8080"))
	_, err := b.try("two", "bridge", port("80/tcp", "", "8080"))
	if err == nil || !strings.Contains(err.Error(), "driver failed programming external connectivity on endpoint two (") ||
		!strings.Contains(err.Error(), "Bind for 0.0.0.0:8080 failed: port is already allocated") {
		t.Errorf("got %v", err)
	}
	l, err := net.Listen("tcp4", "0.0.0.0:8081")
	check(t, err)
	defer l.Close()
	if _, err := b.try("three", "bridge", port("80/tcp", "", "8081")); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("got %v", err)
	}
	four := b.run("four", "bridge", port("80/tcp", "", "8080-8090"), port("81/tcp", "", ""))
	if p := four.ep.Ports; len(p) < 2 || p[0].HostPort != 8082 || p[len(p)-1].HostPort == 0 {
		t.Errorf("got %+v", p)
	}
}

func TestS35Isolation(t *testing.T) {
	b := newBench(t)
	b.network(apinetwork.CreateRequest{Name: "back"})
	b.network(apinetwork.CreateRequest{Name: "closed", Internal: true})
	b.network(apinetwork.CreateRequest{Name: "noicc", Options: map[string]string{optICC: "false"}})
	local := b.run("local", "bridge", port("80/tcp", "127.0.0.1", "8080"))
	local.serve(80, "local")
	back := b.run("back", "back")
	back.serve(80, "back")
	b.reach(nil, "127.0.0.1:8080", "local")
	b.blocked(b.outside, hostAddr.String()+":8080")
	b.blocked(back.ns, hostAddr.String()+":8080")
	b.blocked(local.ns, back.ep.IPv4.Addr().String()+":80") // another bridge
	// The neighbour sends to 127.0.0.1 by our address.
	check(t, b.outside.SetSysctl("net/ipv4/conf/all/route_localnet", "1"))
	check(t, b.outside.Do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		for _, p := range []string{"127.0.0.0/8", "127.0.0.1/32"} {
			local := &netlink.Route{Dst: link.ToIPNet(netip.MustParsePrefix(p)), Table: 255, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST}
			if err := h.RouteDel(local); err != nil {
				return fmt.Errorf("remove local route %s: %w", p, err)
			}
		}
		eth, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		return h.RouteReplace(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: hostAddr.AsSlice(), Dst: link.ToIPNet(netip.MustParsePrefix("127.0.0.0/8"))})
	}))
	b.blocked(b.outside, "127.0.0.1:8080")

	closed, peer := b.run("closed", "closed"), b.run("peer", "closed")
	closed.serve(80, "closed")
	b.reach(peer.ns, closed.ep.IPv4.Addr().String()+":80", "closed")
	b.blocked(back.ns, closed.ep.IPv4.Addr().String()+":80")
	b.blocked(closed.ns, back.ep.IPv4.Addr().String()+":80")
	if closed.ep.Gateway.IsValid() {
		t.Errorf("an internal network has the gateway %s", closed.ep.Gateway)
	}
}

func TestS35SelfHeal(t *testing.T) {
	b := newBench(t)
	web := b.run("web", "bridge", port("80/tcp", "", "8080"))
	web.serve(80, "web")
	b.reach(b.outside, hostAddr.String()+":8080", "web")
	check(t, firewall.New(slog.New(slog.DiscardHandler)).Close()) // somebody flushes the rules
	b.blocked(b.outside, hostAddr.String()+":8080")
	check(t, b.m.Check(context.Background()))
	b.reach(b.outside, hostAddr.String()+":8080", "web")
	if healed, err := b.fw.Check(context.Background()); healed || err != nil {
		t.Errorf("nothing to heal: got %v, %v", healed, err)
	}
}

func TestNames(t *testing.T) {
	b := newBench(t)
	b.network(apinetwork.CreateRequest{Name: "back"})
	web, db := b.run("web", "back"), b.run("db", "back")
	for _, proto := range []string{"udp", "tcp"} {
		for _, name := range []string{"db", "db.back", db.id[:12]} {
			got, err := query(web.ns, proto, name)
			if err != nil || len(got) != 1 || got[0] != db.ep.IPv4.Addr().String() {
				t.Errorf("%s %s: got %v, %v", proto, name, got, err)
			}
		}
	}
	web.serve(53, "the container's own name server") // port 53 is free in the container
	b.m.Rename(db.id, "/store")
	if got, err := query(web.ns, "udp", "store"); err != nil || len(got) != 1 {
		t.Errorf("after the rename: got %v, %v", got, err)
	}
	check(t, b.m.Detach(context.Background(), db.id, "back"))
	if got, _ := query(web.ns, "udp", "store"); len(got) != 0 {
		t.Errorf("after the detach: got %v", got)
	}
}

func TestTwoNetworks(t *testing.T) {
	b := newBench(t)
	b.network(apinetwork.CreateRequest{Name: "aa"})
	b.network(apinetwork.CreateRequest{Name: "zz"})
	c := b.run("c", "zz", port("80/tcp", "", "8080"))
	c.serve(80, "c")
	b.reach(b.outside, hostAddr.String()+":8080", "c")
	ep, err := b.m.Attach(context.Background(), model.AttachConfig{ContainerID: c.id, ContainerName: "c", NetworkRef: "aa", SandboxKey: c.key})
	check(t, err)
	if ep.IfName != "eth1" || len(ep.Ports) == 0 {
		t.Errorf("the ports did not follow the way out: got %+v", ep)
	}
	b.reach(b.outside, hostAddr.String()+":8080", "c")
	check(t, b.m.Detach(context.Background(), c.id, "aa"))
	b.reach(b.outside, hostAddr.String()+":8080", "c")
}

func TestF29Restore(t *testing.T) {
	b := newBench(t)
	b.network(apinetwork.CreateRequest{Name: "back"})
	web, dead := b.run("web", "back", port("80/tcp", "", "8080")), b.run("dead", "back")
	web.serve(80, "web")
	ctx := context.Background()
	dead.close()
	check(t, b.m.Close()) // the agent ends, the containers stay
	b.reach(b.outside, hostAddr.String()+":8080", "web")
	b.open()
	check(t, b.m.Restore(ctx, map[string]string{web.id: web.key}))
	b.reach(b.outside, hostAddr.String()+":8080", "web")
	if got, err := query(web.ns, "udp", "web"); err != nil || len(got) != 1 {
		t.Errorf("names after the restart: got %v, %v", got, err)
	}
	if _, err := os.Stat(dead.key); !os.IsNotExist(err) {
		t.Errorf("the dead container's namespace is left: %v", err)
	}
	in, err := b.m.Inspect("back")
	if err != nil || len(in.Containers) != 1 || in.Containers[web.id].Name != "web" {
		t.Errorf("got %+v, %v", in.Containers, err)
	}
	if _, err := b.try("late", "bridge", port("80/tcp", "", "8080")); err == nil {
		t.Error("the port is not held after the restart")
	}
}

func TestNothingIsLeft(t *testing.T) {
	b := newBench(t)
	id := b.network(apinetwork.CreateRequest{Name: "back"})
	ctx := context.Background()
	for i := range 5 {
		c := b.run(fmt.Sprint("c", i), "back")
		c.close()
		check(t, b.m.RemoveSandbox(ctx, c.key))
		check(t, b.m.RemoveSandbox(ctx, c.key))
	}
	if in, err := b.m.Inspect(id); err != nil || len(in.Containers) != 0 {
		t.Errorf("got %+v, %v", in.Containers, err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		veths, err := link.Ours("veth")
		check(t, err)
		delete(veths, "out0")
		if len(veths) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left: %v", veths)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func BenchmarkAttach(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root")
	}
	ctx, dir := context.Background(), b.TempDir()
	fw := firewall.New(slog.New(slog.DiscardHandler))
	m, err := network.Open(ctx, network.Options{Root: filepath.Join(dir, "root"), ExecRoot: filepath.Join(dir, "exec"),
		Drivers: []network.Driver{New(fw)}})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = errors.Join(m.Close(), fw.Close(), link.Delete("docker0")) }()
	id := strings.Repeat("b", 64)
	for b.Loop() {
		key, err := m.NewSandbox(ctx, id, false)
		if err != nil {
			b.Fatal(err)
		}
		_, err = m.Attach(ctx, model.AttachConfig{ContainerID: id, ContainerName: "b", NetworkRef: "bridge", SandboxKey: key,
			Ports: []network.PortRequest{port("80/tcp", "", "")}})
		if err := errors.Join(err, m.RemoveSandbox(ctx, key)); err != nil {
			b.Fatal(err)
		}
	}
}
