package docker

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"machine/acceptance/engine"
)

// TestS15AbstractSockets: a container in the host's network finds no socket
// of ours to talk to (CVE-2020-15257).
func TestS15AbstractSockets(t *testing.T) {
	e := start(t)
	e.Run("run", "-d", "--name", "box", "busybox", "sleep", "1000")
	out := e.Run("run", "--rm", "--network", "host", "busybox", "cat", "/proc/net/unix")
	engine.Contains(t, "the sockets of the host are seen", out, "agent.sock")
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 7 && strings.HasPrefix(f[7], "@") {
			t.Errorf("abstract socket %s", f[7])
		}
	}
	filepath.Walk(e.Dir, func(name string, fi os.FileInfo, err error) error {
		if err == nil && fi.Mode()&os.ModeSocket != 0 && name != e.Socket && fi.Mode().Perm()&0o007 != 0 {
			t.Errorf("socket %s has mode %v", name, fi.Mode())
		}
		return nil
	})
	e.Audit()
}

// TestS16Users: numbers that are no uid are errors, and never root
// (CVE-2024-40635, 2016-3697).
func TestS16Users(t *testing.T) {
	e := start(t)
	image(e, "names", "printf '1234:x:0:0::/:/bin/sh\\n77:x:0:0::/:/bin/sh\\n' >>etc/passwd; printf '1234:x:0:1234\\n' >>etc/group")
	e.Run("run", "-d", "--name", "box", "busybox", "sleep", "1000")
	for _, user := range []string{"2147483648", "4294967296", "4294967295", "18446744073709551616", "-1", "-0", "+0", "0x0", "00x0", "1000:4294967296", "1000:-1", "user:0x0", "nobody-here", "user:nogroup-here", " 0", "0 ", "\n0"} {
		for _, args := range [][]string{{"run", "--rm", "--user=" + user, "busybox", "id"}, {"exec", "--user=" + user, "box", "id"}} {
			if r := e.Try(args...); r.Code == 0 {
				t.Errorf("%s --user=%q is %s", args[0], user, r.Out)
			}
		}
	}
	image(e, "over", "true", "USER 4294967296")
	if r := e.Try("run", "--rm", "over", "id"); r.Code == 0 {
		t.Errorf("an image's USER 4294967296 is %s", r.Out)
	}
	engine.Equal(t, "a number is a number", e.Run("run", "--rm", "-u", "1234", "names", "id", "-u"), "1234")
	engine.Equal(t, "and gives no group", e.Run("run", "--rm", "-u", "1234", "names", "id", "-G"), "0")
	engine.Equal(t, "largest", e.Run("run", "--rm", "-u", "2147483647", "busybox", "id", "-u"), "2147483647")
	e.Audit()
}

// TestS17Groups: the groups are the image's and none of the agent's
// (CVE-2022-36109).
func TestS17Groups(t *testing.T) {
	e := start(t)
	e.Run("run", "-d", "--name", "box", "busybox", "sleep", "1000")
	for _, c := range []struct{ user, want string }{{"root", "0"}, {"0", "0"}, {"user", "1000 2000"}, {"1000", "1000 2000"}, {"7:8", "8"}, {"7", "0"}, {"user:extra", "2000"}, {"user:user", "1000"}} {
		engine.Equal(t, "run as "+c.user, e.Run("run", "--rm", "-u", c.user, "busybox", "id", "-G"), c.want)
		engine.Equal(t, "exec as "+c.user, e.Run("exec", "-u", c.user, "box", "id", "-G"), c.want)
	}
	engine.Equal(t, "added", e.Run("run", "--rm", "-u", "7:8", "--group-add", "99", "--group-add", "extra", "busybox", "id", "-G"), "8 99 2000")
	e.Audit()
}

