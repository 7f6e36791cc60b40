// Package failpoint gives names to the moments between the steps of an act,
// so that a test can end the agent exactly there. The environment variable
// MACHINE_FAILPOINT, which is read once at the start, names a file; while that
// holds the name of a point, the agent is killed when it comes there. Without
// the variable a point is one comparison.
package failpoint

import (
	"os"
	"strings"
	"syscall"
)

// Variable is the name of the environment variable.
const Variable = "MACHINE_FAILPOINT"

// armed is the only state that no caller hands over: a point must cost nothing
// in a program that knows nothing of it.
var armed = os.Getenv(Variable)

// Hit passes the point of that name. When it is the one in the file, the
// process is killed as by SIGKILL and Hit does not return.
func Hit(name string) {
	if armed == "" {
		return
	}
	b, err := os.ReadFile(armed)
	if err != nil || strings.TrimSpace(string(b)) != name {
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}
