package api

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	apicontainer "github.com/moby/moby/api/types/container"
	apiimage "github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"machine/agent/fault"
	"machine/agent/image"
	"machine/agent/model"
	"machine/agent/oci"
)

// Images is the engine's image store.
type Images interface {
	ImageReader
	ImageWriter
	Transfers
}

// ImageReader tells of images.
type ImageReader interface {
	Get(ctx context.Context, ref string) (*model.Image, error)
	Details(ctx context.Context, id digest.Digest) (image.Details, error)
	List(ctx context.Context) ([]image.Summary, error)
	History(ctx context.Context, ref string) ([]image.HistoryItem, error)
	DiskUsage(ctx context.Context) (image.Usage, error)
	// Extra are what other parts of the engine know of an image.
	Extra(id, top digest.Digest) ImageExtra
}

// ImageExtra is what images do not know themselves.
type ImageExtra struct {
	Containers []string          // ids of those made from it
	Driver     map[string]string // GraphDriver.Data
}

// ImageWriter changes images.
type ImageWriter interface {
	Tag(ctx context.Context, ref, name string) error
	RemoveImage(ctx context.Context, ref string, force, noprune bool) ([]image.Removed, error)
	PruneImages(ctx context.Context, all bool, keep func(*image.Summary) bool) ([]image.Removed, int64, error)
	Import(ctx context.Context, r io.Reader, o image.ImportOptions) (*model.Image, error)
	CommitContainer(ctx context.Context, o CommitOptions) (digest.Digest, error)
}

// CommitOptions are those of docker commit.
type CommitOptions struct {
	Container, Ref, Author, Comment string
	Changes                         []string
	Pause                           bool
	Config                          *apicontainer.Config // nil: the container's
}

// Transfers moves images in and out.
type Transfers interface {
	LoadFor(ctx context.Context, r io.Reader, platform *v1.Platform, p model.Progress) ([]image.Loaded, error)
	Save(ctx context.Context, names []string, w io.Writer) error
	Pull(ctx context.Context, ref, platform string, auth model.RegistryAuth, p model.Progress) (*model.Image, error)
	PullAll(ctx context.Context, name, platform string, auth model.RegistryAuth, p model.Progress) error
	Push(ctx context.Context, ref string, auth model.RegistryAuth, p model.Progress) error
}

func (s *Server) images(o Options) {
	i := &imageAPI{o.Images}
	s.handle("GET", "images/json", i.list)
	s.handle("POST", "images/create", i.create)
	s.handle("POST", "images/load", i.load)
	s.handle("POST", "images/prune", i.prune)
	s.handle("GET", "images/get", i.save)
	s.handle("GET", "images/{name...}/get", i.save)
	s.handle("GET", "images/{name...}/json", i.inspect)
	s.handle("GET", "images/{name...}/history", i.history)
	s.handle("POST", "images/{name...}/push", i.push)
	s.handle("POST", "images/{name...}/tag", i.tag)
	s.handle("DELETE", "images/{name...}", i.remove)
	s.handle("POST", "commit", i.commit)
}

type imageAPI struct{ b Images }

// registryAuth reads X-Registry-Auth; what cannot be read counts as nothing,
// as Docker has it.
func registryAuth(r *request) model.RegistryAuth {
	return decodeAuth(r.Header.Get("X-Registry-Auth"))
}

