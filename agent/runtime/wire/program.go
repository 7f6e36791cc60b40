package wire

// A Program is all that the shim and the init stage need to make a container.
// Paths are the host's unless said otherwise.
type Program struct {
	ID            string
	Dir           string // of the task
	Root          Root
	Mounts        []Mount
	Devices       []Device
	Masked        []string // in the container
	ReadonlyPaths []string // in the container
	Sysctls       []KV
	Hostname      string
	Domainname    string
	RootUID       uint32 // of the user namespace's root, on the host
	RootGID       uint32
	Clone         uint64 // CLONE_NEW* of the namespaces to make
	Join          []Join
	UIDMap        string // the text of /proc/PID/uid_map; empty without CLONE_NEWUSER
	GIDMap        string
	CgroupProcs   []string // v1: the "tasks" files; v2: cgroup.procs
	OOMFile       string   // memory.oom_control or memory.events
	Propagation   uint64   // MS_* of the container's root; 0 is private
	Init          bool
	StdinOnce     bool
	Process       Process
	Log           Log

	RootFD int // filled in by the shim for the stage
}

// Root says what the root file system is put together from.
type Root struct {
	Lower       []string
	Upper, Work string
	Readonly    bool
	// Mapped has the layers' ids taken for those of the user namespace that is
	// joined: the disk holds the container's own.
	Mapped bool
}

// The kinds of mount.
const (
	MountFS     = iota // a new instance of a file system type
	MountBind          // of Source
	MountCgroup        // the container's own view of the cgroups
)

// A Mount is one mount in a container.
type Mount struct {
	Kind        uint32
	Type        string
	Source      string
	Dest        string // in the container
	Data        []string
	Set, Clear  uint64   // MOUNT_ATTR_*
	AttrRec     bool     // attributes hold for submounts too
	Recursive   bool     // bind submounts too
	Propagation uint64   // MS_*; 0 is private
	Lower       []string // of a bind: layers to bind an overlay of, instead of Source
	Sub         string   // of Lower: the path in the overlay to bind; empty for all
	CopyUp      bool     // a tmpfs starts with what the image has there
	Cgroup      []KV     // v1: controller name to directory; v2: "" to directory

	FD  int   // the detached mount of a bind, filled in by the shim
	FDs []int // of Cgroup
}

// A Device is a device node. Type is 'c', 'b' or 'p'.
type Device struct {
	Path         string
	Type         uint32
	Major, Minor uint32
	Mode         uint32
	UID, GID     uint32

	FD int // in a user namespace: the host's node, to be bound
}

// Kind is the type as in stat's st_mode (inode(7)).
func (d *Device) Kind() uint32 {
	switch d.Type {
	case 'b':
		return 0o060000
	case 'p':
		return 0o010000
	}
	return 0o020000
}

// KV is a name and a value.
type KV struct{ Key, Value string }

// A Join is a namespace to enter: CLONE_NEW* and the path of its file.
type Join struct {
	Type uint64
	Path string
}

// A Rlimit is one resource limit.
type Rlimit struct {
	Resource   uint32
	Soft, Hard uint64
}

// A Process is one program to run.
type Process struct {
	Args, Env    []string
	Cwd          string
	User         string
	Groups       []string
	TTY, Stdin   bool
	Rows, Cols   uint32
	Caps         uint64
	NoNewPrivs   bool
	Rlimits      []Rlimit
	AppArmor     string
	HasOOM       bool
	OOMScoreAdj  int
	HasUmask     bool
	Umask        uint32
	Seccomp      []byte // struct sock_filter[], empty for none
	SeccompFlags uint32
	UserNS       bool // runs in a user namespace of its own
	ExecInit     bool // run under the minimal init

	// Tasks are the files of the container's cgroups to write 0 to, by
	// descriptor; filled in by the shim.
	Tasks []int
}

