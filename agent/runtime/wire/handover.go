package wire

// A Handover gives a stage that waits for one its Program. With it come, in
// this order: the memory file that holds the Program, stdin, stdout, stderr,
// the namespaces to join, and the descriptors that the Program names.
type Handover struct {
	Joins   []int // CLONE_NEW* of each namespace
	Numbers []int // what the Program calls each of the last ones
}

// MaxHandover is how many descriptors can go with one (SCM_MAX_FD, unix(7)).
const MaxHandover = 253

// Code lists the fields.
func (h *Handover) Code(c *Codec) {
	List(c, &h.Joins, (*Codec).Int)
	List(c, &h.Numbers, (*Codec).Int)
}

// Renumber replaces each descriptor that is a key of at.
func (p *Program) Renumber(at map[int]int) {
	one := func(fd *int) {
		if n, ok := at[*fd]; ok {
			*fd = n
		}
	}
	one(&p.RootFD)
	for i := range p.Mounts {
		one(&p.Mounts[i].FD)
		for j := range p.Mounts[i].FDs {
			one(&p.Mounts[i].FDs[j])
		}
	}
	for i := range p.Devices {
		one(&p.Devices[i].FD)
	}
	for i := range p.Process.Tasks {
		one(&p.Process.Tasks[i])
	}
}
