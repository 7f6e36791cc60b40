package main

import (
	"os"

	"machine/agent/host"
	"machine/agent/transfer"
)

// hostMain runs what belongs to a host rather than to the engine.
func hostMain(args []string) int {
	if args[0] == "supervise" {
		return host.Supervise(args[1:])
	}
	if args[0] == "copy" {
		return transfer.Main(os.Stdin, os.Stdout, os.Stderr)
	}
	return host.Main(args[1:])
}
