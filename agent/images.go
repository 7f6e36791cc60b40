package agent

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"
	"golang.org/x/net/http/httpproxy"

	"machine/agent/api"
	"machine/agent/image"
	"machine/agent/registry"
)

// imageStore is the image store with what it must know of containers.
type imageStore struct {
	*image.Store
	a *Agent
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

func (a *Agent) imageEvent(action string, id digest.Digest, name string) {
	attrs := map[string]string{}
	if name != "" {
		attrs["name"] = name
	}
	actor := string(id)
	if action == "pull" || action == "push" {
		actor = name
	}
	a.events.Publish(events.ImageEventType, events.Action(action), actor, attrs)
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
	return s.Prune(ctx, image.PruneOptions{All: all, Keep: keep, InUse: s.InUse})
}

// CommitContainer makes an image of a container.
func (s *imageStore) CommitContainer(ctx context.Context, o api.CommitOptions) (digest.Digest, error) {
	rec, err := s.a.containers.Record(o.Container)
	if err != nil {
		return "", err
	}
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
		Ref: o.Ref, Parent: rec.ImageID, Config: imageConfig(rec.Config, o.Config), Author: o.Author, Comment: o.Comment,
		CreatedBy: strings.Join(append([]string{rec.Path}, rec.Args...), " "), Changes: o.Changes,
	})
	if err != nil {
		return "", err
	}
	s.a.events.Publish(events.ContainerEventType, events.ActionCommit, rec.ID, map[string]string{"comment": o.Comment, "imageID": img.ID.String(), "imageRef": o.Ref, "name": rec.Name, "image": rec.Config.Image})
	return img.ID, nil
}

// imageConfig is what of a container's configuration an image has; what the
// request sets comes first.
func imageConfig(have, want *apicontainer.Config) dockerspec.DockerOCIImageConfig {
	c := *have
	if want != nil {
		override(&c, want)
	}
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

func override(c, want *apicontainer.Config) {
	if want.User != "" {
		c.User = want.User
	}
	if want.WorkingDir != "" {
		c.WorkingDir = want.WorkingDir
	}
	if want.StopSignal != "" {
		c.StopSignal = want.StopSignal
	}
	if len(want.Env) > 0 {
		c.Env = slices.Concat(c.Env, want.Env)
	}
	if len(want.Cmd) > 0 {
		c.Cmd = want.Cmd
	}
	if len(want.Entrypoint) > 0 {
		c.Entrypoint = want.Entrypoint
	}
	if len(want.ExposedPorts) > 0 {
		c.ExposedPorts = want.ExposedPorts
	}
	if len(want.Volumes) > 0 {
		c.Volumes = want.Volumes
	}
	if want.Healthcheck != nil {
		c.Healthcheck = want.Healthcheck
	}
	if len(want.Labels) > 0 {
		all := maps.Clone(c.Labels)
		if all == nil {
			all = map[string]string{}
		}
		maps.Copy(all, want.Labels)
		c.Labels = all
	}
}
