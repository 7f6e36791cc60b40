package archive

import (
	"errors"
	"hash/crc32"
	"io"
)

// A gunzip reads gzip data (RFC 1952) of one or several members. Zeros behind
// the last one are padding, as of tapes; anything else is an error.
type gunzip struct {
	z   *inflater
	crc uint32
	n   uint32 // bytes of the member, modulo 2^32
	err error
	// between is behind a member's end, before what may be the next one.
	between bool
}

var (
	errGzipHeader = errors.New("invalid header")
	errGzipSum    = errors.New("invalid checksum")
)

// newGunzip reads the header; r may be read further than the data go.
func newGunzip(r io.Reader) (*gunzip, error) {
	g := &gunzip{z: newInflater(r)}
	if err := g.header(true); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return g, nil
}

// header reads a member's header. io.EOF when there is none behind the last.
func (g *gunzip) header(first bool) error {
	var h [10]byte
	for i := range h {
		b, err := g.z.byte()
		if err != nil && i == 0 && !first && err == io.ErrUnexpectedEOF {
			return io.EOF
		}
		if err != nil {
			return err
		}
		if i == 0 && !first && b == 0 {
			return g.padding()
		}
		h[i] = b
	}
	if h[0] != 0x1f || h[1] != 0x8b || h[2] != 8 || h[3]&0xe0 != 0 {
		return errGzipHeader
	}
	if h[3]&4 != 0 { // extra
		n, err := g.z.take(16)
		if err != nil {
			return err
		}
		for range n {
			if _, err := g.z.byte(); err != nil {
				return err
			}
		}
	}
	for _, flag := range []byte{8, 16} { // name, comment
		for b := h[3] & flag; b != 0; {
			var err error
			if b, err = g.z.byte(); err != nil {
				return err
			}
		}
	}
	if h[3]&2 != 0 { // the header's own sum, which nobody writes
		if _, err := g.z.take(16); err != nil {
			return err
		}
	}
	g.crc, g.n = 0, 0
	g.z.reset()
	return nil
}

func (g *gunzip) padding() error {
	for {
		b, err := g.z.byte()
		if err == io.ErrUnexpectedEOF {
			return io.EOF
		}
		if err != nil {
			return err
		}
		if b != 0 {
			return errGzipHeader
		}
	}
}

func (g *gunzip) Read(p []byte) (int, error) {
	z := g.z
	for z.rp == z.op && g.err == nil {
		if g.between {
			g.between = false
			g.err = g.header(false)
			continue
		}
		g.err = z.decode()
		g.crc = crc32.Update(g.crc, crc32.IEEETable, z.out[z.rp:z.op])
		g.n += uint32(z.op - z.rp)
		if g.err == io.EOF {
			g.err = g.trailer()
			g.between = true
		}
	}
	if z.rp == z.op {
		return 0, g.err
	}
	n := copy(p, z.out[z.rp:z.op])
	z.rp += n
	return n, nil
}

func (g *gunzip) trailer() error {
	z := g.z
	z.nb, z.hold = z.nb&^7, z.hold>>(z.nb&7)
	sum, err := z.take(32)
	if err != nil {
		return err
	}
	size, err := z.take(32)
	if err != nil {
		return err
	}
	if sum != g.crc || size != g.n {
		return errGzipSum
	}
	return nil
}

// Close frees nothing: it is there for who closes what it decompresses with.
func (g *gunzip) Close() error { return nil }
