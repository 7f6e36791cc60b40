// Package container keeps containers: their records, their life from create
// to remove, restart policies, health checks, exec, logs and archives. It
// knows images, layers, networks, volumes and tasks by the small interfaces
// that it declares in deps.go.
//
// A container's truth is an immutable [Record] behind an atomic pointer:
// readers (list, inspect) never wait for an act in progress. Acts of one
// container (start, stop, remove ...) take its op lock one after the other;
// its end is handled by one goroutine per running task, the monitor, which
// takes no op lock, so that an act may wait for it.
//
//	created --start--> running --exit--> exited --start--> running
//	running --pause--> paused --unpause--> running
//	running --exit, policy--> restarting --back-off--> running
//	any     --remove--> removing --> gone
package container

import (
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/opencontainers/go-digest"

	"machine/agent/model"
)

// A Record is what is stored of a container. It is never changed in place.
type Record struct {
	ID           string
	Name         string // without the slash
	Created      time.Time
	Path         string
	Args         []string
	Config       *container.Config
	HostConfig   *container.HostConfig
	ImageID      digest.Digest
	Networks     map[string]*network.EndpointSettings // by network name: asked for, and as it is while running
	SandboxKey   string
	Remap        *model.IDMap    `json:",omitempty"` // of the run that is on: its user namespace's
	Ports        network.PortMap // published, while running
	Mounts       []Mount
	State        State
	RestartCount int
	Warnings     []string `json:",omitempty"`
}

// State is where a container is in its life.
type State struct {
	Status     container.ContainerState
	ExitCode   int
	Error      string
	OOMKilled  bool
	Pid        int
	StartedAt  time.Time
	FinishedAt time.Time
	// ManuallyStopped: by stop or kill; unless-stopped then leaves it alone
	// after a restart of the agent.
	ManuallyStopped bool
	// HasBeenStarted: ever; wait's not-running differs on it.
	HasBeenStarted bool
	Health         *container.Health `json:",omitempty"`
}

// Running as Docker counts it: a paused one runs, and so does one that waits
// for its restart.
func (s *State) Running() bool {
	switch s.Status {
	case container.StateRunning, container.StatePaused, container.StateRestarting:
		return true
	}
	return false
}

// A Mount is a mount point as it was resolved at create.
type Mount struct {
	Type        mount.Type
	Name        string // of a volume
	Source      string // host path; of a volume its data directory
	Destination string
	Driver      string
	Mode        string
	RW          bool
	Propagation mount.Propagation
	Anonymous   bool              `json:",omitempty"` // removed with the container
	NoCopy      bool              `json:",omitempty"`
	Subpath     string            `json:",omitempty"`
	TmpfsData   string            `json:",omitempty"`
	NonRec      bool              `json:",omitempty"` // bind without the mounts below it
	RONonRec    bool              `json:",omitempty"`
	ROForceRec  bool              `json:",omitempty"`
	Image       string            `json:",omitempty"` // type image: the image mounted
	Opts        map[string]string `json:",omitempty"`
}

// clone copies a record one level deep: what is behind pointers is shared
// and must be replaced, not changed.
func (r *Record) clone() *Record {
	c := *r
	return &c
}
