package ssh

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/pkg/sftp"
)

// packet is the size of an SFTP write: servers cut connections over larger ones.
const packet = 32 << 10

// Files opens the host's SFTP service. The caller closes it.
func (c *Client) Files() (*sftp.Client, error) {
	f, err := sftp.NewClient(c.Client, sftp.MaxPacketChecked(packet), sftp.UseConcurrentWrites(true),
		sftp.MaxConcurrentRequestsPerFile(128))
	if err != nil {
		return nil, fmt.Errorf("sftp: %w", err)
	}
	return f, nil
}

// Upload writes data to the file name on the host with mode, beginning where
// an earlier Upload of the same data broke off: the part that is there is
// compared by checksum first. What is there afterwards has been checked, too.
func (c *Client) Upload(ctx context.Context, name string, data []byte, mode os.FileMode) error {
	f, err := c.Files()
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = f.Close() })
	defer stop()
	off := c.resumeAt(ctx, f, name, data)
	w, err := f.OpenFile(name, os.O_WRONLY|os.O_CREATE)
	if err != nil {
		return fmt.Errorf("upload %s: %w", name, err)
	}
	err = errors.Join(w.Chmod(mode), w.Truncate(off))
	if err == nil {
		_, err = w.Seek(off, io.SeekStart)
	}
	if err == nil {
		// In pieces, each acknowledged whole: a broken connection leaves a
		// prefix and no holes.
		err = writePieces(w, data[off:])
	}
	if err = errors.Join(err, w.Close()); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("upload %s: %w", name, err)
	}
	got, err := c.Checksum(ctx, name)
	if err != nil {
		return fmt.Errorf("upload %s: %w", name, err)
	}
	if want := Sum(data); got != want {
		_ = f.Remove(name)
		return fmt.Errorf("upload %s: checksum is %s, not %s: the file was damaged on its way", name, got, want)
	}
	return nil
}

func writePieces(w *sftp.File, data []byte) error {
	const piece = 4 << 20
	for len(data) > 0 {
		n := min(piece, len(data))
		if _, err := w.ReadFromWithConcurrency(&sized{data: data[:n]}, 64); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// sized is a reader whose length pkg/sftp can ask for.
type sized struct {
	data []byte
}

func (s *sized) Size() int64 { return int64(len(s.data)) }

func (s *sized) Read(p []byte) (int, error) {
	if len(s.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.data)
	s.data = s.data[n:]
	return n, nil
}

// resumeAt returns how many bytes of data are in the file already.
func (c *Client) resumeAt(ctx context.Context, f *sftp.Client, name string, data []byte) int64 {
	fi, err := f.Lstat(name)
	if err != nil || !fi.Mode().IsRegular() || fi.Size() == 0 || fi.Size() > int64(len(data)) {
		return 0
	}
	got, err := c.Checksum(ctx, name)
	if err != nil || got != Sum(data[:fi.Size()]) {
		return 0
	}
	return fi.Size()
}

// Checksum returns the SHA-256 of a file on the host, in hex.
func (c *Client) Checksum(ctx context.Context, name string) (string, error) {
	out, err := c.Output(ctx, "sha256sum "+Quote(name), nil)
	if err != nil {
		return "", fmt.Errorf("sha256sum %s: %w", path.Base(name), err)
	}
	if len(out) < 64 {
		return "", fmt.Errorf("sha256sum %s: strange answer %q", path.Base(name), out)
	}
	if out[0] == '\\' { // coreutils marks names that it escaped
		out = out[1:]
	}
	return out[:64], nil
}

// Sum returns the SHA-256 of data in hex.
func Sum(data []byte) string {
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:])
}
