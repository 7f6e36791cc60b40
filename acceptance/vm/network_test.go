//go:build vm

package vm

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"machine/acceptance/engine"
)

// pair is two hosts with a wire between their eth0s.
func pair(t *testing.T) (a, b *engine.Engine) {
	t.Helper()
	a, b = start(t), start(t)
	out, err := exec.Command("ip", "link", "add", "eth0", "netns", strconv.Itoa(a.AgentPid()), "type", "veth",
		"peer", "name", "eth0", "netns", strconv.Itoa(b.AgentPid())).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for i, e := range []*engine.Engine{a, b} {
		host(t, e, "ip", "addr", "add", fmt.Sprintf("192.168.9.%d/24", i+1), "dev", "eth0")
		host(t, e, "ip", "link", "set", "eth0", "up")
	}
	return a, b
}

func host(t *testing.T, e *engine.Engine, args ...string) string {
	t.Helper()
	out, err := e.HostRun(args...)
	if err != nil {
		t.Fatalf("%v: %v %s", args, err, out)
	}
	return out
}

// reaches pings; the first packets may be lost while a link comes up.
func reaches(t *testing.T, e *engine.Engine, from, to string) {
	t.Helper()
	for range 10 {
		if e.Try("exec", from, "ping", "-c", "1", "-W", "2", to).Code == 0 {
			return
		}
	}
	t.Errorf("%s does not reach %s:\n%s\n%s", from, to, e.Run("exec", from, "ip", "addr"), e.Run("exec", from, "ip", "route"))
}

func misses(t *testing.T, e *engine.Engine, from, to string) {
	t.Helper()
	if e.Try("exec", from, "ping", "-c", "2", "-W", "1", to).Code == 0 {
		t.Errorf("%s reaches %s", from, to)
	}
}

func exists(e *engine.Engine, dev string) bool {
	_, err := e.HostRun("ip", "link", "show", dev)
	return err == nil
}

func sleeper(e *engine.Engine, network, name, ip string, more ...string) {
	e.T.Helper()
	args := append([]string{"run", "-d", "--name", name, "--network", network, "--ip", ip}, more...)
	e.Run(append(args, "busybox", "sleep", "1000")...)
}

// A network on a VLAN of the parent: its device is made and removed with the
// network, one that the host has is left alone.
func vlan(t *testing.T, driver string) {
	a, b := pair(t)
	for i, e := range []*engine.Engine{a, b} {
		e.Run("network", "create", "-d", driver, "--subnet", "10.10.0.0/24", "--gateway", "10.10.0.254", "-o", "parent=eth0.10", "ten")
		engine.Contains(t, "the device", host(t, e, "ip", "-d", "link", "show", "eth0.10"), "802.1Q id 10")
		sleeper(e, "ten", "one", fmt.Sprintf("10.10.0.%d", i+2))
	}
	sleeper(a, "ten", "two", "10.10.0.5")
	a.Run("network", "create", "-d", driver, "--subnet", "10.20.0.0/24", "-o", "parent=eth0.20", "twenty")
	sleeper(a, "twenty", "three", "10.20.0.2")
	reaches(t, a, "one", "10.10.0.3")
	reaches(t, b, "one", "10.10.0.2")
	reaches(t, a, "one", "10.10.0.5")
	reaches(t, a, "one", "two") // the resolver
	misses(t, a, "three", "10.10.0.3")
	engine.Contains(t, "default route", a.Run("exec", "one", "ip", "route"), "default via 10.10.0.254 dev eth0")
	a.Restart()
	reaches(t, a, "one", "10.10.0.3")
	a.Fails(1, "has active endpoints", "network", "rm", "ten")
	a.Run("rm", "-f", "one", "two", "three")
	a.Run("network", "rm", "ten", "twenty")
	if exists(a, "eth0.10") || exists(a, "eth0.20") {
		t.Error("the VLAN's device is still there")
	}
	host(t, a, "ip", "link", "add", "link", "eth0", "name", "eth0.30", "type", "vlan", "id", "30")
	a.Run("network", "create", "-d", driver, "-o", "parent=eth0.30", "thirty")
	a.Run("network", "rm", "thirty")
	if !exists(a, "eth0.30") {
		t.Error("the host's own device is gone")
	}
	a.Fails(1, "", "network", "create", "-d", driver, "-o", "parent=eth0.5000", "bad")
	a.Audit()
	b.Audit()
}

