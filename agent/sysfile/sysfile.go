// Package sysfile reads and writes small files in as few system calls as there
// can be. The functions of package os offer each file to the poller first,
// which costs five calls more: on the way to a running container there are
// some fifty such files.
package sysfile

import (
	"bytes"
	"os"

	"golang.org/x/sys/unix"
)

func open(name string, flags int, perm uint32) (int, error) {
	for {
		fd, err := unix.Open(name, flags|unix.O_CLOEXEC, perm)
		if err == nil {
			return fd, nil
		}
		if err != unix.EINTR {
			return -1, &os.PathError{Op: "open", Path: name, Err: err}
		}
	}
}

func write(fd int, name string, b []byte) error {
	for {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "write", Path: name, Err: err}
		}
		if b = b[n:]; len(b) == 0 {
			return nil
		}
	}
}

// Read returns the content of a file, at most limit bytes of it.
func Read(name string, limit int) ([]byte, error) {
	fd, err := open(name, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return read(fd, name, limit)
}

func read(fd int, name string, limit int) ([]byte, error) {
	b := make([]byte, min(limit, 4<<10))
	total := 0
	for {
		n, err := unix.Read(fd, b[total:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: name, Err: err}
		}
		if total += n; n == 0 || total == limit {
			return b[:total], nil
		}
		if total == len(b) {
			b = append(b, make([]byte, min(len(b), limit-len(b)))...)
		}
	}
}

// Put writes value to a file of the kernel's, which exists, in one write.
func Put(name, value string) error {
	fd, err := open(name, unix.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return write(fd, name, []byte(value))
}

// Touch makes the file, empty, when it is absent.
func Touch(name string, perm uint32) error {
	fd, err := open(name, unix.O_WRONLY|unix.O_CREAT, perm)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// Write replaces a file's content, in place; the file is made when absent.
func Write(name string, b []byte, perm uint32) error {
	fd, err := open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC, perm)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return write(fd, name, b)
}

// Rewrite is Write for a file that mostly has that content already.
func Rewrite(name string, b []byte, perm uint32) error {
	fd, err := open(name, unix.O_RDWR|unix.O_CREAT, perm)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	old, err := read(fd, name, len(b)+1)
	if err == nil && len(old) > 0 {
		if bytes.Equal(old, b) {
			return nil
		}
		err = unix.Ftruncate(fd, 0)
	}
	if err != nil || len(b) == 0 {
		return err
	}
	for done := 0; done < len(b); {
		n, err := unix.Pwrite(fd, b[done:], int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "write", Path: name, Err: err}
		}
		done += n
	}
	return nil
}
