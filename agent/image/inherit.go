package image

import (
	"slices"
	"strings"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
)

// Inherit completes a configuration with another one's, as docker commit does
// with the container's: what c sets stays, lists and maps are joined. c's maps
// are changed: they must be its own, as after ApplyChanges.
func Inherit(c, have *dockerspec.DockerOCIImageConfig) {
	first(&c.User, have.User)
	first(&c.WorkingDir, have.WorkingDir)
	first(&c.StopSignal, have.StopSignal)
	for _, e := range have.Env {
		k, _, _ := strings.Cut(e, "=")
		if !slices.ContainsFunc(c.Env, func(o string) bool { return strings.HasPrefix(o, k+"=") || o == k }) {
			c.Env = append(c.Env, e)
		}
	}
	join(&c.ExposedPorts, have.ExposedPorts)
	join(&c.Volumes, have.Volumes)
	join(&c.Labels, have.Labels)
	if len(c.Entrypoint) == 0 {
		if len(c.Cmd) == 0 {
			c.Cmd = have.Cmd
		}
		if c.Entrypoint == nil {
			c.Entrypoint = have.Entrypoint
		}
	}
	inheritHealth(c, have.Healthcheck)
}

func inheritHealth(c *dockerspec.DockerOCIImageConfig, have *dockerspec.HealthcheckConfig) {
	if have == nil {
		return
	}
	if c.Healthcheck == nil {
		c.Healthcheck = have
		return
	}
	h := *c.Healthcheck
	if len(h.Test) == 0 {
		h.Test = have.Test
	}
	first(&h.Interval, have.Interval)
	first(&h.Timeout, have.Timeout)
	first(&h.StartPeriod, have.StartPeriod)
	first(&h.StartInterval, have.StartInterval)
	first(&h.Retries, have.Retries)
	c.Healthcheck = &h
}

func first[T comparable](v *T, otherwise T) {
	var zero T
	if *v == zero {
		*v = otherwise
	}
}

func join[V any](to *map[string]V, have map[string]V) {
	for k, v := range have {
		if _, ok := (*to)[k]; ok {
			continue
		}
		if *to == nil {
			*to = map[string]V{}
		}
		(*to)[k] = v
	}
}