// create pulls, or imports when there is a source.
func (i *imageAPI) create(w http.ResponseWriter, r *request) error {
	if r.query("fromSrc") != "" {
		return i.importImage(w, r)
	}
	name := strings.TrimSuffix(r.query("fromImage"), ":") // old clients: all tags
	if name == "" {
		return fault.Invalid.Errorf("missing parameter: fromImage or fromSrc")
	}
	if tag := r.query("tag"); tag != "" {
		n, err := oci.ParseName(name)
		if err != nil {
			return err
		}
		if d, derr := digest.Parse(tag); derr == nil { // the "tag" may be one
			n, err = reference.WithDigest(reference.TrimNamed(n), d)
		} else {
			n, err = reference.WithTag(reference.TrimNamed(n), tag)
		}
		if err != nil {
			return fault.Invalid.Errorf("%w", err)
		}
		name = n.String()
	}
	m := newMessages(w)
	if n, err := oci.ParseName(name); err == nil && reference.IsNameOnly(n) { // as Docker: all tags
		return m.end(i.b.PullAll(r.Context(), name, r.query("platform"), registryAuth(r), m.event))
	}
	_, err := i.b.Pull(r.Context(), name, r.query("platform"), registryAuth(r), m.event)
	return m.end(err)
}

func (i *imageAPI) importImage(w http.ResponseWriter, r *request) error {
	ref, err := named(r.query("repo"), r.query("tag"))
	if err != nil {
		return err
	}
	o := image.ImportOptions{Ref: ref, Message: r.query("message"), Changes: r.URL.Query()["changes"], Platform: r.query("platform")}
	m := newMessages(w)
	var body io.Reader = r.Body
	if src := r.query("fromSrc"); src != "-" {
		got, err := download(r.Context(), src, m)
		if err != nil {
			return err
		}
		defer got.Close()
		body = got
		if o.Message == "" {
			o.Message = "Imported from " + src
		}
	}
	img, err := i.b.Import(r.Context(), body, o)
	if err == nil {
		m.event(model.ProgressEvent{Status: img.ID.String()})
	}
	return m.end(err)
}

// named is a name as older clients send it, in two parts: tag replaces the
// one that repo has.
func named(repo, tag string) (string, error) {
	if repo == "" || tag == "" {
		return repo, nil
	}
	n, err := oci.ParseName(repo)
	if err != nil {
		return "", err
	}
	if _, ok := n.(reference.Digested); ok {
		return "", fault.Invalid.Errorf("cannot import digest reference")
	}
	t, err := reference.WithTag(reference.TrimNamed(n), tag)
	if err != nil {
		return "", fault.Invalid.Errorf("%w", err)
	}
	return t.String(), nil
}

func (i *imageAPI) load(w http.ResponseWriter, r *request) error {
	m := newMessages(w)
	m.quiet = r.query("quiet") == "" || r.boolean("quiet")
	p, err := platform(r)
	if err != nil {
		return err
	}
	_, err = i.b.LoadFor(r.Context(), r.Body, p, m.event)
	m.begin() // Docker, too, tells of a bad archive in the stream alone
	return m.end(err)
}

func (i *imageAPI) save(w http.ResponseWriter, r *request) error {
	names := r.URL.Query()["names"]
	if n := r.vars["name"]; n != "" {
		names = []string{n}
	}
	for _, n := range names {
		if err := i.provides(r, n); err != nil {
			return err
		}
	}
	w.Header().Set("Content-Type", "application/x-tar")
	sw := &startedWriter{w: w}
	err := i.b.Save(r.Context(), names, sw)
	return cut(sw.started, err)
}

func (i *imageAPI) push(w http.ResponseWriter, r *request) error {
	name, err := named(r.vars["name"], r.query("tag"))
	if err != nil {
		return err
	}
	if err := i.provides(r, name); err != nil {
		return err
	}
	m := newMessages(w)
	return m.end(i.b.Push(r.Context(), name, registryAuth(r), m.event))
}

