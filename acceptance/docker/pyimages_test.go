package docker

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// pyImages uses Debian's python3-docker for all that it can do with images.
const pyImages = `
import docker, io, json, sys, tarfile
c = docker.DockerClient(base_url="unix://" + sys.argv[1], timeout=60)
low, reg = c.api, sys.argv[2]
box = c.images.get("busybox")
assert box.tags == ["busybox:latest"] and box.id.startswith("sha256:") and len(box.short_id) == 17, box.short_id
assert box.tag(reg + "/py/box", tag="1") is True
assert box.tag(reg + "/py/box", "2")
out = list(c.images.push(reg + "/py/box", tag="1", stream=True, decode=True))
assert any("digest" in x.get("status", "") for x in out) and out[-1]["aux"]["Tag"] == "1", out
assert "errorDetail" not in c.images.push(reg + "/py/box", tag="2")
d = c.images.get_registry_data(reg + "/py/box:1")
assert d.id == out[-1]["aux"]["Digest"] and d.has_platform("linux/amd64") and not d.has_platform("linux/s390x"), d.attrs
assert d.pull().id == box.id
c.images.remove(reg + "/py/box:1"); c.images.remove(reg + "/py/box:2")
img = c.images.pull(reg + "/py/box", tag="1")
assert img.id == box.id and reg + "/py/box:1" in img.tags
assert sorted(t for i in c.images.pull(reg + "/py/box", all_tags=True) for t in i.tags if reg in t) == [reg + "/py/box:1", reg + "/py/box:2"]
c.images.remove(reg + "/py/box:2")
lines = list(low.pull(reg + "/py/box", tag="2", stream=True, decode=True))
assert lines[0]["status"] == "Pulling from py/box" and lines[0]["id"] == "2", lines
assert any(x.get("status", "").startswith("Digest: sha256:") for x in lines)
for bad in (lambda: c.images.pull(reg + "/py/nope", tag="1"), lambda: c.images.get("nope"), lambda: c.images.get_registry_data(reg + "/py/nope:1")):
    try:
        bad(); raise SystemExit("no error")
    except docker.errors.NotFound:
        pass
try:
    c.images.search("x"); raise SystemExit("found something")
except docker.errors.APIError as e:
    assert e.status_code in (501, 503, 500), e
assert [i.id for i in c.images.list(name=reg + "/py/box")] == [box.id]
assert c.images.list(filters={"reference": "nope*"}) == []
assert c.images.list(filters={"dangling": True}) == []
assert len(c.images.list(all=True)) == 1
h = box.history(); assert h[-1]["Comment"].startswith("Imported"), h
tar = b"".join(box.save(named=True))
assert "manifest.json" in tarfile.open(fileobj=io.BytesIO(tar)).getnames()
m = json.load(tarfile.open(fileobj=io.BytesIO(tar)).extractfile("manifest.json"))
assert "busybox:latest" in m[0]["RepoTags"], m
nameless = b"".join(box.save())
assert json.load(tarfile.open(fileobj=io.BytesIO(nameless)).extractfile("manifest.json"))[0]["RepoTags"] in (None, []), "named"
loaded = c.images.load(tar)
assert [i.id for i in loaded] == [box.id], loaded
assert [i.id for i in c.images.load(nameless)] == [box.id]
try:
    c.images.load(b"no archive" * 100); raise SystemExit("loaded")
except (docker.errors.ImageLoadError, docker.errors.APIError):
    pass
ctr = c.containers.run("busybox", ["sh", "-c", "echo hi >/hi"], detach=True, network_mode="none"); ctr.wait()
new = ctr.commit(repository="py", tag="new", message="why", author="me", changes="CMD [\"cat\", \"/hi\"]", conf={"Labels": {"k": "v"}})
assert new.labels.get("k") == "v" and new.attrs["Author"] == "me" and new.attrs["Comment"] == "why", new.attrs
assert c.containers.run("py:new", remove=True, network_mode="none") == b"hi\n"
ctr.remove()
assert low.import_image_from_data(b"".join(low.export(low.create_container("busybox", "true")["Id"])), repository="py", tag="flat")
for x in c.containers.list(all=True): x.remove()
assert c.images.get("py:flat").tags == ["py:flat"]
assert low.inspect_distribution(reg + "/py/box:1")["Platforms"][0]["os"] == "linux"
low.tag("py:new", "py", "other", force=True)
c.images.remove("py:other"); c.images.remove("py:new", force=True, noprune=False)
c.images.remove("py:flat")
freed = c.images.prune(filters={"dangling": False})
assert freed["SpaceReclaimed"] > 1000 and c.images.list() == [], freed
assert c.images.prune() == {"ImagesDeleted": [], "SpaceReclaimed": 0} or c.images.prune()["SpaceReclaimed"] == 0
assert low.login("u", "p", registry=reg)["Status"] == "Login Succeeded"
print("fine")
`

// TestPythonImages runs docker-py on images and a registry.
func TestPythonImages(t *testing.T) {
	if _, err := os.Stat("/usr/lib/python3/dist-packages/docker"); err != nil {
		t.Skip(err)
	}
	e := start(t)
	reg, stop := registryOn(e, 5000)
	script := filepath.Join(e.Dir, "t.py")
	if err := os.WriteFile(script, []byte(pyImages), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("/usr/bin/python3", script, e.AgentSocket(), reg).CombinedOutput()
	if err != nil || string(out) != "fine\n" {
		t.Errorf("%v\n%s", err, out)
	}
	stop()
	e.Audit()
}
