package docker

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"machine/acceptance/engine"
)

// A job is a container as the API makes it; the fields are those of
// POST /containers/create.
type job struct {
	Image      string
	Cmd        []string
	WorkingDir string `json:",omitempty"`
	Tty        bool
	HostConfig struct {
		Binds       []string          `json:",omitempty"`
		Mounts      []map[string]any  `json:",omitempty"`
		Devices     []map[string]any  `json:",omitempty"`
		Tmpfs       map[string]string `json:",omitempty"`
		NetworkMode string
		Init        bool
	}
}

// once runs a job to its end and removes it. started tells whether it came to
// run, why what was said when it did not.
func (j *job) once(e *engine.Engine) (out string, started bool, why string, err error) {
	if j.Image == "" {
		j.Image = "busybox"
	}
	j.HostConfig.NetworkMode = "none"
	body, _ := json.Marshal(j)
	code, out, err := call(e, "POST", "/containers/create", string(body))
	if err != nil || code != 201 {
		return "", false, out, err
	}
	id := strings.Split(out, `"`)[3]
	defer func() {
		if code, out, e := call(e, "DELETE", "/containers/"+id+"?force=1&v=1", ""); e != nil || code != 204 {
			err = fmt.Errorf("remove: %d, %v: %s", code, e, out)
		}
	}()
	if code, out, err = call(e, "POST", "/containers/"+id+"/start", ""); err != nil || code != 204 {
		return "", false, out, err
	}
	if code, out, err = call(e, "POST", "/containers/"+id+"/wait", ""); err != nil || code != 200 {
		return "", true, out, fmt.Errorf("wait: %d, %v: %s", code, err, out)
	}
	_, out, err = call(e, "GET", "/containers/"+id+"/logs?stdout=1&stderr=1", "")
	return out, true, "", err
}

// race runs n jobs, some at a time, and hands the output of those that ran to
// check. It returns how many ran; that none, or almost none did fails the
// test, since then it proves nothing.
func race(e *engine.Engine, n int, make func(i int) *job, check func(out string) error) {
	e.T.Helper()
	var next, ran atomic.Int64
	var said sync.Map
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n || e.T.Failed() {
					return
				}
				out, started, why, err := make(i).once(e)
				if err == nil && started {
					ran.Add(1)
					err = check(out)
				}
				if err != nil {
					e.T.Errorf("container %d: %v", i, err)
				}
				if why != "" {
					said.LoadOrStore(strings.TrimSpace(why), true)
				}
			}
		})
	}
	wg.Wait()
	said.Range(func(why, _ any) bool {
		e.T.Logf("refused: %.160s", why)
		return true
	})
	e.T.Logf("%d of %d started", ran.Load(), n)
	if ran.Load() < int64(n)/20 {
		e.T.Errorf("only %d of %d containers started: the test proves nothing", ran.Load(), n)
	}
}

// attack starts a container that runs the racer against a volume at /v, after
// a shell has prepared it.
func attack(e *engine.Engine, racer, name, volume, prepare, args string) {
	e.T.Helper()
	e.Run("run", "-d", "--name", name, "--network", "none", "-v", volume+":/v", "-v", racer+":/racer:ro", "busybox", "sh", "-c",
		"cd /v; "+prepare+"\nexec /racer "+args)
	e.Eventually(name+" runs", func() bool { return e.Run("logs", name) == "ready" })
}

// up leads from any directory of a container or a volume to the host's root.
const up = "../../../../../../../../../../../../../../.."

func raceMounts() int {
	if n, err := strconv.Atoi(os.Getenv("RACE_MOUNTS")); err == nil && n > 0 {
		return n
	}
	return 5000
}

// noSecret fails a container that saw a file of the host.
func noSecret(out string) error {
	if strings.Contains(out, secret) {
		return fmt.Errorf("it read a file of the host: %q", out)
	}
	return nil
}