// Log says how output is recorded.
type Log struct {
	Driver   string
	Path     string
	MaxSize  uint64
	MaxFiles uint32
	Compress bool
	Attrs    []byte
}

// Code lists the fields.
func (p *Program) Code(c *Codec) {
	c.Str(&p.ID)
	c.Str(&p.Dir)
	c.Strs(&p.Root.Lower)
	c.Str(&p.Root.Upper)
	c.Str(&p.Root.Work)
	c.Bool(&p.Root.Readonly)
	c.Bool(&p.Root.Mapped)
	List(c, &p.Mounts, codeMount)
	List(c, &p.Devices, codeDevice)
	c.Strs(&p.Masked)
	c.Strs(&p.ReadonlyPaths)
	List(c, &p.Sysctls, codeKV)
	c.Str(&p.Hostname)
	c.Str(&p.Domainname)
	c.U32(&p.RootUID)
	c.U32(&p.RootGID)
	c.U64(&p.Clone)
	List(c, &p.Join, func(c *Codec, j *Join) { c.U64(&j.Type); c.Str(&j.Path) })
	c.Str(&p.UIDMap)
	c.Str(&p.GIDMap)
	c.Strs(&p.CgroupProcs)
	c.Str(&p.OOMFile)
	c.U64(&p.Propagation)
	c.Bool(&p.Init)
	c.Bool(&p.StdinOnce)
	p.Process.Code(c)
	p.Log.Code(c)
	c.Int(&p.RootFD)
}

func codeKV(c *Codec, kv *KV) { c.Str(&kv.Key); c.Str(&kv.Value) }

func codeMount(c *Codec, m *Mount) {
	c.U32(&m.Kind)
	c.Str(&m.Type)
	c.Str(&m.Source)
	c.Str(&m.Dest)
	c.Strs(&m.Data)
	c.U64(&m.Set)
	c.U64(&m.Clear)
	c.Bool(&m.AttrRec)
	c.Bool(&m.Recursive)
	c.U64(&m.Propagation)
	c.Strs(&m.Lower)
	c.Str(&m.Sub)
	c.Bool(&m.CopyUp)
	List(c, &m.Cgroup, codeKV)
	c.Int(&m.FD)
	List(c, &m.FDs, (*Codec).Int)
}

func codeDevice(c *Codec, d *Device) {
	c.Str(&d.Path)
	c.U32(&d.Type)
	c.U32(&d.Major)
	c.U32(&d.Minor)
	c.U32(&d.Mode)
	c.U32(&d.UID)
	c.U32(&d.GID)
	c.Int(&d.FD)
}

// Code lists the fields.
func (p *Process) Code(c *Codec) {
	c.Strs(&p.Args)
	c.Strs(&p.Env)
	c.Str(&p.Cwd)
	c.Str(&p.User)
	c.Strs(&p.Groups)
	c.Bool(&p.TTY)
	c.Bool(&p.Stdin)
	c.U32(&p.Rows)
	c.U32(&p.Cols)
	c.U64(&p.Caps)
	c.Bool(&p.NoNewPrivs)
	List(c, &p.Rlimits, func(c *Codec, r *Rlimit) { c.U32(&r.Resource); c.U64(&r.Soft); c.U64(&r.Hard) })
	c.Str(&p.AppArmor)
	c.Bool(&p.HasOOM)
	c.Int(&p.OOMScoreAdj)
	c.Bool(&p.HasUmask)
	c.U32(&p.Umask)
	c.Bytes(&p.Seccomp)
	c.U32(&p.SeccompFlags)
	c.Bool(&p.UserNS)
	c.Bool(&p.ExecInit)
	List(c, &p.Tasks, (*Codec).Int)
}

// Code lists the fields.
func (l *Log) Code(c *Codec) {
	c.Str(&l.Driver)
	c.Str(&l.Path)
	c.U64(&l.MaxSize)
	c.U32(&l.MaxFiles)
	c.Bool(&l.Compress)
	c.Bytes(&l.Attrs)
}
