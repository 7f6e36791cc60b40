package docker

import (
	"strings"
	"testing"

	"machine/acceptance/engine"
)

func TestPorts(t *testing.T) {
	e := start(t)
	serve := []string{"sh", "-c", "echo hello >/tmp/index.html; exec httpd -f -p 80 -h /tmp"}
	e.Run(append([]string{"run", "-d", "--name", "all", "-p", "8080:80", "busybox"}, serve...)...)
	e.Run(append([]string{"run", "-d", "--name", "lo", "-p", "127.0.0.1:8081:80", "busybox"}, serve...)...)
	get := func(url string) string {
		var out string
		e.Eventually(url+" answers", func() bool {
			var err error
			out, err = e.HostRun("curl", "-s", "-m", "2", url)
			return err == nil
		})
		return out
	}
	engine.Equal(t, "localhost", get("http://127.0.0.1:8080/"), "hello")
	engine.Equal(t, "bridge address", get("http://172.17.0.1:8080/"), "hello")
	engine.Equal(t, "container address", get("http://172.17.0.2/"), "hello")
	engine.Equal(t, "loopback only", get("http://127.0.0.1:8081/"), "hello")
	if _, err := e.HostRun("curl", "-s", "-m", "2", "http://172.17.0.1:8081/"); err == nil {
		t.Error("a port published on 127.0.0.1 answers on 172.17.0.1")
	}
	e.Fails(125, "port is already allocated", "run", "-d", "--name", "dup", "-p", "8080:80", "busybox", "sleep", "9")
	e.Run("rm", "dup")
	engine.Equal(t, "from another container", e.Run("run", "--rm", "busybox", "wget", "-qO-", "http://172.17.0.1:8080/"), "hello")
	e.Run("rm", "-f", "all")
	e.Run(append([]string{"run", "-d", "--name", "again", "-p", "8080:80", "busybox"}, serve...)...)
	engine.Equal(t, "published again", get("http://127.0.0.1:8080/"), "hello")
	e.Run(append([]string{"run", "-d", "--name", "any", "-P", "--expose", "80", "busybox"}, serve...)...)
	port := e.Run("port", "any", "80/tcp")
	port = strings.Split(port, "\n")[0]
	engine.Equal(t, "-P", get("http://127.0.0.1:"+port[strings.LastIndexByte(port, ':')+1:]+"/"), "hello")
	e.Audit()
}

func TestNetworks(t *testing.T) {
	e := start(t)
	e.Run("network", "create", "--label", "a=b", "back")
	engine.Contains(t, "ls", e.Run("network", "ls", "--filter", "label=a"), "back")
	e.Run("run", "-d", "--name", "db", "--network", "back", "--network-alias", "store", "busybox", "sleep", "1000")
	engine.Equal(t, "by name", e.Run("run", "--rm", "--network", "back", "busybox", "sh", "-c", "ping -c 1 -W 5 db >/dev/null && echo yes"), "yes")
	engine.Equal(t, "by alias", e.Run("run", "--rm", "--network", "back", "busybox", "sh", "-c", "ping -c 1 -W 5 store >/dev/null && echo yes"), "yes")
	engine.Contains(t, "resolv.conf", e.Run("exec", "db", "cat", "/etc/resolv.conf"), "nameserver 127.0.0.11")
	e.Run("run", "-d", "--name", "app", "busybox", "sleep", "1000")
	if e.Try("exec", "app", "ping", "-c", "1", "-W", "1", "db").Code == 0 {
		t.Error("a name of another network resolves")
	}
	e.Run("network", "connect", "back", "app")
	engine.Equal(t, "connected", e.Run("exec", "app", "sh", "-c", "ping -c 1 -W 5 db >/dev/null && echo yes"), "yes")
	e.Fails(1, "has active endpoints", "network", "rm", "back")
	e.Run("network", "disconnect", "back", "app")
	engine.Equal(t, "links", e.Run("exec", "app", "sh", "-c", "ls /sys/class/net | tr '\\n' ' '"), "eth0 lo")
	engine.Equal(t, "host network", e.Run("run", "--rm", "--network", "host", "busybox", "hostname"), "enginehost")
	engine.Equal(t, "none", e.Run("run", "--rm", "--network", "none", "busybox", "ls", "/sys/class/net"), "lo")
	engine.Equal(t, "joined", e.Run("run", "--rm", "--network", "container:db", "busybox", "hostname", "-i"), e.Run("inspect", "-f", "{{.NetworkSettings.Networks.back.IPAddress}}", "db"))
	e.Run("rm", "-f", "db")
	e.Run("network", "rm", "back")
	e.Fails(1, "not found", "network", "inspect", "back")
	e.Run("network", "create", "--subnet", "10.99.0.0/24", "sub")
	engine.Equal(t, "fixed address", e.Run("run", "--rm", "--network", "sub", "--ip", "10.99.0.77", "busybox", "hostname", "-i"), "10.99.0.77")
	engine.Equal(t, "isolation", e.Run("run", "--rm", "--network", "sub", "busybox", "sh", "-c", "ping -c 1 -W 1 172.17.0.2 >/dev/null || echo no"), "no")
	e.Run("network", "prune", "-f")
	e.Fails(1, "not found", "network", "inspect", "sub")
	e.Audit()
}

