package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"machine/agent/fault"
	"machine/agent/layer/layertest"
	"machine/agent/model"
)

// told collects what a store tells of its images.
func told(s *Store) func() string {
	var list []string
	s.o.Event = func(e Event) {
		actor := e.Actor
		if len(actor) > 12 && strings.HasPrefix(actor, "sha256:") {
			actor = "ID"
		}
		name := e.Attributes["name"]
		if strings.HasPrefix(name, "sha256:") {
			name = "ID"
		}
		list = append(list, fmt.Sprintf("%s %s %s %d", e.Action, actor, name, len(e.Attributes)-1))
	}
	return func() string {
		out := strings.Join(list, "; ")
		list = nil
		return out
	}
}

// TestEvents: actions, actors, names and the number of labels, in Docker's
// order.
func TestEvents(t *testing.T) {
	s := open(t)
	next := told(s)
	check := func(what, want string) {
		t.Helper()
		if got := next(); got != want {
			t.Errorf("%s: told %q, want %q", what, got, want)
		}
	}
	img, err := s.Import(bg, bytes.NewReader(layertest.Tar(t, layertest.File("a", "x"))), ImportOptions{Ref: "i:1", Changes: []string{"LABEL a=b"}})
	if err != nil {
		t.Fatal(err)
	}
	check("import", "tag ID i:1 1; import ID ID 1")
	if _, err := s.Commit(bg, nil, CommitOptions{Parent: img.ID, Ref: "c:1"}); err != nil {
		t.Fatal(err)
	}
	check("commit", "create ID ID 0; tag ID c:1 0")
	if err := s.Tag(bg, "i:1", "j:1"); err != nil {
		t.Fatal(err)
	}
	check("tag", "tag ID j:1 1")
	var b bytes.Buffer
	if err := s.Save(bg, []string{"i:1"}, &b); err != nil {
		t.Fatal(err)
	}
	check("save", "save ID ID 1")
	if _, err := s.Load(bg, &b, model.Nothing); err != nil {
		t.Fatal(err)
	}
	check("load", "load ID ID 1")
	s.Remove(bg, "j:1", RemoveOptions{})
	check("untag", "untag ID ID 1")
	s.Remove(bg, "c:1", RemoveOptions{})
	s.Remove(bg, "i:1", RemoveOptions{})
	check("rmi", "untag ID ID 0; delete ID ID 0; untag ID ID 1; delete ID ID 0")
}

// TestRecordedAsDocker: what commit and import write beside the specification,
// and when an image counts as tagged.
func TestRecordedAsDocker(t *testing.T) {
	s := open(t)
	s.o.Version = "9.9"
	base, err := s.Import(bg, bytes.NewReader(layertest.Tar(t, layertest.File("a", "x"))), ImportOptions{Message: "why"})
	if err != nil {
		t.Fatal(err)
	}
	type config struct {
		Comment, Author, Container string
		Version                    string                    `json:"docker_version"`
		ContainerConfig            struct{ Hostname string } `json:"container_config"`
		RootFS                     struct {
			Diffs []string `json:"diff_ids"`
		}
		History []struct {
			Author, Comment string
			By              string `json:"created_by"`
			Empty           bool   `json:"empty_layer"`
		}
	}
	read := func(id digest.Digest) (c config, d Details) {
		d, err := s.Details(bg, id)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(d.Raw, &c); err != nil {
			t.Fatal(err)
		}
		return c, d
	}
	if c, d := read(base.ID); c.Comment != "why" || c.Version != "9.9" || c.History[0].Comment != "why" || !d.LastTagged.IsZero() {
		t.Errorf("import: %+v, tagged %v", c, d.LastTagged)
	}
	empty := bytes.NewReader(make([]byte, 1024)) // a tar without entries
	img, err := s.Commit(bg, empty, CommitOptions{Parent: base.ID, Ref: "c:1", Author: "me", Comment: "done", CreatedBy: "sh", Container: "0123", ContainerConfig: map[string]string{"Hostname": "h"}})
	if err != nil {
		t.Fatal(err)
	}
	c, d := read(img.ID)
	if c.Comment != "" || c.Author != "me" || c.Container != "0123" || c.ContainerConfig.Hostname != "h" || d.LastTagged.IsZero() || d.Parent != base.ID {
		t.Errorf("commit: %+v, %+v", c, d)
	}
	if h := c.History[1]; h.Author != "me" || h.Comment != "done" || h.By != "sh" || !h.Empty || len(c.RootFS.Diffs) != 1 {
		t.Errorf("a commit without changes: %+v", c)
	}
}