// TestS5MountRace: mounts of what, into what and filled with what another
// container exchanges for links to the host (CVE-2021-30465). RACE_MOUNTS
// changes their number.
func TestS5MountRace(t *testing.T) {
	e := start(t)
	r := racer(t, e)
	h := snapshot(e)
	const each = 20
	// The link leads somewhere inside the container, too: both ways mount.
	image(e, "decoy", "mkdir -p ."+h.victim+"/sub/new ."+h.victim+"/d; mkdir -p data/d; for i in 1 2 3 4 5 6 7 8 9; do echo inside >data/d/$i; done")
	tree := "for i in d e; do mkdir -p $i/sub/new; echo inside >$i/sub/mark; echo inside >$i/sub/new/mark; done; ln -s " + up + h.victim + " l; ln -s " + h.victim + " k"
	attack(e, r, "swap1", "shared", tree, "swap /v/d /v/l /v/d /v/l /v/e /v/k")
	e.Run("run", "-d", "--name", "swap2", "-v", "shared:/v", "busybox", "sh", "-c", "while :; do rmdir /v/d/n* /v/e/n* /v/l/n* /v/k/n*; done 2>/dev/null")
	attack(e, r, "thief", "filled", "true", "steal d "+h.victim)
	n := raceMounts() / each
	race(e, n, func(i int) *job {
		j := &job{Image: "decoy", Cmd: []string{"sh", "-c", "cat /m/mark /m/canary; echo bad >/m/pwned; find /a /data -name canary -exec cat {} +; true"}}
		sub := []string{"d/sub", "e/sub", "d/sub/new", "l/sub", "d"}[i%5]
		j.HostConfig.Mounts = []map[string]any{{"Type": "volume", "Source": "shared", "Target": "/m", "VolumeOptions": map[string]any{"Subpath": sub}}}
		if i%2 == 0 {
			j.HostConfig.Mounts = nil
		}
		j.HostConfig.Binds = []string{"shared:/a", "filled:/data"}
		for k := range each {
			j.HostConfig.Binds = append(j.HostConfig.Binds, fmt.Sprintf("inner:/a/%s/n%d", []string{"d", "e"}[k%2], k))
		}
		return j
	}, noSecret)
	h.same("after mounts")
	e.Run("exec", "swap2", "mkfifo", "/v/pipe")
	j := &job{Cmd: []string{"stat", "-c", "%F", "/m"}}
	j.HostConfig.Mounts = []map[string]any{{"Type": "volume", "Source": "shared", "Target": "/m", "VolumeOptions": map[string]any{"Subpath": "pipe"}}}
	if out, ok, why, err := j.once(e); !ok || err != nil || !strings.Contains(out, "fifo") { // and nobody waits for its writer
		t.Errorf("a pipe in a volume: %q %q, %v", out, why, err)
	}
	e.Audit()
}

// TestS7MaskRace: the null device in a /dev that a neighbour shares turns into
// a link to what a mask should hide (CVE-2025-31133).
func TestS7MaskRace(t *testing.T) {
	e := start(t)
	r := racer(t, e)
	h := snapshot(e)
	e.Run("run", "--rm", "-v", "dev:/dev", "busybox", "true")
	attack(e, r, "swap", "dev", "ln -s /proc/sys/kernel/core_pattern link; ln -s "+h.victim+"/canary away", "swap /v/null /v/link /v/zero /v/away")
	script := `for p in ` + maskedPaths + ` ; do
	[ -e $p ] || continue
	if [ -d $p ]; then [ "$(ls -A $p | wc -l)" = 0 ] || echo BAD $p has entries
	elif [ "$(head -c 1 $p | wc -c)" != 0 ]; then echo BAD $p is readable; fi
	echo "|/bad" >$p
done
for p in /proc/sys/kernel/core_pattern /proc/sysrq-trigger; do (echo x >>$p) && echo BAD $p is writable; done; true`
	race(e, 150, func(i int) *job {
		j := &job{Cmd: []string{"sh", "-c", script}}
		j.HostConfig.Binds = []string{"dev:/dev"}
		return j
	}, func(out string) error {
		if strings.Contains(out, "BAD") {
			return fmt.Errorf("it saw what is masked: %s", out)
		}
		return noSecret(out)
	})
	h.same("after masks")
	e.Audit()
}

