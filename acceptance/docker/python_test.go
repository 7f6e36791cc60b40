package docker

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// pyScript uses Debian's python3-docker as programs do.
const pyScript = `
import docker, io, sys, tarfile, time
c = docker.DockerClient(base_url="unix://" + sys.argv[1], timeout=60)
assert c.ping()
assert c.version()["ApiVersion"]
out = c.containers.run("busybox", ["echo", "hello"], remove=True)
assert out == b"hello\n", out
try:
    c.containers.run("busybox", ["sh", "-c", "echo bad >&2; exit 3"], remove=True)
    raise SystemExit("no error")
except docker.errors.ContainerError as e:
    assert e.exit_status == 3 and e.stderr == b"bad\n", e
box = c.containers.run("busybox", ["sh", "-c", "for i in 1 2 3; do echo line $i; sleep 0.1; done; sleep 1000"],
                       detach=True, labels={"a": "b"}, environment={"X": "1"}, mem_limit="64m", ports={"80/tcp": 8088})
lines = []
for l in box.logs(stream=True, follow=True):
    lines.append(l)
    if b"line 3" in b"".join(lines):
        break
assert b"".join(lines).startswith(b"line 1\n"), lines
code, out = box.exec_run(["sh", "-c", "echo $X; exit 5"])
assert (code, out) == (5, b"1\n"), (code, out)
code, (so, se) = box.exec_run(["sh", "-c", "echo o; echo e >&2"], demux=True)
assert (so, se) == (b"o\n", b"e\n"), (so, se)
buf = io.BytesIO()
with tarfile.open(fileobj=buf, mode="w") as t:
    i = tarfile.TarInfo("f"); i.size = 4
    t.addfile(i, io.BytesIO(b"data"))
assert box.put_archive("/tmp", buf.getvalue())
bits, stat = box.get_archive("/tmp/f")
assert stat["name"] == "f" and stat["size"] == 4, stat
t = tarfile.open(fileobj=io.BytesIO(b"".join(bits)))
assert t.extractfile("f").read() == b"data"
st = box.stats(stream=False)
assert st["memory_stats"]["limit"] == 64 << 20, st["memory_stats"]
assert [x.id for x in c.containers.list(filters={"label": "a=b"})] == [box.id]
box.reload()
assert box.status == "running" and box.attrs["NetworkSettings"]["IPAddress"].startswith("172.17.")
assert box.top()["Processes"]
box.pause(); box.reload(); assert box.status == "paused"; box.unpause()
sock = box.attach_socket(params={"stdout": 1, "stream": 1}); sock.close()
box.rename("other"); box.stop(timeout=0)
assert box.wait()["StatusCode"] == 137
box.remove()
try:
    c.containers.get("other"); raise SystemExit("still there")
except docker.errors.NotFound:
    pass
try:
    c.images.get("ghost"); raise SystemExit("no error")
except docker.errors.ImageNotFound:
    pass
n = c.networks.create("pynet", driver="bridge")
v = c.volumes.create("pyvol")
w = c.containers.run("busybox", ["sleep", "1000"], detach=True, network="pynet", volumes={"pyvol": {"bind": "/d", "mode": "rw"}}, auto_remove=True)
n.reload(); assert [x.id for x in n.containers] == [w.id]
w.kill()
for _ in range(100):
    try:
        c.containers.get(w.id)
    except docker.errors.NotFound:
        break
    time.sleep(0.1)
n.remove(); v.remove()
events = c.events(decode=True, since=0, until=int(time.time()))
assert any(e["Action"] == "die" for e in events)
img = c.images.get("busybox"); assert "busybox:latest" in img.tags
print("fine")
`

// TestPython runs docker-py against the engine.
func TestPython(t *testing.T) {
	e := start(t)
	script := filepath.Join(e.Dir, "t.py")
	if err := os.WriteFile(script, []byte(pyScript), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("/usr/bin/python3", script, e.AgentSocket()).CombinedOutput()
	if err != nil || string(out) != "fine\n" {
		t.Errorf("%v\n%s", err, out)
	}
	e.Audit()
}
