// Package wire is the compact form in which the agent, the shim and the
// set-up stages of a container hand each other their orders. It imports next
// to nothing, since it is linked into the shim.
//
// Every number is fixed-width little-endian, every string and list carries a
// 32-bit length that is checked against the bytes that are there, so that no
// length can reach beyond the message (an overflow there once let container
// settings rewrite the set-up of the container).
package wire

import (
	"encoding/binary"
	"errors"
)

// ErrShort says that a message is malformed: a length points beyond it, or
// bytes are left over.
var ErrShort = errors.New("wire: malformed message")

// A Codec either appends values to a message or takes them from one. The same
// method lists a structure's fields in both directions, so that the two cannot
// disagree.
type Codec struct {
	buf    []byte
	decode bool
	bad    bool
}

// Marshal returns v's message.
func Marshal(v interface{ Code(*Codec) }) []byte {
	c := Codec{buf: make([]byte, 0, 4096)}
	v.Code(&c)
	return c.buf
}

// Unmarshal fills v from b, which must hold exactly one message. Strings are
// copies: b may be reused.
func Unmarshal(b []byte, v interface{ Code(*Codec) }) error {
	c := Codec{buf: b, decode: true}
	v.Code(&c)
	if c.bad || len(c.buf) != 0 {
		return ErrShort
	}
	return nil
}

func (c *Codec) take(n int) []byte {
	if c.bad || n < 0 || n > len(c.buf) {
		c.bad = true
		return nil
	}
	b := c.buf[:n]
	c.buf = c.buf[n:]
	return b
}

// U64 codes a 64-bit number.
func (c *Codec) U64(v *uint64) {
	if !c.decode {
		c.buf = binary.LittleEndian.AppendUint64(c.buf, *v)
		return
	}
	if b := c.take(8); b != nil {
		*v = binary.LittleEndian.Uint64(b)
	}
}

// U32 codes a 32-bit number.
func (c *Codec) U32(v *uint32) {
	if !c.decode {
		c.buf = binary.LittleEndian.AppendUint32(c.buf, *v)
		return
	}
	if b := c.take(4); b != nil {
		*v = binary.LittleEndian.Uint32(b)
	}
}

// Int codes an int, as 64 bits.
func (c *Codec) Int(v *int) {
	n := uint64(int64(*v))
	c.U64(&n)
	*v = int(int64(n))
}

// Bool codes a truth value; any byte but 0 and 1 is malformed.
func (c *Codec) Bool(v *bool) {
	if !c.decode {
		b := byte(0)
		if *v {
			b = 1
		}
		c.buf = append(c.buf, b)
		return
	}
	if b := c.take(1); b != nil {
		if b[0] > 1 {
			c.bad = true
		}
		*v = b[0] == 1
	}
}

func (c *Codec) length(n int) int {
	l := uint32(n)
	c.U32(&l)
	if c.decode && (c.bad || int64(l) > int64(len(c.buf))) {
		c.bad = true
		return 0
	}
	return int(l)
}

// Bytes codes a byte string.
func (c *Codec) Bytes(v *[]byte) {
	n := c.length(len(*v))
	if !c.decode {
		c.buf = append(c.buf, *v...)
		return
	}
	*v = nil
	if b := c.take(n); len(b) > 0 {
		*v = append([]byte(nil), b...)
	}
}

// Str codes a string. A NUL in it is malformed: the kernel would see a shorter
// string than the one that was checked.
func (c *Codec) Str(v *string) {
	n := c.length(len(*v))
	if !c.decode {
		c.buf = append(c.buf, *v...)
		return
	}
	b := c.take(n)
	for _, ch := range b {
		if ch == 0 {
			c.bad = true
		}
	}
	*v = string(b)
}

// List codes a list, element by element. An element takes at least one byte,
// so a length cannot make the reader allocate more than the message's size
// times the element's.
func List[T any](c *Codec, v *[]T, f func(*Codec, *T)) {
	n := c.length(len(*v))
	if c.decode {
		*v = nil
		if n == 0 || c.bad {
			return
		}
		*v = make([]T, 0, min(n, 1024))
		for i := 0; i < n && !c.bad; i++ {
			var e T
			f(c, &e)
			*v = append(*v, e)
		}
		return
	}
	for i := range *v {
		f(c, &(*v)[i])
	}
}

// Strs codes a list of strings.
func (c *Codec) Strs(v *[]string) { List(c, v, (*Codec).Str) }
