//go:build linux

package seccomp

import "github.com/opencontainers/runtime-spec/specs-go"

var native = []specs.Arch{specs.ArchAARCH64}
