package archive

import "math/bits"

// Base values and extra bits of lengths and distances (RFC 1951, 3.2.5).
var (
	lengthBase  = [29]uint16{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}
	lengthExtra = [29]uint8{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}
	codeOrder   = [19]int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
)

// litEntry is the entry of a literal or length without the bits of its code.
func litEntry(sym int) uint32 {
	switch {
	case sym < 256:
		return entLiteral | uint32(sym)<<16
	case sym == 256:
		return entSpecial | entEnd
	case sym < 286:
		return uint32(lengthBase[sym-257])<<16 | uint32(lengthExtra[sym-257])
	}
	return entSpecial
}

func distEntry(sym int) uint32 {
	if sym >= 30 {
		return entSpecial
	}
	if sym < 2 {
		return uint32(sym+1) << 16
	}
	extra := sym/2 - 1
	return uint32(1+(2+sym&1)<<extra)<<16 | uint32(extra)
}

// codeEntry is for the code of code lengths.
func codeEntry(sym int) uint32 { return uint32(sym) << 16 }

// table makes a look-up table of canonical codes with these lengths. A code
// must be complete, but for one of a single symbol, or none.
func table(t []uint32, primary uint, lens []uint8, entry func(int) uint32) error {
	var count, next [16]int
	longest, used := uint(0), 0
	for _, l := range lens {
		if l > 0 {
			count[l]++
			used++
			longest = max(longest, uint(l))
		}
	}
	for i := range t[:1<<primary] {
		t[i] = entSpecial
	}
	if used == 0 {
		return nil
	}
	left, code := 1, 0
	for l := 1; l < 16; l++ {
		left = left<<1 - count[l]
		if left < 0 {
			return errDeflate
		}
		code = (code + count[l-1]) << 1
		next[l] = code
	}
	if left > 0 && (used > 1 || longest > 1) {
		return errDeflate
	}
	free := 1 << primary // of the subtables
	for sym, l := range lens {
		if l == 0 {
			continue
		}
		rev := int(bits.Reverse16(uint16(next[l])) >> (16 - l))
		next[l]++
		at, step, end, n := rev, 1<<l, 1<<primary, uint(l)
		sub := 0
		if n > primary {
			p := rev & (1<<primary - 1)
			if t[p]&entSub == 0 {
				t[p] = uint32(free)<<16 | entSpecial | entSub | uint32(longest-primary)<<8 | uint32(primary)
				for i := range 1 << (longest - primary) {
					t[free+i] = entSpecial
				}
				free += 1 << (longest - primary)
			}
			sub = int(t[p] >> 16)
			n -= primary
			at, step, end = rev>>primary, 1<<n, 1<<(longest-primary)
		}
		e := entry(sym)
		e += uint32(n) | uint32(n)<<8 // the low bits are how many extra ones there are
		for ; at < end; at += step {
			t[sub+at] = e
		}
	}
	return nil
}

func (z *inflater) fixed() error {
	var lens [288]uint8
	for i := range lens {
		switch {
		case i < 144:
			lens[i] = 8
		case i < 256:
			lens[i] = 9
		case i < 280:
			lens[i] = 7
		default:
			lens[i] = 8
		}
	}
	if err := table(z.lit[:], litBits, lens[:], litEntry); err != nil {
		return err
	}
	var d [32]uint8
	for i := range d {
		d[i] = 5
	}
	return table(z.dist[:], distBits, d[:], distEntry)
}

// dynamic reads a block's codes (RFC 1951, 3.2.7).
func (z *inflater) dynamic() error {
	v, err := z.take(14)
	if err != nil {
		return err
	}
	nlit, ndist, ncode := int(v&31)+257, int(v>>5&31)+1, int(v>>10)+4
	if nlit > 286 || ndist > 30 {
		return errDeflate
	}
	var lens [320]uint8
	for _, i := range codeOrder[:ncode] {
		b, err := z.take(3)
		if err != nil {
			return err
		}
		lens[i] = uint8(b)
	}
	var codes [128]uint32
	if err := table(codes[:], 7, lens[:19], codeEntry); err != nil {
		return err
	}
	clear(lens[:19])
	if err := z.lengths(&codes, lens[:nlit+ndist]); err != nil {
		return err
	}
	if lens[256] == 0 { // it could never end
		return errDeflate
	}
	if err := table(z.lit[:], litBits, lens[:nlit], litEntry); err != nil {
		return err
	}
	return table(z.dist[:], distBits, lens[nlit:nlit+ndist], distEntry)
}

func (z *inflater) lengths(codes *[128]uint32, lens []uint8) error {
	for i := 0; i < len(lens); {
		if z.nb < 16 {
			if err := z.more(); err != nil {
				return err
			}
			z.refill()
		}
		e := codes[z.hold&127]
		if e&entSpecial != 0 {
			return errDeflate
		}
		z.hold >>= e & 63
		z.nb -= uint(e & 63)
		sym := e >> 16
		if sym < 16 {
			lens[i] = uint8(sym)
			i++
			continue
		}
		width, n := [3]uint{2, 3, 7}[sym-16], [3]int{3, 3, 11}[sym-16]
		m, err := z.take(width)
		if err != nil {
			return err
		}
		n += int(m)
		if n > len(lens)-i || sym == 16 && i == 0 {
			return errDeflate
		}
		var l uint8
		if sym == 16 {
			l = lens[i-1]
		}
		for ; n > 0; i, n = i+1, n-1 {
			lens[i] = l
		}
	}
	return nil
}