// TestS8ConsoleRace: the terminals' directory and the console in a /dev that a
// neighbour shares are exchanged for links (CVE-2025-52565).
func TestS8ConsoleRace(t *testing.T) {
	e := start(t)
	r := racer(t, e)
	h := snapshot(e)
	image(e, "decoy", "mkdir -p ."+h.victim+"/pts; echo inside >."+h.victim+"/canary")
	e.Run("run", "--rm", "-t", "-v", "dev:/dev", "-v", "/dev/pts:/dev/pts", "busybox", "true")
	attack(e, r, "swap", "dev", "ln -s "+up+h.victim+"/canary link; ln -s "+h.victim+"/pts away; ln -s /proc/sys/kernel/core_pattern core; : >file",
		"swap /v/console /v/link /v/pts /v/away /v/console /v/core /v/console /v/file")
	race(e, 300, func(i int) *job {
		j := &job{Image: "decoy", Tty: true, Cmd: []string{"sh", "-c", "echo type $(stat -c %t -L /proc/self/fd/0); (echo bad >/dev/console); cat /proc/sys/kernel/core_pattern; ls /dev/pts; (echo x >>/proc/sys/kernel/core_pattern) && echo BAD"}}
		j.HostConfig.Binds = []string{"dev:/dev", "/dev/pts:/dev/pts"}
		return j
	}, func(out string) error {
		if !strings.Contains(out, "type 88") || strings.Contains(out, "BAD") {
			return fmt.Errorf("its terminal is none of ours: %q", out)
		}
		return noSecret(out)
	})
	h.same("after terminals")
	e.Audit()
}

// TestS10PreparedPaths: each path that the engine prepares is a link out, in
// the image (CVE-2024-45310, 2026-41579).
func TestS10PreparedPaths(t *testing.T) {
	e := start(t)
	h := snapshot(e)
	paths := []string{"dev", "etc", "run", "sys", "proc", "tmp", "var", "work", "dev/pts", "dev/shm", "dev/mqueue", "dev/null", "dev/console", "dev/fd", "dev/ptmx",
		"etc/hosts", "etc/hostname", "etc/resolv.conf", "sys/fs", "sys/fs/cgroup", "run/secrets", "sbin"}
	started := 0
	for i, p := range paths {
		for k, to := range []string{up + h.victim, h.victim + "/new/sub"} {
			name := fmt.Sprintf("link%d-%d", i, k)
			image(e, name, "mkdir -p $(dirname "+p+"); rm -rf "+p+"; ln -s "+to+" "+p)
			j := &job{Image: name, Tty: i%2 == 0, WorkingDir: "/" + p + "/wd/x", Cmd: []string{"/bin/sh", "-c", "cat /" + p + "/canary; [ ! -f /" + p + " ] || cat /" + p + "; echo bad >/" + p + "/pwned; true"}}
			j.HostConfig.Init = k == 1
			j.HostConfig.Binds = []string{"v:/" + p + "/vol"}
			j.HostConfig.Tmpfs = map[string]string{"/" + p + "/tmp/x": ""}
			j.HostConfig.Devices = []map[string]any{{"PathOnHost": "/dev/null", "PathInContainer": "/" + p + "/nul", "CgroupPermissions": "rwm"}}
			full := *j
			bare := &job{Image: name, Tty: j.Tty, Cmd: j.Cmd}
			for _, j := range []*job{&full, bare} {
				out, ok, _, err := j.once(e)
				if err == nil && ok {
					started++
					err = noSecret(out)
				}
				if err != nil {
					t.Errorf("/%s -> %s: %v", p, to, err)
				}
			}
		}
	}
	t.Logf("%d of %d started", started, len(paths)*4)
	if started < len(paths) {
		t.Errorf("only %d started: the test proves nothing", started)
	}
	h.same("after links")
	e.Audit()
}

