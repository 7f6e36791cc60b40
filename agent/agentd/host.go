package main

import (
	"fmt"
	"os"
)

// hostMain runs what belongs to a local machine.
func hostMain(args []string) int {
	fmt.Fprintln(os.Stderr, "agent: no such command:", args[0])
	return 1
}
