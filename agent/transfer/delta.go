package transfer

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
)

// The delta of a file that is there already is rsync's (Tridgell, "Efficient
// Algorithms for Sorting and Synchronization", 1999): the receiver tells a weak
// and a strong sum of each block that it has, and the sender looks for these
// blocks at every offset of the new file, so that what was inserted before them
// does not matter.
//
// An end that knows this says so where one that does not looks at nothing: the
// sender in the payload of its first done.
const rolling = "rolling"

const (
	minRoll   = 1 << 10
	maxBlocks = 400_000 // as many sums as fit into a frame
	sumSize   = 4 + hashSize
	factor    = 0x9E3779B97F4A7C15 // of the weak sum, odd: 2^64 over the golden ratio
)

// rollBlock is the length of the blocks of a file: about the root of its size,
// where the sums and the two blocks that a change costs weigh the same.
func rollBlock(size int64) int {
	n := int64(minRoll)
	for n < blockSize && n*n < size || size/n >= maxBlocks {
		n *= 2
	}
	return int(n)
}

// weak is a polynomial over the block's bytes. Its upper half depends on all of
// them.
func weak(b []byte) (h uint64) {
	for _, c := range b {
		h = h*factor + uint64(c) + 1
	}
	return h
}

// sums appends block length, file length and the sums of all blocks to want.
func (r *receiver) sums(want []byte, f *os.File, size int64) ([]byte, error) {
	buf := make([]byte, rollBlock(size))
	want = binary.AppendUvarint(want, uint64(len(buf)))
	want = binary.AppendUvarint(want, uint64(size))
	in := bufio.NewReaderSize(f, piece)
	for off := int64(0); off < size; {
		n, err := io.ReadFull(in, buf[:min(int64(len(buf)), size-off)])
		if err != nil {
			return nil, err
		}
		strong := blockSum(buf[:n])
		want = binary.BigEndian.AppendUint32(want, uint32(weak(buf[:n])>>32))
		want = append(want, strong[:]...)
		off += int64(n)
	}
	return want, nil
}

// A signature is what the receiver has.
type signature struct {
	block  int
	last   int // length of the last block
	count  int
	table  []byte  // a weak and a strong sum for each block
	heads  []int32 // blocks by weak sum: 1 + the first one
	next   []int32
	filter []uint64 // a bit for each weak sum that there is, and for some others
}

func readSignature(b []byte) (*signature, error) {
	bad := errors.New("copy: the other end sends block sums that are none")
	block, n := binary.Uvarint(b)
	if n <= 0 || block < minRoll || block > 1<<40 {
		return nil, bad
	}
	size, m := binary.Uvarint(b[n:])
	if m <= 0 || size == 0 || size > 1<<62 {
		return nil, bad
	}
	g := &signature{block: int(block), count: int((size + block - 1) / block), table: bytes.Clone(b[n+m:])}
	if block > maxFrame || len(g.table) != g.count*sumSize {
		return nil, bad
	}
	g.last = int(size - uint64(g.count-1)*block)
	buckets := 64
	for buckets < 2*g.count {
		buckets *= 2
	}
	g.heads, g.next, g.filter = make([]int32, buckets), make([]int32, g.count), make([]uint64, buckets/4)
	for i := g.count - 1; i >= 0; i-- { // the first of equal ones is found first
		if i == g.count-1 && g.last < g.block {
			continue // only at the end: tail
		}
		w := g.weak(i)
		head := &g.heads[int(w)&(buckets-1)]
		g.next[i], *head = *head, int32(i+1)
		bit := int(w>>8) & (len(g.filter)*64 - 1)
		g.filter[bit/64] |= 1 << (bit % 64)
	}
	return g, nil
}

func (g *signature) weak(i int) uint32 { return binary.BigEndian.Uint32(g.table[i*sumSize:]) }

func (g *signature) is(i int, sum []byte) bool {
	return bytes.Equal(sum, g.table[i*sumSize+4:(i+1)*sumSize])
}

// find returns the block that b is, -1 for none; that after the last match is
// the likely one.
func (g *signature) find(w uint32, b []byte, likely int) int {
	bit := int(w>>8) & (len(g.filter)*64 - 1)
	if g.filter[bit/64]&(1<<(bit%64)) == 0 {
		return -1
	}
	var sum []byte
	same := func(i int) bool {
		if g.weak(i) != w {
			return false
		}
		if sum == nil {
			s := blockSum(b)
			sum = s[:]
		}
		return g.is(i, sum)
	}
	if likely < g.count && (likely < g.count-1 || g.last == g.block) && same(likely) {
		return likely
	}
	i := g.heads[int(w)&(len(g.heads)-1)]
	for tries := 0; i != 0 && tries < 64; tries++ {
		if same(int(i - 1)) {
			return int(i - 1)
		}
		i = g.next[i-1]
	}
	return -1
}

