package model

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"
)

// A Layer is one layer of an image on disk.
type Layer struct {
	Chain  digest.Digest // of this layer and all below it
	DiffID digest.Digest // of its plain tar
	Parent digest.Digest // chain of the layer below; empty for the lowest
	Size   int64         // bytes of its regular files
	Tar    int64         // bytes of its plain tar
}

// A StagedLayer is an unpacked tar that has no place in a chain yet. One of
// Discard and the store's commit must be called; Discard after a commit does
// nothing.
type StagedLayer interface {
	DiffID() digest.Digest
	Size() int64 // bytes of regular files
	Discard()
}

// A BlobWriter receives a blob that may have begun in an earlier run.
type BlobWriter interface {
	io.Writer
	// Offset is how many bytes are there already.
	Offset() int64
	// Reader reads what is there from the start, up to Offset.
	Reader() io.Reader
	// Reset forgets all bytes.
	Reset() error
	// Check compares the digest of all bytes with what it must be; on a
	// mismatch, which is Invalid, they are forgotten.
	Check(ctx context.Context) error
	// Close ends the writing; what is there stays for the next writer, until
	// the blob is deleted or has waited for a week. Safe to repeat.
	Close() error
}
