package main

import "machine/agent/host"

// hostMain runs what belongs to a host rather than to the engine.
func hostMain(args []string) int {
	if args[0] == "supervise" {
		return host.Supervise(args[1:])
	}
	return host.Main(args[1:])
}
