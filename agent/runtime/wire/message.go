package wire

import "errors"

// The kinds of message on a shim's socket. The socket is SOCK_SEQPACKET: one
// message, with its descriptors, is one packet.
const (
	// From the agent.
	MsgCreate   = iota + 1 // Body: Program; descriptors: the listening socket, the file for errors
	MsgStart               //
	MsgAttach              // Proc; Flags: AttachIn...; descriptors in that order
	MsgExec                // Proc: chosen by the agent; Body: Process; Flags and descriptors as attach
	MsgResize              // Proc, A rows, B columns
	MsgHello               // answers with State
	MsgShutdown            // the container is being deleted
	MsgRotated             // Proc unused; Body: path of a gzipped copy; A: its inode of origin

	// From the shim.
	MsgReply // to the Seq; Err or empty
	MsgExit  // Proc, A code, B unix nanoseconds, Flags: ExitOOM
	MsgLog   // A: inode of a log file that was just rotated away, to be compressed
	MsgOOM   // the kernel has killed something in the container for memory
)

// The streams of an attach, and their descriptors' order.
const (
	AttachIn = 1 << iota
	AttachOut
	AttachErr
)

// ExitOOM says that the kernel killed something in the container for memory.
const ExitOOM = 1

// The states that hello answers in A.
const (
	StateCreated = iota + 1
	StateRunning
	StateExited
)

// A Message is one packet. Proc 0 is the container's init, others are execs.
type Message struct {
	Kind  uint32
	Seq   uint32
	Proc  uint32
	Flags uint32
	A, B  uint64
	Err   string
	Body  []byte
	// BodyFD says that the body did not fit into a packet: the last
	// descriptor is a memory file that holds it.
	BodyFD bool
}

// Code lists the fields.
func (m *Message) Code(c *Codec) {
	c.U32(&m.Kind)
	c.U32(&m.Seq)
	c.U32(&m.Proc)
	c.U32(&m.Flags)
	c.U64(&m.A)
	c.U64(&m.B)
	c.Str(&m.Err)
	c.Bytes(&m.Body)
	c.Bool(&m.BodyFD)
}

// MaxPacket is the size of the largest packet: bodies beyond InlineBody go by
// memory file.
const (
	MaxPacket  = 48 << 10
	InlineBody = 32 << 10
)

// An ExitRecord is what a shim leaves on disk for an agent that was away.
type ExitRecord struct {
	Status uint32 // 0-255
	At     uint64 // unix nanoseconds
	OOM    bool
	Error  string
}

// Code lists the fields.
func (e *ExitRecord) Code(c *Codec) {
	c.U32(&e.Status)
	c.U64(&e.At)
	c.Bool(&e.OOM)
	c.Str(&e.Error)
}

// The files in a task's directory.
const (
	SocketName = "shim.sock"
	ExitName   = "exit"
	MetaName   = "meta"
	ErrName    = "shim.err"
)

// Fail prefixes what was being done to an error's text.
func Fail(what string, err error) error { return errors.New(what + ": " + err.Error()) }
