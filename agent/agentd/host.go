package main

import (
	"fmt"
	"os"

	"machine/agent/host"
)

// hostMain runs what belongs to a local machine, and the supervisor.
func hostMain(args []string) int {
	if code, handled := host.Command(append([]string{"machine-agent"}, args...)); handled {
		return code
	}
	fmt.Fprintln(os.Stderr, "agent: no such command:", args[0])
	return 1
}
