package ssh

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/pkg/sftp"
)

// Tree is a host's file system, by SFTP.
type Tree struct{ *sftp.Client }

// Stat follows links.
func (t Tree) Stat(name string) (fs.FileInfo, error) { return t.Client.Stat(name) }

// List lists a folder; links are not followed.
func (t Tree) List(name string) ([]fs.FileInfo, error) { return t.ReadDir(name) }

// Open opens a file for reading.
func (t Tree) Open(name string) (io.ReadCloser, error) { return t.Client.Open(name) }

// Mkdir makes a folder with all above it; one that is there is no error.
func (t Tree) Mkdir(name string, mode fs.FileMode) error {
	if fi, err := t.Client.Stat(name); err == nil && fi.IsDir() {
		return nil
	}
	if err := t.MkdirAll(name); err != nil {
		return err
	}
	return t.Chmod(name, mode)
}

// Write replaces a file; the old one stays until the new one is whole.
func (t Tree) Write(name string, r io.Reader, info fs.FileInfo, keepTime bool) error {
	raw := make([]byte, 6)
	if _, err := rand.Read(raw); err != nil {
		return err
	}
	tmp := path.Join(path.Dir(name), ".scp-"+hex.EncodeToString(raw))
	f, err := t.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	err = f.Chmod(info.Mode().Perm())
	if err == nil {
		_, err = f.ReadFromWithConcurrency(r, 64)
	}
	err = errors.Join(err, f.Close())
	if err == nil && keepTime {
		err = t.Chtimes(tmp, info.ModTime(), info.ModTime())
	}
	if err == nil {
		err = t.PosixRename(tmp, name)
	}
	if err != nil {
		_ = t.Remove(tmp)
	}
	return err
}

// Real is the path without links, as far as the server knows.
func (t Tree) Real(name string) (string, error) { return t.Client.RealPath(name) }
