package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"machine/agent/failpoint"
)

// converged is how long after its start an agent may need to be as it should.
const converged = 5 * time.Second

// A scene is an act in the middle of which the agent is killed.
type scene struct {
	name   string
	points string // separated by spaces; each must be passed by act or by after
	setup  func(h *host)
	act    func(h *host) error
	// boot scenes are those whose act is the agent's own start.
	boot bool
	// holds checks, after an act that was acknowledged, that it lasts.
	holds func(h *host)
}

func scenes() []scene {
	return []scene{
		{name: "create", points: "create.named create.dir create.layer create.built create.saved",
			act: func(h *host) error { return h.create("tt", `"Volumes":{"/v":{}}`, "", "sleep", "1000") }, holds: is("created")},
		{name: "start", points: "start.volumes start.sandbox start.files start.task start.networks start.assembled start.netfiles start.booked start.running start.told " +
			"sandbox.made attach.claimed attach.recorded attach.joined attach.addressed attach.routed attach.saved shim.saved shim.spawned shim.cgroup shim.created",
			setup: made, act: func(h *host) error { return h.post("/containers/tt/start") }, holds: is("running")},
		{name: "exec", points: "exec.created exec.begun shim.exec exec.running exec.ended exec.told",
			setup: running, act: func(h *host) error { _, err := h.exec("tt", "true"); return err }, holds: is("running")},
		{name: "stop", points: "stop.marked signal.sent stop.ended stop.told exit.seen exit.networks exit.booked exit.told exit.deleted sandbox.released sandbox.removed detach.ports detach.left detach.record shim.emptied",
			setup: running, act: func(h *host) error { return h.post("/containers/tt/stop") }, holds: is("exited")},
		{name: "kill", points: "kill.marked kill.sent signal.sent exit.seen exit.booked", setup: running,
			act: func(h *host) error { return h.post("/containers/tt/kill") }, holds: is("exited")},
		{name: "restart", points: "restart.stopped restart.started stop.marked exit.booked exit.deleted start.task start.booked start.running", setup: running,
			act: func(h *host) error { return h.post("/containers/tt/restart") }, holds: is("running")},
		{name: "rm", points: "rm.ready rm.marked rm.layer rm.files rm.record rm.volumes exit.networks exit.booked exit.deleted", setup: running,
			act: func(h *host) error { return h.send("DELETE", "/containers/tt?force=1&v=1", nil) }, holds: is("")},
		{name: "auto-remove", points: "exit.seen exit.networks exit.booked exit.told rm.ready rm.marked rm.layer rm.files rm.record rm.volumes", boot: false,
			act: func(h *host) error {
				if err := h.create("tt", `"Volumes":{"/v":{}}`, `"AutoRemove":true`, "true"); err != nil {
					return err
				}
				if err := h.post("/containers/tt/start"); err != nil {
					return err
				}
				return h.send("POST", "/containers/tt/wait?condition=removed", nil)
			}, holds: is("")},
		{name: "connect", points: "attach.claimed attach.recorded attach.joined attach.addressed attach.routed attach.saved", setup: running,
			act: func(h *host) error {
				return h.send("POST", "/networks/bridge/connect", strings.NewReader(`{"Container":"tt"}`))
			}, holds: is("running")},
		{name: "disconnect", points: "detach.ports detach.left detach.record", setup: running,
			act: func(h *host) error {
				return h.send("POST", "/networks/side/disconnect", strings.NewReader(`{"Container":"tt"}`))
			}, holds: is("running")},
		{name: "boot", points: "restore.records restore.asked restore.endpoints restore.namespaces restore.volumes restore.adopted restore.booked restore.swept", boot: true,
			setup: func(h *host) {
				running(h)
				h.must(h.create("cc", "", "", "sleep", "1000"))
				h.must(h.create("aa", "", `"RestartPolicy":{"Name":"always"}`, "sleep", "1000"))
				h.must(h.post("/containers/aa/start"))
			}, act: func(*host) error { return nil }, holds: is("running")},
		{name: "import", points: "image.staged image.layer image.config image.named", act: func(h *host) error {
			return h.file("/images/create?fromSrc=-&repo=new&tag=latest&changes=ENV+PATH%3D%2Fbin", "busybox.tar")
		}, holds: image},
		{name: "commit", points: "image.staged image.layer image.config image.named",
			setup: func(h *host) { h.must(h.create("tt", "", "", "sleep", "1000")) },
			act:   func(h *host) error { return h.post("/commit?container=tt&repo=new&tag=latest") }, holds: image},
		{name: "load", points: "load.read load.layers load.recorded", act: func(h *host) error { return h.file("/images/load", "new.tar") }, holds: image},
		{name: "pull", points: "pull.resolved pull.config pull.staged pull.layer pull.layers pull.recorded pull.digest pull.saved",
			act: func(h *host) error { return h.stream("/images/create?fromImage=" + h.registry + "/new&tag=latest") }, holds: image},
	}
}

// made is a container that has all that a start can half do.
func made(h *host) {
	h.must(h.create("tt", `"Volumes":{"/v":{}},"ExposedPorts":{"80/tcp":{}}`,
		`"Init":true,"NetworkMode":"side","PortBindings":{"80/tcp":[{"HostPort":"8099"}]}`, "sleep", "1000"))
}

func running(h *host) {
	made(h)
	h.must(h.post("/containers/tt/start"))
}

