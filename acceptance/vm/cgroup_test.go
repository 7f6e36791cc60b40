//go:build vm

package vm

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"machine/acceptance/engine"
)

// start gives an engine with the busybox image on a host with cgroup v2 alone.
func start(t *testing.T, flags ...string) *engine.Engine {
	t.Helper()
	engine.NeedRoot(t)
	b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err != nil || !strings.Contains(string(b), "memory") {
		t.Skip("the host has no cgroup v2 with controllers")
	}
	e := engine.New(t, flags...)
	e.Busybox()
	return e
}

// group is the folder of a container's cgroup.
func group(t *testing.T, e *engine.Engine, name string) string {
	t.Helper()
	dir := filepath.Join("/sys/fs/cgroup", filepath.Base(e.Dir), e.Run("inspect", "-f", "{{.Id}}", name))
	if _, err := os.Stat(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func file(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Error(err)
	}
	return strings.TrimSpace(string(b))
}

// disk is the block device of the tests' files, with its number.
func disk(t *testing.T) (path, number string) {
	t.Helper()
	for _, name := range []string{"vdb", "vda", "sda", "nvme0n1"} {
		if b, err := os.ReadFile("/sys/block/" + name + "/dev"); err == nil {
			return "/dev/" + name, strings.TrimSpace(string(b))
		}
	}
	t.Skip("no disk to limit")
	return "", ""
}

func TestResources(t *testing.T) {
	e := start(t)
	dev, number := disk(t)
	e.Run("run", "-d", "--name", "box", "-m", "64m", "--memory-swap", "96m", "--memory-reservation", "32m", "--cpus", "0.5",
		"--cpu-shares", "512", "--cpuset-cpus", "0", "--cpuset-mems", "0", "--pids-limit", "50", "--blkio-weight", "300", "--blkio-weight-device", dev+":400",
		"--device-read-bps", dev+":1mb", "--device-write-bps", dev+":2mb", "--device-read-iops", dev+":100", "--device-write-iops", dev+":200",
		"busybox", "sleep", "1000")
	dir := group(t, e, "box")
	for name, want := range map[string]string{
		"memory.max": "67108864", "memory.swap.max": "33554432", "memory.low": "33554432", "cpu.max": "50000 100000",
		"cpu.weight": "20", "cpuset.cpus": "0", "cpuset.mems": "0", "pids.max": "50",
		"io.max": number + " rbps=1048576 wbps=2097152 riops=100 wiops=200",
	} {
		engine.Equal(t, name, file(t, dir, name), want)
	}
	weight, _ := os.ReadFile(filepath.Join(dir, "io.bfq.weight"))
	if len(weight) > 0 {
		engine.Equal(t, "io.bfq.weight", strings.TrimSpace(string(weight)), "default 300\n"+number+" 400")
	} else {
		engine.Equal(t, "io.weight", file(t, dir, "io.weight"), "default 2930")
	}
	engine.Equal(t, "what the container sees", e.Run("exec", "box", "cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/pids.max"), "67108864\n50")
	e.Run("update", "-m", "96m", "--memory-swap", "96m", "--cpus", "1.5", "--cpu-shares", "2048", "--cpuset-cpus", "0-1", "--pids-limit", "60", "--blkio-weight", "500", "box")
	for name, want := range map[string]string{"memory.max": "100663296", "memory.swap.max": "0", "cpu.max": "150000 100000",
		"cpu.weight": "79", "cpuset.cpus": "0-1", "pids.max": "60", "memory.low": "33554432"} {
		engine.Equal(t, "updated "+name, file(t, dir, name), want)
	}
	e.Run("update", "-m", "32m", "--memory-swap", "-1", "--memory-reservation", "16m", "box")
	engine.Equal(t, "less memory", file(t, dir, "memory.max"), "33554432")
	engine.Equal(t, "swap without limit", file(t, dir, "memory.swap.max"), "max")
	e.Run("update", "--pids-limit", "-1", "box")
	engine.Equal(t, "no limit of processes", file(t, dir, "pids.max"), "max")
	e.Run("restart", "-t", "0", "box")
	engine.Equal(t, "after a restart", file(t, group(t, e, "box"), "memory.max"), "33554432")
	e.Fails(125, "", "run", "--cpuset-cpus", "4000", "busybox", "true")
	e.Audit()
}

// What the kernel counts against a limit, it enforces.
func TestThrottled(t *testing.T) {
	e := start(t)
	dev, _ := disk(t)
	begin := time.Now()
	e.Run("run", "--rm", "-v", e.Dir+":/on", "--device-write-bps", dev+":1mb", "busybox", "dd", "if=/dev/zero", "of=/on/f", "bs=1M", "count=4", "oflag=direct")
	if d := time.Since(begin); d < 2*time.Second {
		t.Errorf("4 MiB at 1 MiB/s took %v", d)
	}
	e.Run("run", "-d", "--name", "busy", "--cpus", "0.2", "busybox", "sh", "-c", "while :; do :; done")
	e.Eventually("throttled", func() bool { return stats(t, e, "busy").CPU.Throttling.Throttled > 3 })
	e.Audit()
}

type statsAnswer struct {
	CPU struct {
		Usage struct {
			Total  uint64   `json:"total_usage"`
			PerCPU []uint64 `json:"percpu_usage"`
		} `json:"cpu_usage"`
		System     uint64 `json:"system_cpu_usage"`
		Throttling struct {
			Throttled uint64 `json:"throttled_periods"`
		} `json:"throttling_data"`
	} `json:"cpu_stats"`
	Memory struct {
		Usage, Limit, Failcnt uint64
		Max                   *uint64 `json:"max_usage"`
		Stats                 map[string]uint64
	} `json:"memory_stats"`
	Pids struct {
		Current, Limit uint64
	} `json:"pids_stats"`
	Blkio struct {
		Bytes []struct {
			Major, Minor uint64
			Op           string
			Value        uint64
		} `json:"io_service_bytes_recursive"`
	} `json:"blkio_stats"`
}

func stats(t *testing.T, e *engine.Engine, name string) (s statsAnswer) {
	t.Helper()
	code, body := e.Do("GET", "/containers/"+name+"/stats?stream=0", "")
	if err := json.Unmarshal([]byte(body), &s); err != nil || code != 200 {
		t.Fatalf("stats: %d %v %s", code, err, body)
	}
	return s
}

func TestStats(t *testing.T) {
	e := start(t)
	e.Run("run", "-d", "--name", "box", "-m", "64m", "--pids-limit", "50", "-v", e.Dir+":/on", "busybox", "sh", "-c",
		"dd if=/dev/zero of=/on/f bs=1M count=8 oflag=direct; dd if=/on/f of=/dev/null bs=1M; echo done; i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; sleep 1000")
	e.Eventually("the container has written", func() bool { return strings.Contains(e.Run("logs", "box"), "done") })
	e.Eventually("CPU time shows", func() bool { return stats(t, e, "box").CPU.Usage.Total > 1e6 })
	s := stats(t, e, "box")
	if s.CPU.System == 0 || s.CPU.Usage.PerCPU != nil {
		t.Errorf("cpu: %+v", s.CPU)
	}
	_, hasInactive := s.Memory.Stats["inactive_file"]
	if s.Memory.Limit != 64<<20 || s.Memory.Usage == 0 || s.Memory.Usage > 64<<20 || !hasInactive || s.Memory.Failcnt != 0 {
		t.Errorf("memory: %+v", s.Memory)
	}
	if s.Pids.Current == 0 || s.Pids.Limit != 50 {
		t.Errorf("pids: %+v", s.Pids)
	}
	var wrote uint64
	for _, b := range s.Blkio.Bytes {
		if b.Op == "write" {
			wrote = max(wrote, b.Value)
		} else if b.Op != "read" {
			t.Errorf("operation %q", b.Op)
		}
	}
	if wrote < 8<<20 {
		t.Errorf("io: %+v", s.Blkio)
	}
	engine.Contains(t, "docker stats", e.Run("stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}} {{.BlockIO}}", "box"), "/ 64MiB")
	e.Run("run", "-d", "--name", "free", "busybox", "sleep", "1000")
	if s := stats(t, e, "free"); s.Memory.Limit == 0 || s.Memory.Limit > 1<<50 || s.Pids.Limit != 4096 {
		t.Errorf("without limits: %+v %+v", s.Memory, s.Pids)
	}
	e.Audit()
}

func TestOutOfMemory(t *testing.T) {
	e := start(t)
	since := e.Run("info", "-f", "{{.SystemTime}}")
	grow := "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done"
	r := e.Try("run", "--name", "oom", "-m", "16m", "--memory-swap", "16m", "busybox", "sh", "-c", grow)
	if r.Code != 137 {
		t.Errorf("exit code %d: %s", r.Code, r.Err)
	}
	engine.Equal(t, "state", e.Run("inspect", "-f", "{{.State.ExitCode}} {{.State.OOMKilled}}", "oom"), "137 true")
	until := e.Run("info", "-f", "{{.SystemTime}}")
	engine.Equal(t, "events", strings.Join(strings.Fields(e.Run("events", "--since", since, "--until", until, "--filter", "container=oom", "--format", "{{.Action}}")), " "), "create attach start oom die")
	e.Run("run", "-d", "--name", "box", "-m", "24m", "--memory-swap", "24m", "busybox", "sleep", "1000")
	if r := e.Try("exec", "box", "sh", "-c", grow); r.Code != 137 {
		t.Errorf("exec: %+v", r)
	}
	engine.Equal(t, "an exec's end is not the container's", e.Run("inspect", "-f", "{{.State.Running}}", "box"), "true")
	e.Eventually("it is told while the container lives", func() bool {
		return e.Run("inspect", "-f", "{{.State.OOMKilled}}", "box") == "true"
	})
	if s := stats(t, e, "box"); s.Memory.Failcnt == 0 {
		t.Errorf("memory: %+v", s.Memory)
	}
	e.Run("stop", "-t", "0", "box")
	e.Audit()
}

func TestPause(t *testing.T) {
	e := start(t)
	e.Run("run", "-d", "--name", "box", "busybox", "sh", "-c", "while :; do echo x; sleep 0.05; done")
	dir := group(t, e, "box")
	e.Run("pause", "box")
	engine.Equal(t, "cgroup.freeze", file(t, dir, "cgroup.freeze"), "1")
	engine.Contains(t, "cgroup.events", file(t, dir, "cgroup.events"), "frozen 1")
	engine.Equal(t, "state", e.Run("inspect", "-f", "{{.State.Status}}", "box"), "paused")
	e.Fails(1, "paused", "exec", "box", "true")
	e.Restart()
	engine.Equal(t, "state after a restart of the agent", e.Run("inspect", "-f", "{{.State.Status}}", "box"), "paused")
	e.Run("update", "-m", "64m", "--memory-swap", "64m", "box")
	e.Run("unpause", "box")
	engine.Equal(t, "cgroup.freeze", file(t, dir, "cgroup.freeze"), "0")
	e.Run("exec", "box", "true")
	e.Run("pause", "box")
	e.Run("rm", "-f", "box")
	if _, err := os.Stat(dir); err == nil {
		t.Error("the cgroup is still there")
	}
	e.Audit()
}

func TestDevices(t *testing.T) {
	e := start(t)
	dev, number := disk(t)
	box := func(args ...string) string {
		r := e.Try(append([]string{"run", "--rm"}, args...)...)
		return r.Out + r.Err
	}
	read := "head -c 1 /x >/dev/null"
	engine.Contains(t, "a node of its own making", box("busybox", "sh", "-c", "mknod /x c 1 1 && "+read), "Operation not permitted")
	engine.Equal(t, "the usual ones", box("busybox", "sh", "-c", "for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done; head -c 3 /dev/zero | wc -c; echo x >/dev/null"), "3\n")
	engine.Equal(t, "a device that is given", box("--device", dev+":/x:r", "busybox", "sh", "-c", read+" && echo yes"), "yes\n")
	engine.Contains(t, "writing what may be read", box("--device", dev+":/x:r", "busybox", "sh", "-c", ": >>/x"), "Operation not permitted")
	engine.Equal(t, "by a rule", box("--device-cgroup-rule", "b "+number+" r", "busybox", "sh", "-c", "mknod /x b "+strings.Replace(number, ":", " ", 1)+" && "+read+" && echo yes"), "yes\n")
	engine.Equal(t, "privileged", box("--privileged", "busybox", "sh", "-c", "head -c 1 "+dev+" >/dev/null && echo yes"), "yes\n")
	e.Run("run", "-d", "--name", "box", "busybox", "sleep", "1000")
	e.Run("update", "-m", "64m", "--memory-swap", "64m", "box")
	engine.Contains(t, "in an exec, after an update", e.Try("exec", "box", "sh", "-c", "mknod /x c 1 1 && "+read).Err, "Operation not permitted")
	e.Restart()
	engine.Contains(t, "after a restart of the agent", e.Try("exec", "box", "sh", "-c", read).Err, "Operation not permitted")
	e.Audit()
}

func TestCgroupNamespaces(t *testing.T) {
	e := start(t)
	own := "/" + filepath.Base(e.Dir) + "/"
	script := "cat /proc/self/cgroup; ls /sys/fs/cgroup/cgroup.controllers; grep -c ' cgroup2 ro,' /proc/mounts; mkdir /sys/fs/cgroup/new 2>/dev/null && echo made"
	engine.Equal(t, "default", e.Try("run", "--rm", "busybox", "sh", "-c", script).Out, "0::/\n/sys/fs/cgroup/cgroup.controllers\n1\n")
	engine.Equal(t, "private", e.Run("run", "--rm", "--cgroupns", "private", "busybox", "cat", "/proc/self/cgroup"), "0::/")
	engine.Contains(t, "host", e.Run("run", "--rm", "--cgroupns", "host", "busybox", "cat", "/proc/self/cgroup"), own)
	engine.Equal(t, "privileged", e.Run("run", "--rm", "--privileged", "busybox", "sh", "-c", "cat /proc/self/cgroup; mkdir /sys/fs/cgroup/new && echo made"), "0::/\nmade")
	e.Run("run", "-d", "--name", "box", "busybox", "sleep", "1000")
	engine.Equal(t, "inspect", e.Run("inspect", "-f", "{{.HostConfig.CgroupnsMode}}", "box"), "private")
	engine.Equal(t, "exec", e.Run("exec", "box", "cat", "/proc/self/cgroup"), "0::/")
	e.Run("run", "-d", "--name", "host", "--cgroupns", "host", "busybox", "sleep", "1000")
	engine.Contains(t, "exec in the host's", e.Run("exec", "host", "cat", "/proc/self/cgroup"), own+e.Run("inspect", "-f", "{{.Id}}", "host"))
	engine.Equal(t, "parent", e.Run("run", "--rm", "--cgroup-parent", own+"inner", "--cgroupns", "host", "busybox", "sh", "-c", "grep -c "+own+"inner/ /proc/self/cgroup"), "1")
	os.Remove("/sys/fs/cgroup" + own + "inner")
	e.Audit()
}

// A container that runs engines or systemd makes cgroups of its own, moves its
// processes there and hands its controllers down: then its own cgroup takes no
// process any more, and an exec goes where the container's first process is.
func TestNestedCgroups(t *testing.T) {
	e := start(t)
	e.Run("run", "-d", "--name", "box", "--privileged", "busybox", "sh", "-c",
		"cd /sys/fs/cgroup && mkdir init && echo 1 >init/cgroup.procs && echo +memory +pids >cgroup.subtree_control && mkdir other && echo ready; sleep 1000")
	e.Eventually("the container is ready", func() bool { return strings.Contains(e.Run("logs", "box"), "ready") })
	engine.Equal(t, "exec", e.Run("exec", "box", "cat", "/proc/self/cgroup"), "0::/init")
	e.Run("exec", "-d", "box", "sh", "-c", "echo $$ >/sys/fs/cgroup/other/cgroup.procs; sleep 1000")
	e.Eventually("all processes are listed", func() bool { return strings.Count(e.Run("top", "box"), "sleep 1000") >= 2 })
	e.Run("pause", "box")
	e.Run("unpause", "box")
	dir := group(t, e, "box")
	e.Run("rm", "-f", "box")
	if _, err := os.Stat(dir); err == nil {
		t.Error("the cgroup is still there")
	}
	e.Audit()
}

// An engine in a container: its cgroup namespace's root has processes, and its
// containers have limits all the same.
func TestEngineInContainer(t *testing.T) {
	e := start(t)
	client, err := exec.LookPath("docker")
	if err != nil {
		t.Skip(err)
	}
	e.Run("run", "-d", "--name", "outer", "--privileged", "-v", engine.Binary(t, "agent")+":/agent:ro", "-v", client+":/bin/docker:ro",
		"-v", filepath.Join(e.Dir, "busybox.tar")+":/busybox.tar:ro", "-v", "/data", "-v", "/run", "busybox",
		"/agent", "--host", "unix:///run/engine.sock", "--data-root", "/data", "--exec-root", "/run/engine", "--config-file", "/dev/null")
	inner := func(args ...string) string {
		return e.Run(append([]string{"exec", "outer", "docker", "-H", "unix:///run/engine.sock"}, args...)...)
	}
	defer func() {
		if t.Failed() {
			t.Log(e.Try("logs", "outer"))
		}
	}()
	e.Eventually("the inner engine answers", func() bool {
		return e.Try("exec", "outer", "docker", "-H", "unix:///run/engine.sock", "version").Code == 0
	})
	inner("import", "--change", "ENV PATH=/bin", "/busybox.tar", "busybox")
	engine.Equal(t, "limits inside", inner("run", "--rm", "-m", "64m", "--pids-limit", "50", "busybox", "cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/pids.max"), "67108864\n50")
	inner("run", "-d", "--name", "box", "busybox", "sleep", "1000")
	engine.Equal(t, "exec inside", inner("exec", "box", "cat", "/proc/self/cgroup"), "0::/")
	dir := group(t, e, "outer")
	e.Run("rm", "-f", "-v", "outer")
	if _, err := os.Stat(dir); err == nil {
		t.Error("the cgroup is still there")
	}
	e.Audit()
}

func TestInfo(t *testing.T) {
	e := start(t)
	engine.Equal(t, "info", e.Run("info", "-f", "{{.CgroupVersion}} {{.CgroupDriver}} {{.MemoryLimit}} {{.SwapLimit}} {{.PidsLimit}} {{.CPUShares}} {{.CPUSet}} {{.OomKillDisable}}"),
		"2 cgroupfs true true true true true false")
	engine.Contains(t, "security options", e.Run("info", "-f", "{{.SecurityOptions}}"), "name=cgroupns")
	r := e.Try("info")
	if strings.Contains(r.Err, "WARNING") {
		t.Errorf("warnings: %s", r.Err)
	}
	engine.Contains(t, "discarded", e.Try("run", "--rm", "-m", "64m", "--oom-kill-disable", "busybox", "true").Err, "OomKillDisable discarded")
	engine.Contains(t, "discarded", e.Try("run", "--rm", "-m", "64m", "--memory-swappiness", "10", "busybox", "true").Err, "swappiness discarded")
	e.Audit()
}