// TestS19DataRoot: an unprivileged user finds nothing to read
// (CVE-2021-41091, 2024-25621).
func TestS19DataRoot(t *testing.T) {
	e := start(t)
	e.Run("run", "-d", "--name", "box", "-v", "vol:/v", "busybox", "sh", "-c", "echo log; echo x >/v/x; chmod -R 777 /v; sleep 1000")
	e.Run("run", "--name", "gone", "-e", "TOKEN=x", "busybox", "true")
	if err := os.Chmod(e.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"data", "run"} {
		walk := func(user ...string) string {
			args := append(user, "find", filepath.Join(e.Dir, dir), "-not", "-path", "*/netns*", "-not", "-type", "l", "-readable", "-not", "-type", "d")
			c := exec.Command(args[0], args[1:]...)
			out, _ := c.Output() // what cannot be entered is an error
			return string(out)
		}
		if walk("env") == "" && dir == "data" {
			t.Fatal("root finds nothing: the walk proves nothing")
		}
		if out := walk("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"); out != "" {
			t.Errorf("readable for everybody:\n%.2000s", out)
		}
	}
	for _, name := range []string{"data/containers/x", "data/image/x", "data/volumes/x", "data/x"} {
		c := exec.Command("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "ls", filepath.Dir(filepath.Join(e.Dir, name)))
		if out, err := c.Output(); err == nil {
			t.Errorf("everybody may list %s: %.200s", filepath.Dir(name), out)
		}
	}
	e.Audit()
}

// TestS20CopySymlinkSwap: a container that swaps a directory for a link to
// the host during copies gets nothing in or out (CVE-2018-15664).
func TestS20CopySymlinkSwap(t *testing.T) {
	e := start(t)
	victim := filepath.Join(e.Dir, "victim")
	if err := os.Mkdir(victim, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(victim, "canary"), []byte("secret of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	tree := func() string {
		c := exec.Command("sh", "-c", "find . -exec stat -c '%n %a %u %s %y' {} + | sort; cat canary")
		c.Dir = victim
		out, _ := c.CombinedOutput()
		return string(out)
	}
	before := tree()
	e.Run("run", "-d", "--name", "swap", "busybox", "sh", "-c",
		"mkdir -p /w/d; echo inside >/w/d/canary; cd /w; while :; do mv d real; ln -s "+victim+" d; rm d; ln -s ../../../../../.."+victim+" d; rm d; mv real d; done")
	e.Eventually("the swapper runs", func() bool { return e.Try("exec", "swap", "test", "-e", "/w").Code == 0 })
	var in bytes.Buffer
	w := tar.NewWriter(&in)
	for _, name := range []string{"canary", "planted"} {
		w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o666, Size: 3})
		w.Write([]byte("bad"))
	}
	w.Close()
	wrote, read := 0, 0
	for i := 0; i < 200 || i < 4000 && (wrote == 0 || read == 0); i++ {
		code, out, err := call(e, "PUT", "/containers/swap/archive?path=/w/d", in.String(), "Content-Type", "application/x-tar")
		if err != nil {
			t.Fatalf("copy %d in: %v", i, err)
		}
		if code == 200 {
			wrote++
		}
		for _, path := range []string{"/w/d/canary", "/w/d", "/w/d/."} {
			if code, out, err = call(e, "GET", "/containers/swap/archive?path="+path, ""); err != nil {
				t.Logf("copy %d of %s out: %v", i, path, err) // cut off in the middle
			}
			if code == 200 {
				read++
			}
			if strings.Contains(out, "secret of the host") {
				t.Fatalf("copy %d of %s gave a file of the host", i, path)
			}
		}
	}
	if wrote == 0 || read == 0 {
		t.Errorf("%d copies in and %d out succeeded: the test proves nothing", wrote, read)
	}
	engine.Equal(t, "the host's files", tree(), before)
	e.Run("kill", "swap")
	e.Run("run", "--name", "links", "busybox", "sh", "-c", "ln -s "+victim+" /away; ln -s /tmp /near; ln -s ../../../../.."+victim+"/canary /file; mkdir /d; ln -s "+victim+" /d/sub")
	for _, to := range []string{"/away", "/away/x", "/d/sub", "/file"} {
		call(e, "PUT", "/containers/links/archive?path="+to, in.String(), "Content-Type", "application/x-tar")
		if _, out, _ := call(e, "GET", "/containers/links/archive?path="+to, ""); strings.Contains(out, "secret of the host") {
			t.Errorf("%s gave a file of the host", to)
		}
	}
	src := filepath.Join(e.Dir, "src")
	os.WriteFile(src, []byte("fine"), 0o644)
	e.Run("cp", src, "links:/near/src")
	e.Run("cp", "links:/tmp/src", filepath.Join(e.Dir, "back"))
	if b, _ := os.ReadFile(filepath.Join(e.Dir, "back")); string(b) != "fine" {
		t.Errorf("through a link inside: %q", b)
	}
	engine.Equal(t, "the host's files, container stopped", tree(), before)
	e.Audit()
}

