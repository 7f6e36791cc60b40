package docker

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"

	"machine/acceptance/engine"
)

// TestImageTruths holds what a comparison of the docker client's output with
// Debian's engine and this one has shown: names, events and figures that
// scripts read.
func TestImageTruths(t *testing.T) {
	e := start(t)
	id := e.Run("images", "-q", "--no-trunc", "busybox")
	e.Run("run", "-d", "--name", "c1", "--label", "l=1", "busybox", "sleep", "1000")
	e.Run("tag", "busybox", "other:1")
	e.Run("commit", "-c", "ENV A=b", "-c", "ENV B=$A", "c1", "busybox")
	engine.Equal(t, "the container's image has lost its name", e.Run("ps", "--format", "{{.Image}}"), id[7:19])
	engine.Equal(t, "config", e.Run("inspect", "-f", "{{json .Config.Env}}", "busybox"), `["PATH=/bin","A=b","B=b"]`)
	engine.Equal(t, "a commit without changes has no layer", e.Run("inspect", "-f", "{{len .RootFS.Layers}}", "busybox"), "1")
	seen := told(e, func(m events.Message) string {
		return fmt.Sprint(m.Type, " ", m.Action, " ", m.Actor.Attributes["name"])
	})
	engine.Contains(t, "events", regexp.MustCompile("sha256:[0-9a-f]+").ReplaceAllString(seen, "ID"),
		"container pause c1\nimage create ID\nimage tag busybox:latest\ncontainer commit c1\ncontainer unpause c1")
	e.Fails(1, "(cannot be forced) - image has dependent child images", "rmi", "-f", id)
	e.Fails(1, "refusing to create an ambiguous tag using digest algorithm as name", "tag", "busybox", "sha256:abc")
	e.Fails(1, "invalid filter 'dangling=[maybe]'", "images", "-f", "dangling=maybe")
	engine.Equal(t, "only the name goes", e.Run("rmi", "busybox"), "Untagged: busybox:latest\nDeleted: "+newest(seen))
	size := e.Run("inspect", "-f", "{{.Size}}", "other:1")
	engine.Equal(t, "layers", layersSize(e), size)
	e.Run("kill", "c1")
	engine.Contains(t, "removed by force", e.Run("rmi", "-f", "other:1"), "Deleted: "+id)
	engine.Equal(t, "what only a container keeps is no image's", layersSize(e), "0")
	e.Run("rm", "c1")
	left, err := e.HostRun("sh", "-c", fmt.Sprintf("find %s/data/overlay2 -name busybox | wc -l", e.Dir))
	if err != nil || strings.TrimSpace(left) != "0" {
		t.Errorf("layers are left behind the last container: %q, %v", left, err)
	}
	for _, kind := range []string{"container", "image", "network", "volume"} {
		e.Run(kind, "prune", "-f")
	}
	engine.Equal(t, "prunes", told(e, func(m events.Message) string {
		if m.Action != events.ActionPrune {
			return ""
		}
		return fmt.Sprintf("%s %v", m.Type, m.Actor.Attributes)
	}), "container map[reclaimed:0]\nimage map[reclaimed:0]\nnetwork map[reclaimed:0]\nvolume map[reclaimed:0]")
	e.Audit()
}

// told gives a line for each event so far.
func told(e *engine.Engine, line func(events.Message) string) string {
	_, body := e.Do("GET", fmt.Sprintf("/v1.51/events?since=0&until=%d.%09d", time.Now().Unix(), time.Now().Nanosecond()), "")
	var out []string
	for one := range strings.Lines(body) {
		var m events.Message
		if err := json.Unmarshal([]byte(one), &m); err != nil {
			e.T.Fatalf("event %q: %v", one, err)
		}
		if l := line(m); l != "" {
			out = append(out, l)
		}
	}
	return strings.Join(out, "\n")
}

// newest is the image that events tell was made.
func newest(seen string) string {
	m := regexp.MustCompile("image create (sha256:[0-9a-f]+)").FindStringSubmatch(seen)
	if m == nil {
		return "none"
	}
	return m[1]
}

func layersSize(e *engine.Engine) string {
	_, body := e.Do("GET", "/v1.50/system/df?type=image", "")
	m := regexp.MustCompile(`"LayersSize":([0-9]+)`).FindStringSubmatch(body)
	if m == nil {
		return body
	}
	return m[1]
}
