package agent

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"machine/agent/check"
)

const checkUsage = `Usage: machine-agent check [--quick] [--repair] [--discard] [engine's flags]

Looks for records, layers and images that are damaged or gone. Without --repair
and --discard it changes nothing and may run beside the engine.

  --quick    do not read the layers' files
  --repair   put back what is whole, set aside what is damaged
  --discard  delete what has been set aside

--repair and --discard want the engine stopped; containers run on meanwhile.
The exit status is 0 when nothing is wrong now, 1 when something is, and 2 when
it could not be found out. The engine's flags (--data-root, --config-file) say
where to look.
`

// CheckMain is the command "check" and gives its exit status.
func CheckMain(args []string, stdout, stderr io.Writer) int {
	o := check.Options{Out: stdout}
	flags := map[string]*bool{"quick": &o.Quick, "repair": &o.Repair, "discard": &o.Discard}
	args = slices.DeleteFunc(slices.Clone(args), func(a string) bool {
		f := flags[strings.TrimLeft(a, "-")]
		if f != nil && a[0] == '-' {
			*f = true
			return true
		}
		return false
	})
	if slices.ContainsFunc(args, func(a string) bool { return a == "-h" || a == "--help" || a == "-help" }) {
		fmt.Fprint(stdout, checkUsage)
		return 0
	}
	c, err := ParseArgs(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	left := 0
	if err == nil {
		o.Root = c.DataRoot
		left, err = c.checkRoot(o)
	}
	switch {
	case err != nil:
		fmt.Fprintln(stderr, "machine-agent check:", err)
		return 2
	case left > 0:
		return 1
	}
	return 0
}

func (c *Config) checkRoot(o check.Options) (int, error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if o.Repair || o.Discard {
		if _, err := os.Stat(o.Root); err != nil {
			return 0, err
		}
		lock := *c
		lock.PidFile = "" // it is the engine's
		unlock, err := lockRoot(&lock)
		if err != nil {
			return 0, fmt.Errorf("%w: stop that first; containers run on meanwhile", err)
		}
		defer unlock()
	}
	return check.Run(ctx, o)
}
