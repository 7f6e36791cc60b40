package shim

import (
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"machine/agent/runtime/wire"
)

// compress gzips the rotated log with the given inode and has the shim, which
// alone moves log files, put the copy into place.
func (t *task) compress(inode uint64) {
	t.zip.Lock()
	defer t.zip.Unlock()
	for i := 1; i < 64; i++ {
		f, err := os.Open(t.meta.LogPath + "." + strconv.Itoa(i))
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Fstat(int(f.Fd()), &st) == nil && st.Ino == inode {
			err := t.compressFile(f, inode)
			f.Close()
			if err != nil {
				t.s.log.Warn("compress a log", "container", t.id, "err", err)
			}
			return
		}
		f.Close()
	}
}

func (t *task) compressFile(f *os.File, inode uint64) error {
	tmp := t.meta.LogPath + ".gz." + strconv.FormatUint(inode, 10) + ".tmp"
	out, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	z := gzip.NewWriter(out)
	_, err = io.Copy(z, f)
	if e := z.Close(); err == nil {
		err = e
	}
	if e := out.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = t.client.post(&wire.Message{Kind: wire.MsgRotated, A: inode, Body: []byte(tmp)})
	}
	if err != nil {
		_ = os.Remove(tmp)
	}
	return err
}

// sweepCompressed removes what an agent that died was compressing: the logs
// themselves are still there.
func (t *task) sweepCompressed() {
	if !t.meta.Compress {
		return
	}
	old, _ := filepath.Glob(t.meta.LogPath + ".gz.*.tmp")
	for _, f := range old {
		_ = os.Remove(f)
	}
}