func TestMacvlanVLAN(t *testing.T) { vlan(t, "macvlan") }
func TestIPvlanVLAN(t *testing.T)  { vlan(t, "ipvlan") }

// A VLAN's device that a reboot took away is made again.
func TestVLANReboot(t *testing.T) {
	a, _ := pair(t)
	a.Run("network", "create", "-d", "macvlan", "--subnet", "10.10.0.0/24", "-o", "parent=eth0.10", "ten")
	sleeper(a, "ten", "one", "10.10.0.2", "--restart", "always")
	a.Kill()
	host(t, a, "ip", "link", "del", "eth0.10")
	a.Start()
	if !exists(a, "eth0.10") {
		t.Error("the VLAN's device is not there")
	}
	a.Run("restart", "-t", "0", "one")
	sleeper(a, "ten", "two", "10.10.0.3")
	reaches(t, a, "one", "10.10.0.3")
	a.Run("rm", "-f", "one", "two")
	a.Run("network", "rm", "ten")
	a.Audit()
}

// The modes l3 and l3s: the host routes, the container's default route is the
// device, and subnets of one parent reach each other.
func TestIPvlanRouted(t *testing.T) {
	a, b := pair(t)
	for _, mode := range []string{"l3", "l3s"} {
		for i, e := range []*engine.Engine{a, b} {
			e.Run("network", "create", "-d", "ipvlan", "--subnet", fmt.Sprintf("10.3%d.0.0/24", i+1), "-o", "parent=eth0", "-o", "ipvlan_mode="+mode, "far")
			sleeper(e, "far", "one", fmt.Sprintf("10.3%d.0.2", i+1))
			host(t, e, "ip", "route", "replace", fmt.Sprintf("10.3%d.0.0/24", 2-i), "via", fmt.Sprintf("192.168.9.%d", 2-i))
		}
		sleeper(a, "far", "two", "10.31.0.3")
		engine.Contains(t, mode+": default route", a.Run("exec", "one", "ip", "route"), "default dev eth0")
		reaches(t, a, "one", "10.31.0.3")
		reaches(t, a, "one", "10.32.0.2")
		reaches(t, b, "one", "10.31.0.2")
		engine.Contains(t, "one parent, one network", a.Try("network", "create", "-d", "ipvlan", "-o", "parent=eth0", "other").Err, "already using parent")
		a.Run("rm", "-f", "one", "two")
		b.Run("rm", "-f", "one")
		a.Run("network", "rm", "far")
		b.Run("network", "rm", "far")
	}
	a.Audit()
	b.Audit()
}

// Published ports, the resolver and the packet filter, on this kernel.
func TestBridge(t *testing.T) {
	e := start(t)
	e.Run("network", "create", "back")
	e.Run("run", "-d", "--name", "web", "--network", "back", "-p", "8080:80", "busybox", "sh", "-c", "mkdir /w; echo hello >/w/index.html; exec httpd -f -p 80 -h /w")
	e.Eventually("the port answers", func() bool {
		out, _ := e.HostRun("curl", "-s", "-m", "5", "http://127.0.0.1:8080/")
		return strings.Contains(out, "hello")
	})
	engine.Equal(t, "by name", e.Run("run", "--rm", "--network", "back", "busybox", "wget", "-qO-", "http://web/"), "hello")
	e.Run("rm", "-f", "web")
	e.Run("network", "rm", "back")
	e.Audit()
}
