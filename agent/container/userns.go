package container

import (
	"github.com/moby/moby/api/types/container"

	"machine/agent/fault"
	"machine/agent/model"
)

// remap is the map of ids that a container is to run with; nil in the host's
// user namespace.
func (m *Manager) remap(hc *container.HostConfig) *model.IDMap {
	if hc.UsernsMode.IsHost() {
		return nil
	}
	return m.o.Defaults.UsernsRemap
}

// checkUserns refuses what needs the host's user namespace, in dockerd's words
// (moby/daemon/daemon_unix.go, verifyPlatformContainerSettings).
func checkUserns(remap *model.IDMap, hc *container.HostConfig) error {
	switch {
	case remap == nil:
		return nil
	case hc.Privileged:
		return fault.Invalid.Errorf("privileged mode is incompatible with user namespaces.  You must run the container in the host namespace when running privileged mode")
	case hc.NetworkMode.IsHost():
		return fault.Invalid.Errorf("cannot share the host's network namespace when user namespaces are enabled")
	case hc.PidMode.IsHost():
		return fault.Invalid.Errorf("cannot share the host PID namespace when user namespaces are enabled")
	}
	return nil
}

// rootIDs are the host's ids of the container's root.
func (r *Record) rootIDs() (uid, gid int) {
	if r.Remap == nil {
		return 0, 0
	}
	return int(r.Remap.UID), int(r.Remap.GID)
}
