package seccomp

import (
	"hash/maphash"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// A Cache remembers what profiles compiled to: nearly all containers of a host
// share one, and compiling it costs a millisecond. Its zero value is ready; it
// may be used by several goroutines.
type Cache struct {
	mu      sync.Mutex
	seed    maphash.Seed
	entries map[[2]uint64]entry
}

type entry struct {
	filter []byte
	flags  uint32
}

const cacheSize = 32

// Compile is [Compile], remembered. The caller must not change the filter.
func (c *Cache) Compile(p *specs.LinuxSeccomp) ([]byte, uint32, error) {
	if p == nil {
		return nil, 0, nil
	}
	c.mu.Lock()
	if c.entries == nil {
		c.entries, c.seed = map[[2]uint64]entry{}, maphash.MakeSeed()
	}
	key := c.key(p)
	e, ok := c.entries[key]
	c.mu.Unlock()
	if ok {
		return e.filter, e.flags, nil
	}
	filter, flags, err := Compile(p)
	if err != nil {
		return nil, 0, err
	}
	c.mu.Lock()
	if len(c.entries) >= cacheSize {
		clear(c.entries)
	}
	c.entries[key] = entry{filter, flags}
	c.mu.Unlock()
	return filter, flags, nil
}

// key hashes a profile twice with different salts: 128 bits with a secret
// seed, so that no profile can be made to collide with another.
func (c *Cache) key(p *specs.LinuxSeccomp) (k [2]uint64) {
	for i := range k {
		var h maphash.Hash
		h.SetSeed(c.seed)
		h.WriteByte(byte(i))
		str := func(s string) { h.WriteString(s); h.WriteByte(0) }
		num := func(n uint64) { maphash.WriteComparable(&h, n) }
		opt := func(n *uint) {
			if n == nil {
				num(1 << 40)
			} else {
				num(uint64(*n))
			}
		}
		str(string(p.DefaultAction))
		opt(p.DefaultErrnoRet)
		str(p.ListenerPath)
		num(uint64(len(p.Architectures)))
		for _, a := range p.Architectures {
			str(string(a))
		}
		num(uint64(len(p.Flags)))
		for _, f := range p.Flags {
			str(string(f))
		}
		for j := range p.Syscalls {
			s := &p.Syscalls[j]
			num(uint64(len(s.Names)))
			for _, n := range s.Names {
				str(n)
			}
			str(string(s.Action))
			opt(s.ErrnoRet)
			num(uint64(len(s.Args)))
			for _, a := range s.Args {
				num(uint64(a.Index))
				num(a.Value)
				num(a.ValueTwo)
				str(string(a.Op))
			}
		}
		k[i] = h.Sum64()
	}
	return k
}
