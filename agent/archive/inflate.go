package archive

import (
	"encoding/binary"
	"errors"
	"io"
)

// An inflater reads raw deflate data (RFC 1951). It is there because pulling
// images is bound by it: it keeps 64 bits of input at hand, looks symbols up
// with their extra bits in one table, and writes into one large buffer, which
// takes about half the time of a general reader.
type inflater struct {
	src io.Reader
	err error // of src; io.EOF at its end

	in   []byte // what was read and not yet used is in[ip:]
	ip   int
	real int // end of what came from src; behind it are zeros at src's end
	hold uint64
	nb   uint // bits in hold

	out   []byte
	op    int // end of what is decoded
	rp    int // beginning of what is not handed out
	base  int // where this stream began: nothing before it is a reference's
	final bool
	mode  int
	left  int // bytes of a stored block

	lit  [1<<litBits + 144*16]uint32
	dist [1<<distBits + 16*128]uint32
}

// What the inflater is about to read.
const (
	modeHead = iota
	modeStored
	modeCodes
	modeEnd
)

const (
	litBits, distBits = 11, 8
	window            = 32 << 10
	outRoom           = 256 << 10
	outSlack          = 64 + 258 + 8 // what one step writes at most
	inRoom            = 128 << 10
	inSlack           = 16 // what one step reads at most
	inPad             = 64
)

// Entries of the tables: bits to drop, with extra bits, in bits 0-7; bits of
// the code alone in 8-11; a base value from bit 16.
const (
	entLiteral = 1 << 31
	entSpecial = 1 << 15 // a subtable, the block's end, or no code at all
	entSub     = 1 << 14
	entEnd     = 1 << 13
)

var errDeflate = errors.New("deflate data is corrupt")

func newInflater(src io.Reader) *inflater {
	return &inflater{src: src, in: make([]byte, 0, inRoom+inPad), out: make([]byte, window+outRoom+outSlack)}
}

// more makes sure that a step's input is there: zeros behind the end.
func (z *inflater) more() error {
	for len(z.in)-z.ip < inSlack*2 {
		if z.err != nil {
			if z.err != io.EOF {
				return z.err
			}
			if len(z.in) > z.real { // padded already
				if len(z.in)-z.ip < inSlack {
					return io.ErrUnexpectedEOF
				}
				return nil
			}
			n := z.compact()
			z.real, z.in = n, z.in[:n+inPad]
			clear(z.in[n:])
			return nil
		}
		n := z.compact()
		m, err := z.src.Read(z.in[n:inRoom])
		z.in, z.real, z.err = z.in[:n+m], n+m, err
	}
	return nil
}

// compact moves what is not used to the buffer's beginning, also what is in
// hold, which may have to be given back.
func (z *inflater) compact() int {
	z.ip -= int(z.nb >> 3)
	z.nb &= 7
	z.hold &= 1<<z.nb - 1
	n := copy(z.in[:cap(z.in)], z.in[z.ip:])
	z.ip = 0
	return n
}

// overrun tells whether zeros behind the end were used.
func (z *inflater) overrun() bool { return z.ip-int(z.nb>>3) > z.real }

// take reads n bits, at most 32.
func (z *inflater) take(n uint) (uint32, error) {
	if z.nb < n {
		if err := z.more(); err != nil {
			return 0, err
		}
		z.refill()
	}
	v := uint32(z.hold & (1<<n - 1))
	z.hold >>= n
	z.nb -= n
	if z.overrun() {
		return 0, io.ErrUnexpectedEOF
	}
	return v, nil
}

// refill has 56 bits or more in hold; the bits above nb are the next byte's
// beginning, and or-ed in once more next time.
func (z *inflater) refill() {
	z.hold |= binary.LittleEndian.Uint64(z.in[z.ip:]) << z.nb
	z.ip += int(63-z.nb) >> 3
	z.nb |= 56
}

// align drops what is left of the current byte and gives back what is held.
func (z *inflater) align() {
	z.ip -= int(z.nb >> 3)
	z.hold, z.nb = 0, 0
}

// byte reads one byte between streams.
func (z *inflater) byte() (byte, error) {
	v, err := z.take(8)
	return byte(v), err
}

// reset begins another stream in the same input.
func (z *inflater) reset() {
	z.final, z.mode, z.base = false, modeHead, z.op
}

