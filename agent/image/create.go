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
	if o.Message == "" {
		o.Message = "Imported from -"
	}
	img := dockerspec.DockerOCIImage{}
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
	Changes   []string // Dockerfile instructions on the configuration
}

// Commit makes an image on top of Parent from a layer tar: what a container
// changed. A nil layer makes a step that changes only the configuration. The
// caller closes layer.
func (s *Store) Commit(ctx context.Context, layer io.Reader, o CommitOptions) (*model.Image, error) {
	img := dockerspec.DockerOCIImage{}
	img.Platform = oci.Host()
	if o.Parent != "" {
		s.mu.Lock()
		e := s.images[o.Parent]
		if e != nil {
			img = e.config
		}
		s.mu.Unlock()
		if e == nil {
			return nil, noSuchImage(o.Parent.String())
		}
	}
	img.Config = o.Config
	img.Author = o.Author
	return s.make(ctx, layer, img, makeOptions{ref: o.Ref, changes: o.Changes, comment: o.Comment, createdBy: o.CreatedBy, parent: o.Parent, event: "create"})
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
func (s *Store) make(ctx context.Context, layer io.Reader, img dockerspec.DockerOCIImage, o makeOptions) (*model.Image, error) {
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
	if layer != nil {
		done, diff, err := s.addLayer(ctx, layer, oci.Chain(below))
		if err != nil {
			return nil, err
		}
		defer done()
		below = append(below, diff)
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
	img.History = append(append([]v1.History(nil), img.History...), v1.History{Created: &now, CreatedBy: o.createdBy, Author: img.Author, Comment: o.comment, EmptyLayer: layer == nil})
	b, err := encode(img)
	if err != nil {
		return nil, err
	}
	id, err := s.add(b, record{Parent: o.parent})
	if err != nil {
		return nil, err
	}
	failpoint.Hit("image.config")
	shown := id.String()
	if name != nil {
		if err := s.setRef(name, id); err != nil {
			return nil, fmt.Errorf("tag %s: %w", id, err)
		}
		shown = oci.Familiar(name)
	}
	failpoint.Hit("image.named")
	s.o.Event(o.event, id, shown)
	return s.Get(ctx, id.String())
}

// addLayer applies a layer and keeps it until done runs.
func (s *Store) addLayer(ctx context.Context, r io.Reader, parent digest.Digest) (done func(), diff digest.Digest, err error) {
	g, err := s.o.Layers.Stage(ctx, r)
	if err != nil {
		return nil, "", err
	}
	failpoint.Hit("image.staged")
	diff = g.DiffID()
	done = s.lease([]digest.Digest{oci.ChainID(parent, diff)})
	if _, err := s.o.Layers.Commit(ctx, parent, []model.StagedLayer{g}); err != nil {
		done()
		return nil, "", err
	}
	return done, diff, nil
}
