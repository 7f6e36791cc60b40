package image

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"machine/agent/failpoint"
	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/oci"
)

// ImportOptions of Import.
type ImportOptions struct {
	Ref      string   // name to give; may be empty
	Message  string   // comment in the history
	Changes  []string // Dockerfile instructions on the configuration
	Platform string   // os/arch[/variant]; empty is the host's
}

// Import makes an image of one layer from a tar of a root file system, plain
// or compressed.
func (s *Store) Import(ctx context.Context, r io.Reader, o ImportOptions) (*model.Image, error) {
	p, err := oci.ParsePlatform(o.Platform)
	if err != nil {
		return nil, err
	}
	if p.OS != runtime.GOOS {
		return nil, fault.Invalid.Errorf("operating system is not supported")
	}
	if o.Message == "" {
		o.Message = "Imported from -"
	}
	img := written{Comment: o.Message}
	img.Platform = p
	return s.make(ctx, r, img, makeOptions{ref: o.Ref, changes: o.Changes, comment: o.Message, event: "import"})
}

// CommitOptions of Commit.
type CommitOptions struct {
	Ref     string        // name to give; may be empty
	Parent  digest.Digest // the container's image; empty for none
	Config  dockerspec.DockerOCIImageConfig
	Author  string
	Comment string
	// CreatedBy is the history's line: the container's command.
	CreatedBy string
	// Container is the id, ContainerConfig the configuration of the container,
	// for the record.
	Container       string
	ContainerConfig any
}

// written is a configuration as Docker writes it: with fields that no
// specification has and that docker inspect shows.
type written struct {
	dockerspec.DockerOCIImage
	Comment         string `json:"comment,omitempty"`
	Container       string `json:"container,omitempty"`
	ContainerConfig any    `json:"container_config,omitempty"`
	DockerVersion   string `json:"docker_version,omitempty"`
}

// Commit makes an image on top of Parent from a layer tar: what a container
// changed. A nil or empty layer makes a step that changes only the
// configuration. The caller closes layer.
func (s *Store) Commit(ctx context.Context, layer io.Reader, o CommitOptions) (*model.Image, error) {
	img := written{Container: o.Container, ContainerConfig: o.ContainerConfig}
	img.Platform = oci.Host()
	if o.Parent != "" {
		s.mu.Lock()
		e := s.images[o.Parent]
		if e != nil {
			img.DockerOCIImage = e.config
		}
		s.mu.Unlock()
		if e == nil {
			return nil, noSuchImage(o.Parent.String())
		}
	}
	img.Config = o.Config
	img.Author = o.Author
	return s.make(ctx, layer, img, makeOptions{ref: o.Ref, comment: o.Comment, createdBy: o.CreatedBy, parent: o.Parent, event: "create"})
}

type makeOptions struct {
	ref       string
	changes   []string
	comment   string
	createdBy string
	parent    digest.Digest
	event     string
}

// make adds a layer, or nothing, to a configuration.
func (s *Store) make(ctx context.Context, layer io.Reader, img written, o makeOptions) (*model.Image, error) {
	var name reference.Named
	if o.ref != "" {
		n, err := oci.ParseRef(o.ref)
		if err != nil {
			return nil, err
		}
		if _, ok := n.(reference.Digested); ok {
			return nil, fault.Invalid.Errorf("cannot import digest reference")
		}
		name = n
	}
	if err := ApplyChanges(&img.Config, o.changes); err != nil {
		return nil, err
	}
	below := append([]digest.Digest(nil), img.RootFS.DiffIDs...)
	chains := chainsOf(below)
	defer s.lease(chains)()
	empty := layer == nil
	if !empty {
		done, diff, err := s.addLayer(ctx, layer, oci.Chain(below), o.parent != "")
		if err != nil {
			return nil, err
		}
		defer done()
		if empty = diff == ""; !empty {
			below = append(below, diff)
		}
		failpoint.Hit("image.layer")
	}
	now := time.Now().UTC()
	img.Created = &now
	if img.Architecture == "" {
		img.OS, img.Architecture = runtime.GOOS, runtime.GOARCH
	}
	img.RootFS = v1.RootFS{Type: "layers", DiffIDs: below}
	if img.RootFS.DiffIDs == nil {
		img.RootFS.DiffIDs = []digest.Digest{}
	}
	img.History = append(append([]v1.History(nil), img.History...), v1.History{Created: &now, CreatedBy: o.createdBy, Author: img.Author, Comment: o.comment, EmptyLayer: empty})
	img.DockerVersion = s.o.Version
	b, err := encode(img)
	if err != nil {
		return nil, err
	}
	r := record{Parent: o.parent}
	if name != nil {
		r.Tagged = now
	}
	return s.keep(ctx, b, r, name, o.event)
}

// keep records an image and names it. It tells of both as Docker does: of a
// committed image before of its name, of an imported one after.
func (s *Store) keep(ctx context.Context, config []byte, r record, name reference.Named, action string) (*model.Image, error) {
	id, err := s.add(config, r)
	if err != nil {
		return nil, err
	}
	failpoint.Hit("image.config")
	s.mu.Lock()
	e := s.images[id]
	s.mu.Unlock()
	if e == nil {
		return nil, noSuchImage(id.String()) // removed meanwhile
	}
	if action == "create" {
		s.happened(action, e)
	}
	if name != nil {
		if err := s.setRef(name, id); err != nil {
			return nil, fmt.Errorf("tag %s: %w", id, err)
		}
		s.event("tag", id.String(), oci.Familiar(name), e)
	}
	failpoint.Hit("image.named")
	if action != "create" {
		s.happened(action, e)
	}
	return s.Get(ctx, id.String())
}

// emptyTar is the digest of a tar without entries.
const emptyTar = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"

// addLayer applies a layer and keeps it until done runs. With skip one without
// entries is left out: diff is empty.
func (s *Store) addLayer(ctx context.Context, r io.Reader, parent digest.Digest, skip bool) (done func(), diff digest.Digest, err error) {
	g, err := s.o.Layers.Stage(ctx, r)
	if err != nil {
		return nil, "", err
	}
	failpoint.Hit("image.staged")
	if skip && g.DiffID() == emptyTar {
		g.Discard()
		return func() {}, "", nil
	}
	diff = g.DiffID()
	done = s.lease([]digest.Digest{oci.ChainID(parent, diff)})
	if _, err := s.o.Layers.Commit(ctx, parent, []model.StagedLayer{g}); err != nil {
		done()
		return nil, "", err
	}
	return done, diff, nil
}