// TestS33Secrets: what is given as a secret appears in no log and no command
// line.
func TestS33Secrets(t *testing.T) {
	e := start(t, "--debug")
	const canary = "CANARY-7f3a9c"
	e.Run("run", "-d", "--name", "box", "-e", "TOKEN="+canary, "-v", "/v", "-p", "8080:80", "busybox", "sleep", "1000")
	e.Run("exec", "-e", "OTHER="+canary, "box", "true")
	e.Try("exec", "-e", "OTHER="+canary, "box", "/none/such")
	e.Try("run", "--rm", "-e", "TOKEN="+canary, "busybox", "/none/such")
	auth := `{"username":"u","password":"` + canary + `","serveraddress":"127.0.0.1:1"}`
	header := base64.URLEncoding.EncodeToString([]byte(auth))
	for _, c := range []struct{ method, path, body string }{
		{"POST", "/auth", auth}, {"POST", "/images/create?fromImage=127.0.0.1:1/x&tag=1", ""}, {"GET", "/distribution/127.0.0.1:1/x/json", ""},
		{"POST", "/containers/create", `{"Image":"nope","Env":["A=` + canary + `"]}`}, {"POST", "/containers/create", `{"Image":"busybox","Env":["A=` + canary + `"],"HostConfig":{"Memory":1}}`},
		{"POST", "/containers/create", `{"Image":"busybox","Env":["` + canary},
	} {
		if _, out, _ := call(e, c.method, c.path, c.body, "X-Registry-Auth", header); strings.Contains(out, canary) {
			t.Errorf("the answer of %s %s holds the secret", c.method, c.path)
		}
	}
	events := e.Run("events", "--since", "1", "--until", e.Run("info", "-f", "{{.SystemTime}}"), "--format", "{{json .}}")
	engine.Contains(t, "events", events, "exec_create")
	e.Restart()
	e.Run("stop", "-t", "0", "box")
	e.Run("start", "box")
	log, err := os.ReadFile(filepath.Join(e.Dir, "agent.log"))
	if err != nil || len(log) == 0 {
		t.Fatalf("the agent's log: %d bytes, %v", len(log), err)
	}
	args, _ := e.HostRun("ps", "-eww", "-o", "args")
	engine.Contains(t, "command lines", args, "--debug")
	for what, text := range map[string]string{"agent's log": string(log), "command lines": args, "events": events, "info": e.Run("info")} {
		if i := strings.Index(text, canary); i >= 0 {
			t.Errorf("the secret is in %s: %q", what, text[max(0, i-200):min(len(text), i+50)])
		}
	}
	e.Audit()
}

