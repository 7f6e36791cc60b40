package archive

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"

	"machine/agent/fault"
)

// An xzGuard passes an xz file on and refuses blocks whose dictionary is over
// the bound: the decoder allocates whatever a block's header asks for, and
// any block of a file may ask (the .xz file format, 1.2.1, sections 2-4).
type xzGuard struct {
	br    *bufio.Reader
	out   []byte // parsed, to be passed on
	buf   []byte
	next  func() error
	check int // bytes of each block's check
	data  int // bytes of the current block's compressed data, modulo 4
	err   error
}

func newXZGuard(br *bufio.Reader) *xzGuard {
	g := &xzGuard{br: br}
	g.next = g.header
	return g
}

func (g *xzGuard) Read(p []byte) (int, error) {
	for len(g.out) == 0 {
		if g.err != nil {
			return 0, g.err
		}
		g.buf = g.buf[:0]
		g.err = g.next()
		g.out = g.buf
	}
	n := copy(p, g.out)
	g.out = g.out[n:]
	return n, nil
}

// take passes n bytes on and returns them.
func (g *xzGuard) take(n int) ([]byte, error) {
	at := len(g.buf)
	g.buf = append(g.buf, make([]byte, n)...)
	m, err := io.ReadFull(g.br, g.buf[at:])
	g.buf = g.buf[:at+m]
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return g.buf[at:], err
}

func (g *xzGuard) header() error {
	b, err := g.take(12)
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(b, []byte("\xfd7zXZ\x00")) {
		return fault.Invalid.Errorf("xz: not a stream header")
	}
	g.check = []int{0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64}[b[7]&15]
	g.next = g.block
	return nil
}

func (g *xzGuard) block() error {
	size, err := g.take(1)
	if err != nil {
		return err
	}
	if size[0] == 0 {
		g.next = g.index
		return nil
	}
	b, err := g.take(int(size[0])*4 + 3)
	if err != nil {
		return err
	}
	g.next, g.data = g.chunk, 0
	return xzDictionary(b)
}

// xzDictionary looks at a block's header behind its size.
func xzDictionary(b []byte) error {
	flags, rest := b[0], b[1:]
	for _, bit := range []byte{0x40, 0x80} { // optional sizes
		if flags&bit != 0 {
			_, n := binary.Uvarint(rest)
			if n <= 0 {
				return fault.Invalid.Errorf("xz: bad block header")
			}
			rest = rest[n:]
		}
	}
	if flags&3 != 0 || len(rest) < 3 || rest[0] != 0x21 || rest[1] != 1 || rest[2] > 40 {
		return fault.Invalid.Errorf("xz: unsupported filter")
	}
	bits := rest[2]
	size := (2 | uint64(bits&1)) << (bits/2 + 11)
	if size > maxWindow {
		return fault.Invalid.Errorf("xz: dictionary of %d MiB is larger than the %d MiB allowed", size>>20, maxWindow>>20)
	}
	return nil
}

// chunk is one of LZMA2's.
func (g *xzGuard) chunk() error {
	c, err := g.take(1)
	if err != nil {
		return err
	}
	head, at := 0, 0
	switch control := c[0]; {
	case control == 0:
		g.data++
		g.next = g.end
		return nil
	case control <= 2:
		head = 2
	case control >= 0xc0:
		head, at = 5, 2
	case control >= 0x80:
		head, at = 4, 2
	default:
		return fault.Invalid.Errorf("xz: bad chunk")
	}
	h, err := g.take(head)
	if err != nil {
		return err
	}
	n := int(binary.BigEndian.Uint16(h[at:])) + 1
	g.data += 1 + head + n
	g.data %= 4
	_, err = g.take(n)
	return err
}

func (g *xzGuard) end() error {
	_, err := g.take((4-g.data%4)%4 + g.check)
	g.next = g.block
	return err
}

func (g *xzGuard) index() error {
	n := 1 // the indicator
	varint := func() (v uint64, err error) {
		for shift := 0; shift < 63; shift += 7 {
			b, err := g.take(1)
			if err != nil {
				return 0, err
			}
			n++
			v |= uint64(b[0]&0x7f) << shift
			if b[0]&0x80 == 0 {
				return v, nil
			}
		}
		return 0, fault.Invalid.Errorf("xz: bad index")
	}
	count, err := varint()
	if err != nil {
		return err
	}
	if count > 1<<20 {
		return fault.Invalid.Errorf("xz: %d blocks are too many", count)
	}
	for range 2 * count {
		if _, err := varint(); err != nil {
			return err
		}
	}
	_, err = g.take((4-n%4)%4 + 4 + 12) // padding, CRC, footer
	g.next = g.padding
	return err
}

// padding is what may be between streams.
func (g *xzGuard) padding() error {
	b, err := g.br.Peek(1)
	if err != nil {
		return err
	}
	if b[0] != 0 {
		g.next = g.header
		return nil
	}
	_, err = g.take(1)
	return err
}