// TestS10PrepareRace: directories, files and devices that the engine makes in
// volumes turn into links while it makes them.
func TestS10PrepareRace(t *testing.T) {
	e := start(t)
	r := racer(t, e)
	h := snapshot(e)
	image(e, "decoy", "mkdir -p ."+h.victim+"/sub; echo inside >."+h.victim+"/canary")
	e.Run("run", "--rm", "-v", "etc:/etc", "busybox", "true")
	attack(e, r, "swap", "run", "mkdir d e; ln -s "+up+h.victim+" l; ln -s "+h.victim+" k", "swap /v/d /v/l /v/e /v/k")
	attack(e, r, "plant1", "dev", "true", "plant /v/nul "+up+h.victim+"/canary")
	attack(e, r, "plant2", "files", "true", "plant /v/wd "+h.victim)
	attack(e, r, "etc", "etc", "ln -s "+up+h.victim+"/canary link; ln -s "+up+h.victim+"/mark link2", "swap /v/hosts /v/link /v/hostname /v/link2")
	race(e, 100, func(i int) *job {
		j := &job{Image: "decoy", Cmd: []string{"sh", "-c", "cat /run/*/canary /etc/hosts /files/*/canary; true"}}
		j.HostConfig.Binds = []string{"run:/run", "dev:/devs", "files:/files"}
		j.HostConfig.Devices = []map[string]any{{"PathOnHost": "/dev/null", "PathInContainer": "/devs/nul", "CgroupPermissions": "rwm"}}
		switch i % 4 {
		case 0:
			j.WorkingDir = fmt.Sprintf("/run/d/wd%d/x", i)
			j.HostConfig.Init = true
		case 1:
			j.WorkingDir = "/files/wd/x/y"
			j.HostConfig.Tmpfs = map[string]string{fmt.Sprintf("/run/d/t%d", i): "", fmt.Sprintf("/run/e/u%d/v", i): ""}
		case 2:
			j.HostConfig.Binds = append(j.HostConfig.Binds, fmt.Sprintf("inner:/run/e/n%d", i), "etc:/etc", filepath.Join(e.Dir, "racer")+fmt.Sprintf(":/run/d/f%d", i))
		case 3:
			j.HostConfig.Devices = append(j.HostConfig.Devices, map[string]any{"PathOnHost": "/dev/zero", "PathInContainer": fmt.Sprintf("/run/e/x%d/zero", i), "CgroupPermissions": "rwm"})
		}
		return j
	}, noSecret)
	h.same("after preparations")
	e.Audit()
}

// TestS3TraceExec: containers that may trace attach to the processes that
// join them, and find nothing that is not theirs (CVE-2016-9962).
func TestS3TraceExec(t *testing.T) {
	e := start(t)
	r := racer(t, e)
	h := snapshot(e)
	for _, c := range []struct {
		name string
		args []string
	}{{"own", []string{"--cap-add", "SYS_PTRACE"}}, {"other", nil}} {
		e.Run(append(append([]string{"run", "-d", "--name", c.name, "-v", r + ":/racer:ro", "-v", "stop-" + c.name + ":/stop"}, c.args...), "busybox", "sleep", "1000")...)
	}
	trace := []string{"/racer", "trace", "/stop/now", "a80c25fb"}
	e.Run(append([]string{"exec", "-d", "own", "sh", "-c", `"$@" >/stop/said 2>&1`, "sh"}, trace...)...)
	e.Run(append([]string{"run", "-d", "--name", "tracer", "--pid", "container:other", "--cap-add", "SYS_PTRACE", "-v", r + ":/racer:ro", "-v", "stop-other:/stop", "busybox"}, trace...)...)
	e.Eventually("the tracers run", func() bool {
		return e.Try("logs", "tracer").Out != "" && strings.Contains(e.Try("exec", "own", "cat", "/stop/said").Out, "ready")
	})
	var wg sync.WaitGroup
	for _, name := range []string{"own", "other"} {
		wg.Go(func() {
			for range 500 {
				if err := execOnce(e, name); err != nil {
					t.Errorf("exec in %s: %v", name, err)
					return
				}
			}
		})
	}
	wg.Wait()
	e.Run("exec", "own", "touch", "/stop/now")
	e.Run("exec", "other", "touch", "/stop/now")
	e.Run("wait", "tracer")
	e.Eventually("the tracer ends", func() bool { return strings.Contains(e.Run("exec", "own", "cat", "/stop/said"), "seen") })
	for who, said := range map[string]string{"own": e.Run("exec", "own", "cat", "/stop/said"), "other": e.Run("logs", "tracer")} {
		var seen, attached int
		fmt.Sscanf(said[strings.LastIndex(said, "seen"):], "seen %d attached %d", &seen, &attached)
		t.Logf("%s: seen %d, attached to %d", who, seen, attached)
		// What cat, which waits for the tracer, has open is the container's own.
		if strings.Contains(strings.ReplaceAll(said, "FOUND fd 3 /stop/said of /bin/busybox", ""), "FOUND") {
			t.Errorf("%s: %.2000s", who, said)
		}
		if seen < 50 || attached < 5 {
			t.Errorf("%s: seen %d, attached to %d: the test proves nothing", who, seen, attached)
		}
	}
	h.same("after execs")
	e.Audit()
}