// decode fills the buffer. At the stream's end it returns io.EOF.
func (z *inflater) decode() error {
	if z.op > window+outRoom/2 { // all of it is handed out
		shift := z.op - window
		copy(z.out, z.out[shift:z.op])
		z.op, z.rp, z.base = window, window, max(0, z.base-shift)
	}
	for z.op == z.rp || z.op <= window+outRoom/2 {
		var err error
		switch z.mode {
		case modeHead:
			err = z.head()
		case modeStored:
			err = z.stored()
		case modeCodes:
			err = z.codes()
		case modeEnd:
			return io.EOF
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (z *inflater) head() error {
	if z.final {
		z.mode = modeEnd
		return nil
	}
	v, err := z.take(3)
	if err != nil {
		return err
	}
	z.final = v&1 != 0
	switch v >> 1 {
	case 0:
		z.nb -= z.nb & 7 // with hold's low bits: align drops both
		z.align()
		n, err := z.take(32)
		if err != nil {
			return err
		}
		if n&0xffff != ^n>>16 {
			return errDeflate
		}
		z.align()
		z.left, z.mode = int(n&0xffff), modeStored
		return nil
	case 1:
		z.mode = modeCodes
		return z.fixed()
	case 2:
		z.mode = modeCodes
		return z.dynamic()
	}
	return errDeflate
}

func (z *inflater) stored() error {
	for z.left > 0 && z.op < window+outRoom {
		if z.ip >= z.real {
			if err := z.more(); err != nil {
				return err
			}
			if z.ip >= z.real {
				return io.ErrUnexpectedEOF
			}
		}
		n := min(z.left, z.real-z.ip, window+outRoom-z.op)
		copy(z.out[z.op:], z.in[z.ip:z.ip+n])
		z.ip, z.op, z.left = z.ip+n, z.op+n, z.left-n
	}
	if z.left == 0 {
		z.mode = modeHead
	}
	return nil
}

// codes decodes until the block ends or the buffer is full.
func (z *inflater) codes() error {
	for z.op < window+outRoom {
		if err := z.more(); err != nil {
			return err
		}
		end, err := z.run()
		if err != nil {
			return err
		}
		if z.overrun() {
			return io.ErrUnexpectedEOF
		}
		if end {
			z.mode = modeHead
			return nil
		}
	}
	return nil
}

// run is the inner loop: as long as a step's input is there and room for its
// output. end is the end of the block.
func (z *inflater) run() (end bool, err error) {
	in, ip, hold, nb := z.in, z.ip, z.hold, z.nb
	out, op, lit, dist := z.out, z.op, &z.lit, &z.dist
	for limit := len(in) - inSlack; ip <= limit && op < window+outRoom; {
		hold, ip, nb = refilled(hold, nb, in, ip)
		e := lit[hold&(1<<litBits-1)]
		if e >= entLiteral {
			for e >= entLiteral && nb >= 2*litBits { // the next look-up needs as many again
				hold >>= e & 63
				nb -= uint(e & 63)
				out[op] = byte(e >> 16)
				op++
				e = lit[hold&(1<<litBits-1)]
			}
			hold, ip, nb = refilled(hold, nb, in, ip)
		}
		if e&entSpecial != 0 {
			if e&entSub != 0 {
				hold >>= litBits
				nb -= litBits
				e = lit[e>>16+uint32(hold)&(1<<(e>>8&15)-1)]
			}
			if e&entSpecial != 0 && e&entEnd == 0 {
				return false, errDeflate
			}
		}
		extra := uint32(hold) & (1<<(e&31) - 1) >> (e >> 8 & 15)
		hold >>= e & 63
		nb -= uint(e & 63)
		if e >= entLiteral {
			out[op] = byte(e >> 16)
			op++
			continue
		}
		if end = e&entEnd != 0; end {
			break
		}
		to := op + int(e>>16+extra)
		e = dist[hold&(1<<distBits-1)]
		if e&entSub != 0 {
			hold >>= distBits
			nb -= distBits
			e = dist[e>>16+uint32(hold)&(1<<(e>>8&15)-1)]
		}
		d := int(e>>16 + uint32(hold)&(1<<(e&31)-1)>>(e>>8&15))
		if e&entSpecial != 0 || d > op-z.base {
			return false, errDeflate
		}
		hold >>= e & 63
		nb -= uint(e & 63)
		if d < 8 {
			overlap(out, op, d, to)
		} else {
			byEight(out, op, d, to)
		}
		op = to
	}
	z.ip, z.hold, z.nb, z.op = ip, hold, nb, op
	return end, nil
}

// refilled is refill for the inner loop, whose variables are in registers.
func refilled(hold uint64, nb uint, in []byte, ip int) (uint64, int, uint) {
	return hold | binary.LittleEndian.Uint64(in[ip:])<<(nb&63), ip + int(63-nb)>>3, nb | 56
}

// byEight repeats the last d bytes before op, which are eight or more, up to
// to and past it: there is room.
func byEight(out []byte, op, d, to int) {
	for from := op - d; op < to; op, from = op+8, from+8 {
		binary.LittleEndian.PutUint64(out[op:], binary.LittleEndian.Uint64(out[from:]))
	}
}

// overlap repeats the last d bytes before op up to to.
func overlap(out []byte, op, d, to int) {
	if d == 1 {
		c := out[op-1]
		for b := out[op:to]; len(b) > 0; b = b[1:] {
			b[0] = c
		}
		return
	}
	for ; op < to; op++ {
		out[op] = out[op-d]
	}
}
