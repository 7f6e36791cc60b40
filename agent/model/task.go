// Package model holds the nouns that cross packages of the engine. It does
// no I/O.
package model

import (
	"context"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Rootfs says how a container's root file system is put together: an overlay
// of directories. The paths are the host's; they are opened by the agent and
// handed on as descriptors.
type Rootfs struct {
	Lower    []string // topmost first; never empty
	Upper    string   // empty: the overlay has no writable layer
	Work     string
	Mapped   bool // the layers hold the ids that the user namespace shows; it must be one to join
	Readonly bool // the root is remounted read-only after set-up
}

// A Process is one program to run in a container.
type Process struct {
	Args []string
	Env  []string // NAME=value; HOME is added from the user's entry when absent
	Cwd  string   // created when absent, as Docker does
	// User is Docker's form: "", "name", "uid", "user:group". Names are looked
	// up in the container's own /etc/passwd and /etc/group, by the process
	// itself, inside the container.
	User            string
	Groups          []string // supplementary groups to add, names or numbers
	TTY             bool
	OpenStdin       bool     // keep a stdin to attach to; else /dev/null
	ConsoleSize     [2]uint  // height, width; zero is unset
	Caps            []string // "CAP_CHOWN"; bounding, permitted and effective sets
	NoNewPrivileges bool
	Rlimits         []specs.POSIXRlimit
	AppArmorProfile string
	OOMScoreAdj     *int
	Umask           *uint32
	NoSeccomp       bool // exec of a privileged process: the container's filter is not applied
	Detached        bool // of an exec: nobody will attach, its output is dropped
}

// LogConfig says how a task's output is recorded by its shim.
type LogConfig struct {
	Driver   string // "json-file", "local", "none"
	Path     string // the file; rotated ones get .1 .2 ...
	MaxSize  int64  // bytes; 0 is unlimited
	MaxFiles int    // at least 1
	Compress bool   // rotated files are gzipped
	// Attrs are written with each json-file record (labels, env, tag): JSON
	// object, or nil.
	Attrs []byte
}

// A Bundle is all that the runtime needs to know of one container.
type Bundle struct {
	ID      string
	Dir     string // the task's own directory, made by the caller's Create, 0700
	Rootfs  Rootfs
	Images  map[string]Rootfs // what is mounted at these destinations of Spec.Mounts; their source is a path in it
	Process Process
	Spec    *specs.Spec // Hostname, Domainname, Mounts, Linux.*; Process and Root are ignored
	// NetNS is the path of the network namespace to join; empty makes a new,
	// empty one; "host" stays in the agent's.
	NetNS     string
	Init      bool // run a minimal init as PID 1 (docker run --init)
	StdinOnce bool // close stdin when the first attached client that had it goes away
	Log       LogConfig
}

// ExitStatus is how a process ended.
type ExitStatus struct {
	Code      int // 0-255; 128+n after signal n
	At        time.Time
	OOMKilled bool
	Err       string // why the process never ran; empty otherwise
}

// AttachOptions choose the streams of an attach.
type AttachOptions struct {
	Stdin          bool
	Stdout, Stderr bool
}

// Streams is one client's view of a process's stdio. Reads of the two outputs
// end with io.EOF after the process has ended and all its output was read.
// With a TTY all output is on Stdout and Stderr is nil.
type Streams struct {
	Stdin  io.WriteCloser // nil unless asked for; Close is half-close: the process reads EOF
	Stdout io.Reader
	Stderr io.Reader
	Close  func() error // detaches; never ends the process (but for StdinOnce)
}

// An ExecProcess is an additional process in a container.
type ExecProcess interface {
	Pid() int                  // in the agent's PID namespace
	Attach() (*Streams, error) // once; the streams were connected before the process started
	Wait(ctx context.Context) (ExitStatus, error)
	Resize(h, w uint) error
	Kill(sig syscall.Signal) error
	// Release forgets the process. Safe to repeat.
	Release() error
}

// A Task is one container's processes, held by its shim. A Task that Load
// returned is as good as one that Create returned.
type Task interface {
	Pid() int // of the container's init, in the agent's PID namespace
	// Start lets the created init run the program. Its error carries the
	// message that Docker clients map to exit codes ("executable file not
	// found in $PATH", "permission denied", "no such file or directory").
	Start(ctx context.Context) error
	// Created tells of a task that Load found: its program was never started.
	Created() bool
	Kill(sig syscall.Signal) error
	Done() <-chan struct{} // closed when Exit can be read
	Exit() ExitStatus
	OOM() <-chan struct{} // has a value when the kernel has killed something in it for memory
	Attach(o AttachOptions) (*Streams, error)
	Resize(h, w uint) error
	Exec(ctx context.Context, p Process) (ExecProcess, error)
	Pause() error
	Resume() error
	Update(r *specs.LinuxResources) error
	Stats() (*Stats, error)
	Pids() ([]int, error)
	// Root opens the container's root directory; the caller closes it and
	// resolves everything under it with RESOLVE_IN_ROOT.
	Root() (*os.File, error)
	// BareRoot opens the root directory as Root does, for reading, without
	// what is mounted in it.
	BareRoot() (*os.File, error)
	// Delete frees all that belongs to an ended task: cgroup, shim, sockets,
	// exit record. A running one is killed first. Safe to repeat.
	Delete(ctx context.Context) error
}

// Stats is a sample of a container's resource use. Times are nanoseconds,
// sizes bytes.
type Stats struct {
	At                                time.Time
	CPUTotal, CPUUser, CPUSystem      uint64
	PerCPU                            []uint64
	Periods, Throttled, ThrottledTime uint64
	MemUsage, MemMaxUsage, MemLimit   uint64
	MemFailcnt                        uint64
	MemStats                          map[string]uint64
	PidsCurrent, PidsLimit            uint64
	Blkio                             []BlkioEntry
	CgroupV2                          bool
}

// BlkioEntry is one line of blkio accounting; Op is "Read", "Write".
type BlkioEntry struct {
	Major, Minor uint64
	Op           string
	Bytes, Ops   uint64
}
