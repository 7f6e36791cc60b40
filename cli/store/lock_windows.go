package store

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// tryLock takes a lock that dies with its holder.
func tryLock(f *os.File) (bool, error) {
	err := windows.LockFileEx(windows.Handle(f.Fd()),
		windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &windows.Overlapped{})
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) || errors.Is(err, windows.ERROR_IO_PENDING) {
		return false, nil
	}
	return err == nil, err
}

// syncDir has no meaning on NTFS, whose renames are journalled.
func syncDir(string) error { return nil }
