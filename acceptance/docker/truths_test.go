package docker

import (
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"machine/acceptance/engine"
)

// TestImagePlatforms: requests for a platform that an image is not for are
// refused; those for its own are done.
func TestImagePlatforms(t *testing.T) {
	e := start(t)
	own, other := "linux/"+runtime.GOARCH, "linux/s390x"
	tar := filepath.Join(e.Dir, "x.tar")
	e.Run("save", "--platform", own, "-o", tar, "busybox")
	e.Fails(1, "does not provide the specified platform (linux/s390x)", "save", "--platform", other, "-o", tar+"2", "busybox")
	engine.Contains(t, "history", e.Run("history", "--platform", own, "busybox"), "Imported from")
	e.Fails(1, "does not provide the specified platform (linux/s390x)", "history", "--platform", other, "busybox")
	e.Fails(1, "no image for the platform linux/s390x", "load", "--platform", other, "-i", tar)
	engine.Contains(t, "load", e.Run("load", "--platform", own, "-i", tar), "busybox:latest")
	p := url.QueryEscape(`{"os":"linux","architecture":"s390x"}`)
	for _, q := range []string{"DELETE /v1.51/images/busybox?platforms=" + p, "GET /v1.51/images/busybox/json?platform=" + p, "POST /v1.51/images/busybox/push?platform=" + p} {
		method, path, _ := strings.Cut(q, " ")
		if code, body := e.Do(method, path, ""); code != 404 {
			t.Errorf("%s: %d %s", q, code, body)
		}
	}
	cc := e.Run("create", "busybox", "true")
	for _, path := range []string{"/v1.51/images/json?manifests=1", "/v1.51/images/busybox/json?manifests=1"} {
		if _, body := e.Do("GET", path, ""); !strings.Contains(body, `"Containers":["`+cc+`"]`) || !strings.Contains(body, `"Platform":{"architecture":"`+runtime.GOARCH) {
			t.Errorf("%s: %s", path, body)
		}
	}
	e.Run("rm", cc)
	if code, body := e.Do("GET", "/v1.51/images/busybox/json?platform=x", ""); code != 400 {
		t.Errorf("no platform: %d %s", code, body)
	}
	e.Audit()
}

// TestDiskUsageTruth: what docker system df says adds up: layers are counted
// once, shared ones as shared, containers with what they wrote.
func TestDiskUsageTruth(t *testing.T) {
	e := start(t)
	e.Run("run", "--name", "cc", "busybox", "sh", "-c", "dd if=/dev/zero of=/a bs=1000 count=3000 2>/dev/null")
	e.Run("commit", "cc", "kid")
	e.Run("run", "--name", "dd", "kid", "sh", "-c", "dd if=/dev/zero of=/b bs=1000 count=500 2>/dev/null")
	e.Run("volume", "create", "vol")
	e.Run("run", "--rm", "-v", "vol:/v", "busybox", "sh", "-c", "dd if=/dev/zero of=/v/c bs=1000 count=700 2>/dev/null")
	_, body := e.Do("GET", "/v1.50/system/df", "")
	var df struct {
		LayersSize int64
		Images     []struct {
			ID                           string `json:"Id"`
			ParentID                     string `json:"ParentId"`
			RepoTags                     []string
			Size, SharedSize, Containers int64
		}
		Containers []struct {
			Names              []string
			SizeRw, SizeRootFs int64
		}
		Volumes []struct {
			Name      string
			UsageData struct{ Size, RefCount int64 }
		}
	}
	if err := json.Unmarshal([]byte(body), &df); err != nil {
		t.Fatal(err)
	}
	var base int64
	for _, i := range df.Images {
		if i.RepoTags[0] == "busybox:latest" {
			base = i.Size
			if i.SharedSize != base || i.Containers != 1 || i.ParentID != "" {
				t.Errorf("busybox: %+v", i)
			}
		}
	}
	for _, i := range df.Images {
		if i.RepoTags[0] == "kid:latest" && (i.Size != base+3_000_000 || i.SharedSize != base || i.Containers != 1 || i.ParentID != e.Run("inspect", "-f", "{{.Id}}", "busybox")) {
			t.Errorf("kid over %d: %+v", base, i)
		}
	}
	if df.LayersSize != base+3_000_000 {
		t.Errorf("layers: %d, want %d", df.LayersSize, base+3_000_000)
	}
	for _, c := range df.Containers {
		want := map[string]int64{"/cc": 3_000_000, "/dd": 500_000}[c.Names[0]]
		if c.SizeRw != want || c.Names[0] == "/dd" && c.SizeRootFs != base+3_500_000 {
			t.Errorf("container: %+v, want %d", c, want)
		}
	}
	if len(df.Volumes) != 1 || df.Volumes[0].UsageData.Size != 700_000 || df.Volumes[0].UsageData.RefCount != 0 {
		t.Errorf("volumes: %+v", df.Volumes)
	}
	engine.Contains(t, "df -v", e.Run("system", "df", "-v"), "3MB")
	e.Run("rm", "cc", "dd")
	e.Audit()
}

// TestCopyOwner: docker cp -a gives files to the container's user, as the
// container itself names it. A registry without a search says so.
func TestCopyOwner(t *testing.T) {
	e := start(t)
	file := filepath.Join(e.Dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(file, 77, 78); err != nil {
		t.Fatal(err)
	}
	e.Run("run", "-d", "--name", "cc", "-u", "user", "busybox", "sleep", "1000")
	e.Run("cp", "-a", file, "cc:/tmp/mine")
	engine.Equal(t, "owner", e.Run("exec", "cc", "stat", "-c", "%u %g", "/tmp/mine"), "1000 1000")
	e.Run("cp", file, "cc:/tmp/other")
	engine.Equal(t, "owner", e.Run("exec", "cc", "stat", "-c", "%u %g", "/tmp/other"), "77 78")
	e.Run("rm", "-f", "cc")
	reg, stop := registryOn(e, 5000)
	e.Fails(1, "offers no search", "search", reg+"/x")
	stop()
	e.Audit()
}
