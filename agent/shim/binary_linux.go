package shim

import (
	"embed"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"machine/agent/fault"
)

//go:embed all:embed
var embedded embed.FS

// seal puts the shim's binary into a memory file that nobody can change any
// more, not even a container that finds itself run from it.
func seal(binary []byte) (*os.File, error) {
	if len(binary) == 0 {
		var err error
		if binary, err = embedded.ReadFile("embed/shim-" + runtime.GOARCH); err != nil {
			return nil, fault.Unavailable.Errorf("shim not built: make shims")
		}
	}
	fd, err := unix.MemfdCreate("shim", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3
		fd, err = unix.MemfdCreate("shim", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fault.Internal.Errorf("memory file for the shim: %w", err)
	}
	for b := binary; len(b) > 0; {
		n, err := unix.Write(fd, b)
		if err != nil {
			unix.Close(fd)
			return nil, fault.Internal.Errorf("write the shim's memory file: %w", err)
		}
		b = b[n:]
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		unix.Close(fd)
		return nil, fault.Internal.Errorf("seal the shim's memory file: %w", err)
	}
	// A high number, out of the way of the numbers that a child is given.
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 64)
	unix.Close(fd)
	if err != nil {
		return nil, fault.Internal.Errorf("number the shim's memory file: %w", err)
	}
	return os.NewFile(uintptr(high), "/proc/self/fd/"+strconv.Itoa(high)), nil
}