// A roller sends one file as pieces of the old one and what lies between.
type roller struct {
	*sender
	sig        *signature
	buf        []byte
	start      int // of what is not sent yet
	pos, end   int // of the window, and of what was read
	likely     int
	from, same int64 // what the receiver is to copy, not said yet
}

// roll sends f. holes is as of sparse.
func (s *sender) roll(f *os.File, g *signature, holes func(*os.File, int64) int64) error {
	r := &roller{sender: s, sig: g, buf: make([]byte, g.block+2*piece)}
	out := uint64(1) // factor to the power of the block's length
	for range g.block {
		out *= factor
	}
	for off := int64(0); ; {
		hole, eof := int64(0), false
		var h uint64
		for fresh := true; ; {
			if r.end-r.pos <= g.block && hole == 0 && !eof {
				if err := r.slide(); err != nil {
					return err
				}
				if hole = holes(f, off); hole > 0 {
					continue
				}
				n, err := f.ReadAt(r.buf[r.end:], off)
				if err != nil && !errors.Is(err, io.EOF) {
					return err
				}
				eof = err != nil
				r.end, off = r.end+n, off+int64(n)
				continue
			}
			if fresh && r.end-r.pos >= g.block {
				h = weak(r.buf[r.pos : r.pos+g.block])
				fresh = false
			} else if r.end-r.pos > g.block {
				h = h*factor + uint64(r.buf[r.pos+g.block]) + 1 - out*(uint64(r.buf[r.pos])+1)
				r.pos++
			} else {
				break
			}
			matched, err := r.match(uint32(h >> 32))
			if err != nil {
				return err
			}
			fresh = matched
		}
		if err := r.tail(eof); err != nil {
			return err
		}
		if eof {
			return s.send(kindEnd, nil)
		}
		if err := s.sendInt(kindHole, hole); err != nil {
			return err
		}
		off += hole
	}
}

// slide makes room behind the window.
func (r *roller) slide() error {
	if err := r.literal(r.pos); err != nil {
		return err
	}
	r.end = copy(r.buf, r.buf[r.pos:r.end])
	r.start, r.pos = 0, 0
	return nil
}

// match looks whether the receiver has the window. If so, the window is behind
// it afterwards.
func (r *roller) match(w uint32) (bool, error) {
	i := r.sig.find(w, r.buf[r.pos:r.pos+r.sig.block], r.likely)
	if i < 0 {
		return false, nil
	}
	if err := r.literal(r.pos); err != nil {
		return false, err
	}
	r.likely = i + 1
	err := r.keep(i, r.sig.block)
	r.pos += r.sig.block
	r.start = r.pos
	return true, err
}

// tail sends the rest before a hole or the end; it may end as the old file.
func (r *roller) tail(eof bool) error {
	last := r.end - r.sig.last
	if eof && r.sig.last < r.sig.block && last >= r.start {
		if sum := blockSum(r.buf[last:r.end]); r.sig.is(r.sig.count-1, sum[:]) {
			if err := r.literal(last); err != nil {
				return err
			}
			if err := r.keep(r.sig.count-1, r.sig.last); err != nil {
				return err
			}
			r.start = r.end
		}
	}
	if err := r.literal(r.end); err != nil {
		return err
	}
	r.start, r.pos, r.end = 0, 0, 0
	return r.told()
}

// literal sends what is not sent up to an end.
func (r *roller) literal(end int) error {
	if r.start == end {
		return nil
	}
	if err := r.told(); err != nil {
		return err
	}
	for r.start < end {
		b := r.buf[r.start:min(end, r.start+piece)]
		if err := r.send(kindData, b); err != nil {
			return err
		}
		r.stats.Sent += int64(len(b))
		r.tell("", int64(len(b)))
		r.start += len(b)
	}
	return nil
}

// keep notes that the receiver is to copy a block; one after the other is said
// at once.
func (r *roller) keep(i, n int) error {
	from := int64(i) * int64(r.sig.block)
	r.stats.Kept += int64(n)
	if r.same > 0 && r.from+r.same == from {
		r.same += int64(n)
		return nil
	}
	err := r.told()
	r.from, r.same = from, int64(n)
	return err
}

func (r *roller) told() error {
	if r.same == 0 {
		return nil
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(r.from))
	b = binary.BigEndian.AppendUint64(b, uint64(r.same))
	r.same = 0
	return r.send(kindCopy, b)
}