func (i *imageAPI) tag(w http.ResponseWriter, r *request) error {
	if r.query("repo") == "" {
		return fault.Invalid.Errorf("missing parameter: repo")
	}
	name, err := named(r.query("repo"), r.query("tag"))
	if err != nil {
		return err
	}
	if err := i.b.Tag(r.Context(), r.vars["name"], name); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

func deletes(list []image.Removed) []apiimage.DeleteResponse {
	out := []apiimage.DeleteResponse{}
	for _, d := range list {
		out = append(out, apiimage.DeleteResponse{Untagged: d.Untagged, Deleted: d.Deleted})
	}
	return out
}

func (i *imageAPI) remove(w http.ResponseWriter, r *request) error {
	if err := i.provides(r, r.vars["name"]); err != nil {
		return err
	}
	list, err := i.b.RemoveImage(r.Context(), r.vars["name"], r.boolean("force"), r.boolean("noprune"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, deletes(list))
}

func (i *imageAPI) prune(w http.ResponseWriter, r *request) error {
	f, err := r.filters("dangling", "label", "label!", "until")
	if err != nil {
		return err
	}
	until, err := f.Until(time.Now())
	if err != nil {
		return err
	}
	dangling, err := f.Bool("dangling", true)
	if err != nil {
		return err
	}
	list, freed, err := i.b.PruneImages(r.Context(), !dangling, func(s *image.Summary) bool {
		return !until.IsZero() && (s.Config.Created == nil || s.Created.After(until)) || !f.Labels(s.Config.Config.Labels)
	})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, map[string]any{"ImagesDeleted": deletes(list), "SpaceReclaimed": freed})
}

func (i *imageAPI) history(w http.ResponseWriter, r *request) error {
	if err := i.provides(r, r.vars["name"]); err != nil {
		return err
	}
	list, err := i.b.History(r.Context(), r.vars["name"])
	if err != nil {
		return err
	}
	out := []apiimage.HistoryResponseItem{}
	for _, h := range list {
		created := int64(0)
		if h.Created != nil {
			created = h.Created.Unix()
		}
		out = append(out, apiimage.HistoryResponseItem{ID: h.ID, Created: created, CreatedBy: h.CreatedBy, Comment: h.Comment, Size: h.Size, Tags: h.Tags})
	}
	return writeJSON(w, http.StatusOK, out)
}

var imageKeys = []string{"dangling", "label", "label!", "before", "since", "reference", "until"}

func (i *imageAPI) list(w http.ResponseWriter, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	if old := r.query("filter"); old != "" && r.before("1.41") { // a name, in the oldest clients
		f["reference"] = append(f["reference"], old)
	}
	if err := f.Check(imageKeys...); err != nil {
		return err
	}
	match, err := i.matcher(r, f)
	if err != nil {
		return err
	}
	list, err := i.b.List(r.Context())
	if err != nil {
		return err
	}
	var use image.Usage
	shared := r.boolean("shared-size") && !r.before("1.42")
	if shared {
		if use, err = i.b.DiskUsage(r.Context()); err != nil {
			return err
		}
	}
	out := []listedImage{}
	for _, s := range list {
		if !match(&s) {
			continue
		}
		l := i.summary(&s, r)
		if shared {
			l.SharedSize = use.Shared[s.ID]
		}
		if r.boolean("manifests") && !r.before("1.47") {
			l.Manifests = i.manifests(s.Image)
		}
		out = append(out, l)
	}
	return writeJSON(w, http.StatusOK, out)
}

// matcher makes a test of the filters.
func (i *imageAPI) matcher(r *request, f model.Filters) (func(*image.Summary) bool, error) {
	var before, since time.Time
	for key, at := range map[string]*time.Time{"before": &before, "since": &since} {
		for _, ref := range f[key] {
			img, err := i.b.Get(r.Context(), ref)
			if err != nil {
				return nil, err
			}
			// Of several the narrowest counts.
			if c := img.Created; at.IsZero() || (key == "before") == c.Before(*at) {
				*at = c
			}
		}
	}
	until, err := f.Until(time.Now())
	if err != nil {
		return nil, err
	}
	for _, p := range f["reference"] {
		if _, err := reference.FamiliarMatch(p, fixedRef); err != nil {
			return nil, fault.Invalid.Errorf("invalid reference pattern %q: %w", p, err)
		}
	}
	dangling, err := f.Bool("dangling", false)
	if err != nil {
		return nil, err
	}
	all := r.boolean("all")
	return func(s *image.Summary) bool {
		nameless := len(s.RepoTags)+len(s.Digests) == 0
		switch {
		case dangling && (s.Children || len(s.RepoTags) > 0), nameless && !all && s.Children,
			nameless && !dangling && len(f["dangling"]) > 0:
			return false
		case !before.IsZero() && !s.Created.Before(before), !since.IsZero() && !s.Created.After(since),
			!until.IsZero() && !s.Created.Before(until), !f.Labels(s.Config.Config.Labels):
			return false
		}
		return len(f["reference"]) == 0 || keepMatching(s, f["reference"])
	}, nil
}

var fixedRef, _ = reference.ParseNormalizedNamed("x:y")

// keepMatching drops the names that no pattern matches.
func keepMatching(s *image.Summary, patterns []string) bool {
	drop := func(name string) bool {
		n, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			return true
		}
		return !slices.ContainsFunc(patterns, func(p string) bool {
			ok, _ := reference.FamiliarMatch(p, n)
			return ok
		})
	}
	s.RepoTags = slices.DeleteFunc(slices.Clone(s.RepoTags), drop)
	s.Digests = slices.DeleteFunc(slices.Clone(s.Digests), drop)
	return len(s.RepoTags)+len(s.Digests) > 0
}