// TestRemoveRules are those of docker rmi.
func TestRemoveRules(t *testing.T) {
	s := open(t)
	img := imported(t, s, "a:1", layertest.File("f", "x"))
	s.Tag(bg, "a:1", "b:1")
	running := func(digest.Digest) (Use, bool) { return Use{strings.Repeat("c", 64), true}, true }
	stopped := func(digest.Digest) (Use, bool) { return Use{strings.Repeat("c", 64), false}, true }
	id := img.ID.Encoded()
	for _, c := range []struct {
		ref   string
		force bool
		use   InUse
		want  string
	}{
		{id[:12], false, nil, "conflict: unable to delete " + id[:12] + " (must be forced) - image is referenced in multiple repositories"},
		{id, false, running, "conflict: unable to delete " + id[:12] + " (cannot be forced) - image is being used by running container cccccccccccc"},
		{id, true, running, "conflict: unable to delete " + id[:12] + " (cannot be forced) - image is being used by running container cccccccccccc"},
		{id, false, stopped, "conflict: unable to delete " + id[:12] + " (must be forced) - image is referenced in multiple repositories"},
		{"b:1", false, running, ""},
		{"a:1", false, running, `conflict: unable to remove repository reference "a:1" (must force) - container cccccccccccc is using its referenced image ` + id[:12]},
		{id, false, stopped, "conflict: unable to delete " + id[:12] + " (must be forced) - image is being used by stopped container cccccccccccc"},
		{"a:1", true, running, ""}, // the name goes, the image stays
	} {
		_, err := s.Remove(bg, c.ref, RemoveOptions{Force: c.force, InUse: c.use})
		if c.want == "" && err != nil || c.want != "" && (!fault.Is(err, fault.Conflict) || err.Error() != c.want) {
			t.Errorf("rmi %s, force %v: %v, want %q", c.ref, c.force, err, c.want)
		}
	}
	if out, err := s.Remove(bg, id[:12], RemoveOptions{Force: true, InUse: stopped}); err != nil || len(out) != 2 {
		t.Errorf("by force: %v, %v", out, err)
	}
	if err := s.Tag(bg, "a:1", "sha256:abc"); err == nil {
		t.Error("tagged as sha256:abc")
	}
}

// TestFree: layers that a removed image left to a container go with it.
func TestFree(t *testing.T) {
	s := open(t)
	low := imported(t, s, "low", layertest.File("f", "x"))
	top, err := s.Commit(bg, bytes.NewReader(layertest.Tar(t, layertest.File("g", "y"))), CommitOptions{Parent: low.ID, Ref: "top"})
	if err != nil {
		t.Fatal(err)
	}
	release := s.lease([]digest.Digest{top.TopLayer}) // a container's
	s.Remove(bg, "top", RemoveOptions{})
	s.Free(bg, top.TopLayer)
	if n := len(s.o.Layers.List()); n != 2 {
		t.Errorf("%d layers while one is in use", n)
	}
	release()
	s.Free(bg, top.TopLayer)
	s.Free(bg, top.TopLayer)
	if n := len(s.o.Layers.List()); n != 1 {
		t.Errorf("%d layers, want that of the image which is left", n)
	}
}

// TestSaveByDigest: an image that is named by its digest is saved without a
// name, also when a tag stands before the digest.
func TestSaveByDigest(t *testing.T) {
	s := open(t)
	img := imported(t, s, "a:1", layertest.File("f", "x"))
	d := digest.FromString("manifest")
	n, err := reference.ParseNormalizedNamed("a@" + d.String())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.setRef(n, img.ID); err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]string{"a:1": `"RepoTags":["a:1"]`, "a@" + d.String(): `"RepoTags":null`, "a:1@" + d.String(): `"RepoTags":null`} {
		var b bytes.Buffer
		if err := s.Save(bg, []string{ref}, &b); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(b.String(), want) {
			t.Errorf("%s: the archive lacks %s", ref, want)
		}
	}
}
