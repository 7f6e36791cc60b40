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
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	apinetwork "github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"machine/agent/model"
	"machine/agent/network"
	"machine/agent/network/firewall"
	"machine/agent/network/link"
)

// TestMain runs the tests in network and mount namespaces of their own: what
// they make ends with them, whatever happens.
func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		os.Exit(m.Run())
	}
	if os.Getenv(inside) == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Args[0] = os.Args[0]
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		err := cmd.Run()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			os.Exit(exit.ExitCode())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "namespaces for the test:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "namespaces for the test:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// bench is a host with a network engine and a neighbour on the outside.
type bench struct {
	t       *testing.T
	dir     string
	m       *network.Manager
	fw      *firewall.Firewall
	outside *link.NS
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	b := &bench{t: t, dir: t.TempDir()}
	b.neighbour()
	b.open()
	t.Cleanup(func() {
		if err := errors.Join(b.m.Close(), b.fw.Close(), link.Delete("docker0")); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bench) open() {
	b.t.Helper()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	b.fw = firewall.New(log)
	m, err := network.Open(context.Background(), network.Options{
		Root: filepath.Join(b.dir, "root"), ExecRoot: filepath.Join(b.dir, "exec"), Log: log, IPForward: true,
		Drivers: []network.Driver{New(b.fw)}, HostResolvConf: "/dev/null",
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.m = m
}

// neighbour makes another computer, 192.0.2.2, behind the device out0.
func (b *bench) neighbour() {
	b.t.Helper()
	ctx := context.Background()
	path := filepath.Join(b.dir, "neighbour", "outside")
	f, err := link.MakeNS()
	check(b.t, err)
	check(b.t, link.BindNS(f, path))
	check(b.t, f.Close())
	ns, err := link.OpenNS(path)
	check(b.t, err)
	b.outside = ns
	b.t.Cleanup(func() {
		ns.Close()
		check(b.t, errors.Join(link.Delete("out0"), link.RemoveNS(path)))
	})
	check(b.t, link.AddVeth(ctx, link.Veth{Name: "out0", Peer: "eth0"}, ns))
	l, err := netlink.LinkByName("out0")
	check(b.t, err)
	check(b.t, netlink.AddrAdd(l, &netlink.Addr{IPNet: link.ToIPNet(netip.PrefixFrom(hostAddr, 24))}))
	check(b.t, ns.AddAddrs("eth0", netip.MustParsePrefix("192.0.2.2/24")))
	check(b.t, ns.SetDefault(false, &link.Gateway{Dev: "eth0", Addr: hostAddr}))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ctr is a container without processes: its namespace is enough.
type ctr struct {
	b   *bench
	id  string
	key string
	ns  *link.NS
	ep  *model.Endpoint
}

func (b *bench) run(name, netw string, ports ...network.PortRequest) *ctr {
	b.t.Helper()
	c, err := b.try(name, netw, ports...)
	check(b.t, err)
	return c
}

func (b *bench) try(name, netw string, ports ...network.PortRequest) (*ctr, error) {
	b.t.Helper()
	ctx := context.Background()
	c := &ctr{b: b, id: name + strings.Repeat("0", 64-len(name))}
	key, err := b.m.NewSandbox(ctx, c.id, false)
	check(b.t, err)
	c.key = key
	b.t.Cleanup(func() {
		c.close()
		check(b.t, b.m.RemoveSandbox(ctx, key))
	})
	c.ns, err = link.OpenNS(key)
	check(b.t, err)
	c.ep, err = b.m.Attach(ctx, model.AttachConfig{ContainerID: c.id, ContainerName: "/" + name, NetworkRef: netw, SandboxKey: key, Ports: ports})
	return c, err
}

func (c *ctr) close() {
	if c.ns != nil {
		c.ns.Close()
		c.ns = nil
	}
}

// serve answers each connection to the port with the text.
func (c *ctr) serve(port int, text string) {
	c.b.t.Helper()
	var l net.Listener
	check(c.b.t, c.ns.Do(func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", port))
		return err
	}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, text)
			conn.Close()
		}
	}()
	c.b.t.Cleanup(func() { l.Close(); <-done })
}

func get(addr string, patience time.Duration) (string, error) {
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	text, err := io.ReadAll(conn)
	return string(text), err
}

// reach wants text from addr, seen from ns; nil is the host.
func (b *bench) reach(ns *link.NS, addr, text string) {
	b.t.Helper()
	got, err := from(ns, addr, 10*time.Second)
	if err != nil || got != text {
		b.t.Errorf("connect to %s: got %q, %v, want %q", addr, got, err, text)
	}
}

// blocked wants no answer from addr.
func (b *bench) blocked(ns *link.NS, addr string) {
	b.t.Helper()
	if got, err := from(ns, addr, time.Second); err == nil && got != "" {
		b.t.Errorf("connect to %s: got %q, want nothing", addr, got)
	}
}

func from(ns *link.NS, addr string, patience time.Duration) (text string, err error) {
	if ns == nil {
		return get(addr, patience)
	}
	err = ns.Do(func() (err error) { text, err = get(addr, patience); return err })
	return text, err
}

func port(p string, hostIP, hostPort string) network.PortRequest {
	r := network.PortRequest{Port: apinetwork.MustParsePort(p), HostPort: hostPort}
	if hostIP != "" {
		r.HostIP = netip.MustParseAddr(hostIP)
	}
	return r
}

func (b *bench) network(r apinetwork.CreateRequest) string {
	b.t.Helper()
	resp, err := b.m.Create(context.Background(), r)
	check(b.t, err)
	b.t.Cleanup(func() { check(b.t, b.m.Remove(context.Background(), resp.ID)) })
	return resp.ID
}

func query(ns *link.NS, network, name string) (out []string, err error) {
	err = ns.Do(func() error {
		c := &mdns.Client{Net: network, Timeout: 10 * time.Second}
		r, _, err := c.Exchange(new(mdns.Msg).SetQuestion(mdns.Fqdn(name), mdns.TypeA), "127.0.0.11:53")
		if err != nil {
			return err
		}
		for _, rr := range r.Answer {
			if a, ok := rr.(*mdns.A); ok {
				out = append(out, a.A.String())
			}
		}
		return nil
	})
	return out, err
}