func TestLinks(t *testing.T) {
	e := start(t)
	e.Fails(125, "could not get container for", "run", "--rm", "--link", "ghost", "busybox", "true")
	e.Run("run", "-d", "--name", "db", "--expose", "5432", "-e", "PASS=x", "busybox", "sleep", "1000")
	out := e.Run("run", "--rm", "--name", "app", "--link", "db:store", "busybox", "sh", "-c", "env; cat /etc/hosts; ping -c 1 -W 5 store >/dev/null && echo reached")
	for _, want := range []string{"STORE_PORT=tcp://172.17.0.2:5432", "STORE_PORT_5432_TCP_ADDR=172.17.0.2", "STORE_NAME=/app/store", "STORE_ENV_PASS=x", "172.17.0.2\tstore ", "reached"} {
		engine.Contains(t, "link", out, want)
	}
	e.Run("stop", "-t", "0", "db")
	e.Fails(125, "Cannot link to a non running container", "run", "--link", "db", "busybox", "true")
	e.Audit()
}

func TestVolumes(t *testing.T) {
	e := start(t)
	e.Run("volume", "create", "data")
	e.Run("run", "--rm", "-v", "data:/d", "busybox", "sh", "-c", "echo kept >/d/f")
	engine.Equal(t, "named", e.Run("run", "--rm", "-v", "data:/d:ro", "busybox", "cat", "/d/f"), "kept")
	e.Fails(1, "", "run", "--rm", "-v", "data:/d:ro", "busybox", "touch", "/d/g")
	e.Run("run", "-d", "--name", "cu", "-v", "data:/d", "-v", "/anon", "busybox", "sleep", "1000")
	e.Fails(1, "in use", "volume", "rm", "data")
	engine.Equal(t, "volumes-from", e.Run("run", "--rm", "--volumes-from", "cu", "busybox", "cat", "/d/f"), "kept")
	engine.Equal(t, "prefilled", e.Run("run", "--rm", "-v", "etc:/etc/copy", "-v", "filled:/home", "busybox", "sh", "-c", "ls -d /home"), "/home")
	engine.Equal(t, "filled from the image", e.Run("run", "--rm", "-v", "bins:/bin2", "-v", "etcv:/etc", "busybox", "sh", "-c", "grep -c root /etc/passwd"), "1")
	host := e.Dir + "/host"
	e.Run("run", "--rm", "-v", host+":/h", "busybox", "sh", "-c", "echo x >/h/made")
	e.Fails(125, "bind source path does not exist", "run", "--rm", "--mount", "type=bind,source=/no/such,target=/x", "busybox", "true")
	engine.Contains(t, "tmpfs", e.Run("run", "--rm", "--tmpfs", "/t:size=1m", "busybox", "df", "/t"), "1024")
	if n := len(strings.Fields(e.Run("volume", "ls", "-q"))); n < 5 {
		t.Errorf("%d volumes", n)
	}
	e.Run("rm", "-f", "-v", "cu")
	e.Run("volume", "rm", "data")
	e.Fails(1, "no such volume", "volume", "inspect", "data")
	e.Run("volume", "prune", "-a", "-f")
	engine.Equal(t, "pruned", e.Run("volume", "ls", "-q"), "")
	e.Audit()
}
