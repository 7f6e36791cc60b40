package host

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"machine/agent/fault"
	"machine/agent/state"
)

// A Config says what machine to run.
type Config struct {
	Dir   string // the machine's folder, on a real file system
	Name  string // host name
	IP    string // wanted address, or ""
	Key   string // file with the public key that may log in
	Store string // folder of the computer that is hidden inside
}

// Status is what is known of a machine.
type Status struct {
	Running bool
	PID     int    `json:",omitempty"` // of its init, as the computer counts
	IP      string `json:",omitempty"`
}

// bootConfig is what init is told over its pipe.
type bootConfig struct {
	Config
	Gateway string
	Prefix  int
	MAC     string
	Keys    string // content of authorized_keys
	Agent   string // path of the agent's binary on the computer
}

// id names a machine's kernel objects: the folder is the identity, since two
// stores may use one name.
func id(dir string) string {
	sum := sha256.Sum256([]byte(filepath.Clean(dir)))
	return hex.EncodeToString(sum[:])[:10]
}

func vethName(dir string) string { return "mach" + id(dir) }

// A pidRecord tells a process from a later one with the same number (F26).
type pidRecord struct {
	PID   int
	Start uint64 // field 22 of /proc/PID/stat, in clock ticks since boot
	IP    string
}

// tombstone marks a removed machine until its folder is gone: a run that was
// asked for before, by a command that has died since, must not revive it.
func tombstone(dir string) string { return filepath.Join(dir, "host.removed") }

func pidFile(dir string) string { return filepath.Join(dir, "host.pid") }

func writePid(dir string, pid int, ip string) error {
	start, err := startTime(pid)
	if err != nil {
		return err
	}
	data, err := json.Marshal(pidRecord{pid, start, ip})
	if err != nil {
		return err
	}
	return state.WriteFile(pidFile(dir), data, 0o600)
}

// readPid returns the record, and whether its process still is that process.
func readPid(dir string) (rec pidRecord, alive bool) {
	data, err := os.ReadFile(pidFile(dir))
	if err != nil || json.Unmarshal(data, &rec) != nil || rec.PID <= 1 {
		return rec, false
	}
	start, err := startTime(rec.PID)
	return rec, err == nil && start == rec.Start
}

// startTime reads /proc/PID/stat; a zombie counts as gone.
func startTime(pid int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name in parentheses may hold blanks and parentheses itself.
	i := bytes.LastIndexByte(data, ')')
	if i < 0 {
		return 0, errors.New("strange /proc/PID/stat")
	}
	f := bytes.Fields(data[i+1:])
	if len(f) < 20 {
		return 0, errors.New("short /proc/PID/stat")
	}
	if s := f[0][0]; s == 'Z' || s == 'X' {
		return 0, os.ErrProcessDone
	}
	return strconv.ParseUint(string(f[19]), 10, 64)
}

// lock takes an flock on path, waiting for it; release drops it. The folder
// must be there.
func lock(path string) (release func(), err error) {
	for {
		f, err := flock(path)
		if err != nil {
			return nil, err
		}
		// Who held it may have removed the file meanwhile: then what we hold
		// is nobody's lock any more.
		held, err1 := f.Stat()
		now, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(held, now) {
			return func() { _ = f.Close() }, nil
		}
		_ = f.Close()
	}
}

func flock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// checkFS refuses a folder whose file system cannot be an overlay's upper one.
func checkFS(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", dir, err)
	}
	switch st.Type {
	case unix.OVERLAYFS_SUPER_MAGIC:
		return fault.Invalid.Errorf("local machines cannot be kept in %s: it is on an overlay file system itself (a container?); name a folder on a disk or volume with --storage-path", dir)
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.V9FS_MAGIC, unix.FUSE_SUPER_MAGIC:
		return fault.Invalid.Errorf("local machines cannot be kept in %s: it is on a network file system; name a folder on a disk with --storage-path", dir)
	}
	return nil
}
