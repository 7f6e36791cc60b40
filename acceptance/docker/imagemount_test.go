package docker

import (
	"testing"

	"machine/acceptance/engine"
)

// TestImageMount: another image's files, all or a part of them, read-only.
func TestImageMount(t *testing.T) {
	e := start(t)
	image(e, "data", "mkdir -p a/b; echo c >a/b/c; ln -s /a/b way; ln -s ../../../../etc/hostname a/out")
	mount := func(opts string, args ...string) []string {
		return append([]string{"run", "--rm", "--mount", "type=image,src=data,dst=/img" + opts, "busybox"}, args...)
	}
	engine.Equal(t, "all", e.Run(mount("", "cat", "/img/a/b/c")...), "c")
	engine.Equal(t, "a directory", e.Run(mount(",image-subpath=a/b", "ls", "/img")...), "c")
	engine.Equal(t, "a file", e.Run(mount(",image-subpath=a/b/c", "cat", "/img")...), "c")
	engine.Equal(t, "by a link in the image", e.Run(mount(",image-subpath=way", "ls", "/img")...), "c")
	for _, sub := range []string{"none", "a/out"} { // the image has no /etc/hostname
		e.Fails(127, "no such file", mount(",image-subpath="+sub, "ls", "/img")...)
	}
	e.Fails(1, "Read-only", mount(",image-subpath=a", "touch", "/img/new")...)
	e.Fails(1, "Read-only", mount("", "touch", "/img/new")...)
	e.Audit()
}