func is(state string) func(*host) {
	return func(h *host) {
		if got := h.state("tt"); got != state {
			h.fail("acknowledged, and now its state is %q instead of %q", got, state)
		}
	}
}

func image(h *host) {
	if !slices.ContainsFunc(h.images(), isNew) {
		h.fail("acknowledged, and now there is no image")
	}
}

func isNew(ref string) bool { return strings.HasSuffix(ref, "new:latest") }

// BenchmarkKillMatrix goes through all scenes and their points, ROUNDS times
// each, and prints how often the agent was killed where. It runs once,
// whatever the framework asks for.
func BenchmarkKillMatrix(b *testing.B) {
	if b.N > 1 {
		b.Skip("run with -benchtime 1x")
	}
	rounds, err := strconv.Atoi(os.Getenv("ROUNDS"))
	if err != nil {
		rounds = 5
	}
	only := os.Getenv("SCENE")
	h := newHost(b)
	points, runs, slowest := map[string]bool{}, 0, time.Duration(0)
	for _, s := range scenes() {
		if only != "" && only != s.name {
			continue
		}
		for _, p := range strings.Fields(s.points) {
			begin := time.Now()
			for range rounds {
				took := h.round(s, p)
				slowest = max(slowest, took)
				runs++
			}
			points[p] = true
			fmt.Printf("%-12s %-20s %d runs, %.1f s\n", s.name, p, rounds, time.Since(begin).Seconds())
		}
	}
	fmt.Printf("%d points, %d runs, slowest convergence %d ms, %d failures\n", len(points), runs, slowest.Milliseconds(), h.failures)
}

// TestF28KilledAnywhere goes once through every third point of each scene: the
// matrix is for hours that have the time.
func TestF28KilledAnywhere(t *testing.T) {
	h := newHost(t)
	for _, s := range scenes() {
		for i, p := range strings.Fields(s.points) {
			if i%3 == len(s.name)%3 {
				h.round(s, p)
			}
		}
	}
}

// round kills the agent once at a point. It returns how long after the next
// start everything was as it should be.
func (h *host) round(s scene, point string) time.Duration {
	h.at = s.name + " at " + point
	e := h.e
	file := filepath.Join(e.Dir, "failpoint")
	e.Kill()
	if !e.Launch(failpoint.Variable + "=" + file) {
		h.b.Fatalf("%s: the agent does not start:\n%s", h.at, e.Log())
	}
	h.must(h.create("keep", "", `"NetworkMode":"side"`, "sleep", "1000"))
	h.must(h.post("/containers/keep/start"))
	keep := h.inspect("keep").State.Pid
	if s.setup != nil {
		s.setup(h)
	}
	h.must(os.WriteFile(file, []byte(point), 0o600))
	defer os.Remove(file)
	var err error
	if s.boot {
		e.Kill()
		e.Launch(failpoint.Variable + "=" + file)
	} else {
		err = s.act(h)
	}
	if !e.Ended(10 * time.Second) {
		h.fail("the point does not fire (act: %v)", err)
		e.Kill()
	}
	begin := time.Now()
	e.Start()
	if now := h.inspect("keep").State.Pid; now != keep {
		h.fail("a bystander was pid %d, is %d", keep, now)
	}
	if err == nil && s.holds != nil {
		s.holds(h)
	}
	h.usable()
	h.clean()
	for {
		left := h.leftovers()
		took := time.Since(begin)
		if len(left) == 0 && took <= converged {
			return took
		}
		if took > converged {
			h.fail("after %v: %s", took, strings.Join(left, "\n  "))
			return took
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// usable uses everything that is there, whatever the act left.
func (h *host) usable() {
	if h.failed() {
		return
	}
	for _, c := range h.containers() {
		switch state := h.state(c); state {
		case "created", "exited":
			if err := h.post("/containers/" + c + "/start"); err != nil && !h.inspect(c).HostConfig.AutoRemove {
				h.fail("start of %s: %v", c, err)
				continue
			}
		case "running":
		case "", "removing": // by itself
			continue
		default:
			h.fail("container %s is %q", c, state)
			continue
		}
		if h.state(c) != "running" {
			continue // true has ended
		}
		if code, err := h.exec(c, "true"); (err != nil || code != 0) && h.state(c) == "running" {
			h.fail("exec in %s: code %d, %v", c, code, err)
		}
	}
	for _, ref := range h.images() {
		if !isNew(ref) {
			continue
		}
		if err := h.createOf(ref, "probe", "", "", "sleep", "1000"); err != nil {
			h.fail("create from %s: %v", ref, err)
		} else if err := h.post("/containers/probe/start"); err != nil {
			h.fail("start from %s: %v", ref, err)
		}
	}
}

// clean removes everything.
func (h *host) clean() {
	for _, c := range h.containers() {
		if err := h.send("DELETE", "/containers/"+c+"?force=1&v=1", nil); err != nil && h.state(c) != "" {
			h.fail("remove %s: %v", c, err)
		}
	}
	for _, ref := range h.images() {
		if isNew(ref) {
			if err := h.send("DELETE", "/images/"+ref+"?force=1", nil); err != nil {
				h.fail("remove image %s: %v", ref, err)
			}
		}
	}
	h.must(h.post("/volumes/prune?all=1"))
	h.must(h.post("/images/prune"))
}