// listedImage has what older clients look for.
type listedImage struct {
	apiimage.Summary
	VirtualSize int64 `json:",omitempty"`
}

func (i *imageAPI) summary(s *image.Summary, r *request) listedImage {
	l := listedImage{Summary: apiimage.Summary{
		ID: s.ID.String(), ParentID: string(s.Parent), RepoTags: s.RepoTags, RepoDigests: s.Digests,
		Size: s.Size, SharedSize: -1, Containers: -1, Labels: s.Config.Config.Labels,
	}}
	if s.Config.Created != nil {
		l.Created = s.Created.Unix()
	}
	if r == nil || !r.before("1.51") {
		l.Containers = int64(len(i.b.Extra(s.ID, s.TopLayer).Containers))
	}
	if r != nil && r.before("1.43") && len(l.RepoTags) == 0 {
		l.RepoTags = []string{"<none>:<none>"}
		if len(l.RepoDigests) == 0 {
			l.RepoDigests = []string{"<none>@<none>"}
		}
	}
	if r != nil && r.before("1.44") {
		l.VirtualSize = s.Size
	}
	return l
}

// imageUsage is the images' part of system/df.
func imageUsage(ctx context.Context, b Images) ([]listedImage, int64, error) {
	use, err := b.DiskUsage(ctx)
	if err != nil {
		return nil, 0, err
	}
	list, err := b.List(ctx)
	if err != nil {
		return nil, 0, err
	}
	out := []listedImage{}
	i := &imageAPI{b}
	for _, s := range list {
		if len(s.RepoTags) == 0 && s.Children {
			continue
		}
		l := i.summary(&s, nil)
		l.SharedSize = use.Shared[s.ID]
		out = append(out, l)
	}
	return out, use.Layers, nil
}

func (i *imageAPI) commit(w http.ResponseWriter, r *request) error {
	ref, err := named(r.query("repo"), r.query("tag"))
	if err != nil {
		return err
	}
	o := CommitOptions{Container: r.query("container"), Ref: ref, Author: r.query("author"), Comment: r.query("comment"),
		Changes: r.URL.Query()["changes"], Pause: r.query("pause") == "" || r.boolean("pause")}
	if o.Container == "" {
		return fault.Invalid.Errorf("missing parameter: container")
	}
	var cfg *apicontainer.Config
	if err := r.readJSON(&cfg); err != nil {
		return err
	}
	o.Config = cfg
	id, err := i.b.CommitContainer(r.Context(), o)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, map[string]string{"Id": id.String()})
}