// TestS38Disconnects: clients that go away in the middle leave nothing
// (CVE-2022-23471, 2025-64329).
func TestS38Disconnects(t *testing.T) {
	e := start(t)
	id := e.Run("run", "-d", "-i", "--name", "quiet", "busybox", "sleep", "1000")
	upgrade := " HTTP/1.1\r\nHost: x\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n"
	kinds := []string{
		"POST /containers/" + id + "/attach?stream=1&stdin=1&stdout=1&stderr=1" + upgrade + "\r\n",
		"POST /containers/" + id + "/attach?stream=1&stdout=1" + upgrade + "\r\n",
		"GET /containers/" + id + "/logs?follow=1&stdout=1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /events HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /containers/" + id + "/stats HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /containers/" + id + "/wait HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
		"exec",
	}
	round := func() {
		for _, text := range kinds {
			if text == "exec" {
				code, out, err := call(e, "POST", "/containers/"+id+"/exec", `{"Cmd":["sleep","0.2"],"AttachStdin":true,"AttachStdout":true}`)
				if err != nil || code != 201 {
					t.Fatalf("exec: %d, %v: %s", code, err, out)
				}
				body := `{"Detach":false}`
				text = fmt.Sprintf("POST /exec/%s/start%sContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", strings.Split(out, `"`)[3], upgrade, len(body), body)
			}
			c, err := send(e, text)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(text, "/wait") { // that one answers at the end
				if _, err := c.Read(make([]byte, 12)); err != nil {
					t.Fatalf("%.50q: %v", text, err)
				}
			}
			c.Close()
		}
	}
	round()
	fds, goroutines := counts(e)
	for range 30 {
		round()
	}
	settles(e, fds, goroutines, 5)
	e.Eventually("the shim's files are given back", func() bool {
		out, _ := e.HostRun("sh", "-c", "ls /proc/"+shimOf(e, "quiet")+"/fd | wc -l")
		return atoi(t, out) < 40
	})
	engine.Equal(t, "it still answers", e.Run("exec", "quiet", "echo", "yes"), "yes")
	e.Audit()
}

// TestS39Bounds: numbers that make no sense are refused before anything
// computes with them (CVE-2018-20699).
func TestS39Bounds(t *testing.T) {
	e := start(t)
	e.Fails(1, "cpuset", "create", "--cpuset-cpus", "0-99999999999", "busybox", "true")
	for _, hc := range []string{
		`"CpusetCpus":"0-99999999999"`, `"CpusetCpus":"99999999999999999999"`, `"CpusetCpus":"3-1"`, `"CpusetCpus":"a"`, `"CpusetCpus":"-1"`, `"CpusetCpus":"0-"`,
		`"CpusetMems":"0-99999999999"`, `"Memory":-1`, `"Memory":1`, `"Memory":9223372036854775808`, `"Memory":67108864,"MemorySwap":1`, `"MemorySwap":-2`, `"MemorySwap":67108864`,
		`"NanoCpus":-1`, `"NanoCpus":9223372036854775807`, `"CpuPeriod":1`, `"CpuPeriod":9999999999`, `"CpuQuota":1`, `"NanoCpus":1000000000,"CpuQuota":50000`,
		`"BlkioWeight":5`, `"BlkioWeight":70000`, `"MemorySwappiness":101`, `"OomScoreAdj":1001`, `"OomScoreAdj":-1001`, `"ShmSize":-1`,
		`"Ulimits":[{"Name":"nofile","Soft":5,"Hard":1}]`, `"Ulimits":[{"Name":"nope","Soft":1,"Hard":1}]`, `"Ulimits":[null]`,
		`"PortBindings":{"80/tcp":[{"HostPort":"99999"}]}`, `"PortBindings":{"99999/tcp":[{}]}`, `"PortBindings":{"80/tcp":[{"HostPort":"1-99999999999"}]}`, `"PortBindings":{"80/nope":[{}]}`, `"PortBindings":{"80/tcp":[{"HostIp":"1.2.3.4.5"}]}`,
		`"RestartPolicy":{"Name":"on-failure","MaximumRetryCount":-1}`, `"RestartPolicy":{"Name":"sometimes"}`,
		`"LogConfig":{"Type":"json-file","Config":{"max-size":"99999999999999999999g"}}`, `"LogConfig":{"Type":"json-file","Config":{"max-file":"-1"}}`, `"LogConfig":{"Type":"nope"}`,
	} {
		refused(e, hc, "POST", "/containers/create", `{"Image":"busybox","Cmd":["true"],"HostConfig":{`+hc+`}}`)
	}
	for _, cfg := range []string{`"StopSignal":"999"`, `"StopSignal":"SIGNOPE"`, `"Healthcheck":{"Test":["CMD","true"],"Interval":1}`, `"Healthcheck":{"Test":["CMD","true"],"Retries":-1}`, `"WorkingDir":"relative"`} {
		refused(e, cfg, "POST", "/containers/create", `{"Image":"busybox","Cmd":["true"],`+cfg+`}`)
	}
	e.Run("run", "-d", "--name", "box", "busybox", "sleep", "1000")
	for _, path := range []string{
		"/containers/box/resize?h=99999999999999999999&w=1", "/containers/box/resize?h=-1&w=1", "/containers/box/stop?t=x", "/containers/box/stop?t=99999999999999999999",
		"/containers/box/restart?t=x", "/containers/box/kill?signal=999", "/containers/box/kill?signal=-1", "/containers/box/wait?condition=never",
	} {
		refused(e, path, "POST", path, "")
	}
	refused(e, "update", "POST", "/containers/box/update", `{"CpusetCpus":"0-99999999999"}`)
	refused(e, "update", "POST", "/containers/box/update", `{"Memory":1}`)
	engine.Equal(t, "unharmed", status(e, "box"), "running")
	e.Audit()
}

