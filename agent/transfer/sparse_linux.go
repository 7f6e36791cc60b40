package transfer

import (
	"os"

	"golang.org/x/sys/unix"
)

// sparse returns a function that tells how long the hole at an offset is, 0
// for none (lseek(2), SEEK_DATA). Files that are all there are not asked again.
func sparse(f *os.File) func(*os.File, int64) int64 {
	none := func(*os.File, int64) int64 { return 0 }
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Blocks*512 >= st.Size {
		return none
	}
	next := int64(-1) // where the data that we are in ends
	return func(f *os.File, off int64) int64 {
		if off < next {
			return 0
		}
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		switch {
		case err == unix.ENXIO && off < st.Size:
			return st.Size - off
		case err != nil:
			next = st.Size
			return 0
		case data > off:
			return data - off
		}
		if next, err = unix.Seek(int(f.Fd()), off, unix.SEEK_HOLE); err != nil {
			next = st.Size
		}
		return 0
	}
}
