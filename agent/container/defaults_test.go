package container

import (
	"testing"

	"github.com/moby/moby/api/types/container"
)

// The daemon's seccomp profile is for containers that choose none.
func TestDefaultSeccomp(t *testing.T) {
	d := Defaults{Seccomp: "unconfined"}
	for _, c := range []struct {
		opt        []string
		privileged bool
		want       string
	}{
		{nil, false, "unconfined"}, {nil, true, ""}, {[]string{"seccomp=builtin"}, false, ""}, {[]string{"seccomp={}"}, false, "{}"},
	} {
		o, err := parseSecurity(&container.HostConfig{SecurityOpt: c.opt, Privileged: c.privileged}, d)
		if err != nil || o.seccomp != c.want {
			t.Errorf("%+v: got %q, %v", c, o.seccomp, err)
		}
	}
}

func TestDefaultModes(t *testing.T) {
	for _, c := range []struct {
		d          Defaults
		privileged bool
		want       string
	}{
		{Defaults{}, false, "private host"}, {Defaults{}, true, "private host"}, {Defaults{CgroupV2: true}, true, "private private"},
		{Defaults{IPCMode: "shareable", CgroupnsMode: "private"}, false, "shareable private"},
		{Defaults{CgroupnsMode: "private"}, true, "private host"}, {Defaults{CgroupV2: true, CgroupnsMode: "host"}, true, "private host"},
	} {
		hc := &container.HostConfig{Privileged: c.privileged}
		c.d.modes(hc)
		if got := string(hc.IpcMode) + " " + string(hc.CgroupnsMode); got != c.want {
			t.Errorf("%+v: got %q", c, got)
		}
	}
}