// TestS41LogInjection: whatever a program prints, a line of it is one record
// of its log, and comes back byte for byte.
func TestS41LogInjection(t *testing.T) {
	e := start(t)
	lines := []string{
		`a\000b\000`, `\033[2J\033[31mred\033[0m`, `{"log":"fake\\\\n","stream":"stderr","time":"2020-01-01T00:00:00Z"}`, `"}\\n{"log":"x`, `cr\rover`,
		`\342\200\250line separator`, `</script>&amp;`, `\001\002\177`, ``, `level=ERROR msg=fake`,
	}
	script := "printf '" + strings.Join(lines, `\n`) + `\n'`
	for _, driver := range []string{"json-file", "local"} {
		name := "log-" + driver
		id := e.Run("run", "-d", "--log-driver", driver, "--name", name, "busybox", "sh", "-c", script)
		e.Run("wait", name)
		want := e.Try("run", "--rm", "--log-driver", "none", "busybox", "sh", "-c", script).Out
		engine.Equal(t, driver, e.Try("logs", name).Out, want)
		if strings.Count(want, "\n") != len(lines) || !strings.Contains(want, "a\x00b\x00\n\x1b[2J") {
			t.Fatalf("the program does not print what the test thinks: %q", want)
		}
		if got := strings.Count(e.Try("logs", "-t", name).Out, "\n"); got != len(lines) {
			t.Errorf("%s: %d records of %d lines", driver, got, len(lines))
		}
		if driver == "json-file" {
			n := records(t, filepath.Join(e.Dir, "data/containers", id, id+"-json.log"), func(string) {})
			engine.Equal(t, "records in the file", itoa(n), itoa(len(lines)))
		}
	}
	e.Run("run", "--name", "bytes", "busybox", "sh", "-c", `printf '\377\376\n\300\200\nend\n'`)
	engine.Equal(t, "no UTF-8", itoa(strings.Count(e.Try("logs", "bytes").Out, "\n")), "3")
	for _, path := range []string{"/containers/%0Alevel=ERROR%20msg=fake/json", "/%0Alevel=ERROR%20msg=fake", "/images/%0Alevel=ERROR%20msg=fake/json"} {
		call(e, "GET", path, "")
		call(e, "POST", path, "{}")
	}
	log, _ := os.ReadFile(filepath.Join(e.Dir, "agent.log"))
	for line := range strings.Lines(string(log)) {
		if strings.HasPrefix(line, "level=ERROR msg=fake") || strings.ContainsAny(line, "\x00\x1b") {
			t.Errorf("forged line in the agent's log: %q", line)
		}
	}
	e.Audit()
}
