package agent

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"
	"golang.org/x/net/http/httpproxy"

	"machine/agent/api"
	"machine/agent/image"
	"machine/agent/layer/overlay"
	"machine/agent/oci"
	"machine/agent/registry"
)

// imageStore is the image store with what it must know of containers.
type imageStore struct {
	*image.Store
	a *Agent
}

// containerLayers are the layers of containers.
type containerLayers struct {
	*overlay.Store
	images *image.Store
}

func (a *Agent) containerLayers() containerLayers { return containerLayers{a.layers, a.images.Store} }

// Remove removes a container's layer, and those of its image that stayed for
// it alone. Safe to repeat.
func (l containerLayers) Remove(ctx context.Context, id string) error {
	parent := l.Parent(id)
	if err := l.Store.Remove(ctx, id); err != nil {
		return err
	}
	l.images.Free(ctx, parent)
	return nil
}

// Count is the number of images.
func (s *imageStore) Count() int {
	list, err := s.List(context.Background())
	if err != nil {
		return 0
	}
	return len(list)
}

// InUse tells removals which images containers stand on.
func (s *imageStore) InUse(id digest.Digest) (image.Use, bool) {
	running, stopped := s.a.containers.UsesOfImage(string(id))
	switch {
	case len(running) > 0:
		return image.Use{Container: running[0], Running: true}, true
	case len(stopped) > 0:
		return image.Use{Container: stopped[0]}, true
	}
	return image.Use{}, false
}

func (a *Agent) imageEvent(e image.Event) {
	a.events.Publish(events.ImageEventType, events.Action(e.Action), e.Actor, e.Attributes)
}

// openRegistry makes the client that pulls and pushes.
func (a *Agent) openRegistry() (err error) {
	c := a.c
	o := registry.Options{Mirrors: c.RegistryMirrors, Insecure: c.InsecureRegistries, UserAgent: "docker/" + Version + " machine-agent", Log: a.log}
	proxy := c.proxies().ProxyFunc()
	o.Proxy = func(r *http.Request) (*url.URL, error) { return proxy(r.URL) }
	a.hub, err = registry.New(o)
	return err
}

// proxies are those of the environment, but for what the configuration names.
func (c *Config) proxies() *httpproxy.Config {
	p := httpproxy.FromEnvironment()
	p.HTTPProxy, p.HTTPSProxy, p.NoProxy = cmp.Or(c.HTTPProxy, p.HTTPProxy), cmp.Or(c.HTTPSProxy, p.HTTPSProxy), cmp.Or(c.NoProxy, p.NoProxy)
	return p
}

// exportProxies puts the configured proxies into this process's environment, as
// dockerd does: docker import of an address goes by them, too.
func (c *Config) exportProxies() {
	for name, v := range map[string]string{"HTTP_PROXY": c.HTTPProxy, "HTTPS_PROXY": c.HTTPSProxy, "NO_PROXY": c.NoProxy} {
		if v != "" {
			os.Setenv(name, v)
			os.Unsetenv(strings.ToLower(name)) // which would go before it
		}
	}
}

// masked hides the credentials in a proxy's address, as dockerd shows them.
func masked(proxy string) string {
	u, err := url.Parse(proxy)
	if err != nil || u.User == nil {
		return proxy
	}
	u.User = url.UserPassword("xxxxx", "xxxxx")
	return u.String()
}

// Extra tells the API what the image store does not know.
func (s *imageStore) Extra(id, top digest.Digest) api.ImageExtra {
	running, stopped := s.a.containers.UsesOfImage(string(id))
	return api.ImageExtra{Containers: slices.Concat(running, stopped), Driver: s.a.layers.ImageDriver(top)}
}

// RemoveImage removes an image unless a container stands on it.
func (s *imageStore) RemoveImage(ctx context.Context, ref string, force, noprune bool) ([]image.Removed, error) {
	return s.Remove(ctx, ref, image.RemoveOptions{Force: force, NoPrune: noprune, InUse: s.InUse})
}

// PruneImages removes images that no container stands on.
func (s *imageStore) PruneImages(ctx context.Context, all bool, keep func(*image.Summary) bool) ([]image.Removed, int64, error) {
	out, freed, err := s.Prune(ctx, image.PruneOptions{All: all, Keep: keep, InUse: s.InUse})
	if err == nil {
		s.a.pruned(events.ImageEventType, uint64(max(freed, 0)))
	}
	return out, freed, err
}

// CommitContainer makes an image of a container.
func (s *imageStore) CommitContainer(ctx context.Context, o api.CommitOptions) (digest.Digest, error) {
	rec, err := s.a.containers.Record(o.Container)
	if err != nil {
		return "", err
	}
	have := imageConfig(rec.Config)
	config := have
	if o.Config != nil {
		config = imageConfig(o.Config)
	}
	if err := image.ApplyChanges(&config, o.Changes); err != nil {
		return "", err
	}
	image.Inherit(&config, &have)
	if o.Pause {
		_, thaw, err := s.a.containers.Freeze(ctx, rec.ID)
		if err != nil {
			return "", err
		}
		defer thaw()
	}
	diff, err := s.a.layers.DiffContainer(ctx, rec.ID)
	if err != nil {
		return "", err
	}
	defer diff.Close()
	img, err := s.Commit(ctx, diff, image.CommitOptions{
		Ref: o.Ref, Parent: rec.ImageID, Config: config, Author: o.Author, Comment: o.Comment,
		CreatedBy: strings.Join(rec.Config.Cmd, " "), Container: rec.ID, ContainerConfig: rec.Config,
	})
	if err != nil {
		return "", err
	}
	ref := ""
	if o.Ref != "" {
		if n, err := oci.ParseRef(o.Ref); err == nil {
			ref = oci.Familiar(n)
		}
	}
	attrs := maps.Clone(rec.Config.Labels)
	if attrs == nil {
		attrs = map[string]string{}
	}
	maps.Copy(attrs, map[string]string{"comment": o.Comment, "imageID": img.ID.String(), "imageRef": ref, "name": rec.Name, "image": rec.Config.Image})
	s.a.events.Publish(events.ContainerEventType, events.ActionCommit, rec.ID, attrs)
	return img.ID, nil
}

// imageConfig is what of a container's configuration an image has.
func imageConfig(c *apicontainer.Config) dockerspec.DockerOCIImageConfig {
	out := dockerspec.DockerOCIImageConfig{}
	out.User, out.Env, out.Cmd, out.Entrypoint, out.Volumes = c.User, c.Env, c.Cmd, c.Entrypoint, c.Volumes
	out.WorkingDir, out.Labels, out.StopSignal, out.ArgsEscaped = c.WorkingDir, c.Labels, c.StopSignal, c.ArgsEscaped //nolint:staticcheck // kept as it came
	out.Healthcheck, out.OnBuild, out.Shell = c.Healthcheck, c.OnBuild, c.Shell
	for p := range c.ExposedPorts {
		if out.ExposedPorts == nil {
			out.ExposedPorts = map[string]struct{}{}
		}
		out.ExposedPorts[p.String()] = struct{}{}
	}
	return out
}
