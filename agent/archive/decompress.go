package archive

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"machine/agent/fault"
)

// maxWindow bounds what one decompressor may hold in memory: the window of
// `zstd --long=27` and of `xz -9` fit, a bomb's 4 GiB do not.
const maxWindow = 128 << 20

// peek is how much Decompress reads ahead.
const peekSize = 256 << 10

// Compressed tells by the first bytes of something whether Decompress would
// make anything else of it.
func Compressed(head []byte) bool { return formatOf(head) != "" }

// formatOf names what head begins, "" for plain bytes.
func formatOf(head []byte) string {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b, 8}):
		return "gzip"
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}):
		return "zstd"
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		return "xz"
	case len(head) >= 4 && bytes.HasPrefix(head, []byte("BZh")) && head[3] >= '1' && head[3] <= '9':
		return "bzip2"
	}
	return ""
}

// Decompress returns the plain bytes of r, which may be gzip, zstd, xz, bzip2
// or plain: told by its first bytes. All is done in this process: no
// program, least of all one of a container, is run. Close frees the
// decompressor; it does not close r. Errors while reading are of kind Invalid
// when the data are at fault. The output can be as large as it likes: the
// reader bounds it.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	br, ok := r.(*bufio.Reader)
	if !ok || br.Size() < 32 {
		br = bufio.NewReaderSize(r, peekSize)
	}
	head, err := br.Peek(24)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch formatOf(head) {
	case "gzip":
		z, err := newGunzip(br)
		if err != nil {
			return nil, fault.Invalid.Errorf("gzip: %w", err)
		}
		return &named{z, "gzip", z.Close}, nil
	case "zstd":
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, fault.Invalid.Errorf("zstd: %w", err)
		}
		return &named{z, "zstd", func() error { z.Close(); return nil }}, nil
	case "xz":
		z, err := xz.NewReader(newXZGuard(br))
		if err != nil {
			return nil, fault.Invalid.Errorf("xz: %w", err)
		}
		return &named{z, "xz", nil}, nil
	case "bzip2":
		return &named{bzip2.NewReader(br), "bzip2", nil}, nil
	}
	return io.NopCloser(br), nil
}

// named says in errors which format was broken.
type named struct {
	r     io.Reader
	name  string
	close func() error
}

func (n *named) Read(p []byte) (int, error) {
	m, err := n.r.Read(p)
	if err != nil && err != io.EOF && fault.KindOf(err) == fault.Internal {
		err = fault.Invalid.Errorf("%s: %w", n.name, err)
	}
	return m, err
}

func (n *named) Close() error {
	if n.close == nil {
		return nil
	}
	return n.close()
}
