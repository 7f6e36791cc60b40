// Command pack compresses a file with zstd for embedding: pack IN OUT.
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
)

func main() {
	if err := pack(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

func pack(in, out string) error {
	src, err := os.Open(in)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.CreateTemp("", "pack-*")
	if err != nil {
		return err
	}
	defer os.Remove(dst.Name())
	z, err := zstd.NewWriter(dst, zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
	if err != nil {
		return err
	}
	if _, err := io.Copy(z, src); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	b, err := os.ReadFile(dst.Name())
	if err != nil {
		return err
	}
	return os.WriteFile(out, b, 0o644)
}
