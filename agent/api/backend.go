package api

import (
	"context"
	"io"
	"time"

	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"machine/agent/container"
	"machine/agent/model"
)

// Backend is the engine as the API sees it, a small interface for each
// concern.
type Backend struct {
	Create   Creator
	Life     Life
	Info     Inspector
	Streams  Streamer
	Files    Files
	Execs    Execs
	Images   Images
	Registry Registry
	Networks Networks
	Volumes  Volumes
	Events   Events
	System   System
}

// Creator makes and removes containers.
type Creator interface {
	Create(ctx context.Context, name, platform string, req *apicontainer.CreateRequest) (apicontainer.CreateResponse, error)
	Remove(ctx context.Context, ref string, o container.RemoveOptions) error
	Prune(ctx context.Context, f model.Filters) (*apicontainer.PruneReport, error)
	Rename(ctx context.Context, ref, name string) error
	Update(ctx context.Context, ref string, res apicontainer.Resources, policy apicontainer.RestartPolicy) ([]string, error)
}

// Life moves containers from state to state.
type Life interface {
	Start(ctx context.Context, ref string) error
	Stop(ctx context.Context, ref string, o container.StopOptions) error
	Restart(ctx context.Context, ref string, o container.StopOptions) error
	Kill(ctx context.Context, ref, signal string) error
	Pause(ctx context.Context, ref string) error
	Unpause(ctx context.Context, ref string) error
}

// Inspector tells of containers.
type Inspector interface {
	List(ctx context.Context, o container.ListOptions) ([]*apicontainer.Summary, error)
	Inspect(ctx context.Context, ref string, size bool) (*apicontainer.InspectResponse, error)
	Wait(ref string, cond apicontainer.WaitCondition) (<-chan apicontainer.WaitResponse, func(), error)
	Stats(ctx context.Context, ref string) (*container.Sample, error)
	Top(ref string) ([]int, error)
	Changes(ctx context.Context, ref string) ([]model.Change, error)
}

// Streamer connects clients to containers' output and input.
type Streamer interface {
	Attach(ref string, o model.AttachOptions) (*container.Attach, error)
	Logs(ctx context.Context, ref string, o model.LogOptions, f func(*model.LogRecord) error) error
	LogInfo(ref string) (tty bool, err error)
	Resize(ref string, h, w uint) error
}

// Files moves archives in and out of containers.
type Files interface {
	StatPath(ctx context.Context, ref, path string) (model.PathStat, error)
	Archive(ctx context.Context, ref, path string, begin func(model.PathStat) io.Writer) error
	Extract(ctx context.Context, ref, path string, r io.Reader, noOverwriteDirNonDir, copyUIDGID bool) error
	Export(ctx context.Context, ref string, w io.Writer) error
}

// Execs runs further processes in containers.
type Execs interface {
	ExecCreate(ref string, req apicontainer.ExecCreateRequest) (string, error)
	ExecStart(ctx context.Context, id string, size *[2]uint, detach bool) (*container.ExecSession, error)
	ExecInspect(id string) (*apicontainer.ExecInspectResponse, error)
	ExecResize(id string, h, w uint) error
	ExecTTY(id string) (bool, error)
}

// Networks are the engine's networks.
type Networks interface {
	List(ctx context.Context, f model.Filters) ([]network.Inspect, error)
	Inspect(ctx context.Context, ref string) (network.Inspect, error)
	Create(ctx context.Context, req network.CreateRequest) (network.CreateResponse, error)
	Remove(ctx context.Context, ref string) error
	Prune(ctx context.Context, f model.Filters) ([]string, error)
	Connector
}

// Connector attaches containers to networks.
type Connector interface {
	Connect(ctx context.Context, network, container string, cfg *network.EndpointSettings) error
	Disconnect(ctx context.Context, network, container string, force bool) error
}

// Volumes are the engine's volumes.
type Volumes interface {
	List(ctx context.Context, f model.Filters) ([]volume.Volume, error)
	Inspect(ctx context.Context, name string) (*volume.Volume, error)
	Create(ctx context.Context, req volume.CreateRequest) (*volume.Volume, error)
	Remove(ctx context.Context, name string, force bool) error
	Prune(ctx context.Context, f model.Filters) ([]string, uint64, error)
	Usage(ctx context.Context) ([]volume.Volume, error)
}

// Events is the engine's feed.
type Events interface {
	Subscribe(ctx context.Context, since time.Time) ([]events.Message, <-chan events.Message)
}

// System describes the engine.
type System interface {
	Info(ctx context.Context) *system.Info
	Version() *system.VersionResponse
}
