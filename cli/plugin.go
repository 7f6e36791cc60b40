package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"

	"machine/cli/lifecycle"
	"machine/drivers"
	"machine/drivers/all"
	"machine/drivers/plugin"
)

// servePlugin serves one of our drivers when this program is started as
// docker-machine-driver-NAME.
func servePlugin(ctx context.Context, program string, stdout io.Writer) (int, bool) {
	name, ok := plugin.Name(program)
	if !ok {
		return 0, false
	}
	for _, k := range all.Kinds() {
		if k.Name == name {
			if err := plugin.Serve(ctx, k, stdout, func() (string, error) { return lifecycle.AgentFile(defaultStore()) }); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1, true
			}
			return 0, true
		}
	}
	fmt.Fprintf(os.Stderr, "no driver %q is built in\n", name)
	return 1, true
}

// findPlugin looks for docker-machine-driver-NAME on the PATH. Its flags are
// asked for only when a machine is to be created.
func (p *program) findPlugin(name string) (drivers.Kind, bool) {
	if p.found.Name == name && name != "" {
		return p.found, true
	}
	path, ok := plugin.Find(name)
	if !ok {
		return drivers.Kind{}, false
	}
	kind := plugin.Kind(name, path)
	kind.Bare = name == "ci-test" // docker-machine does not provision these
	if p.isCreate() {
		log := slog.New(slog.NewTextHandler(io.Discard, nil))
		flags, err := plugin.Flags(context.Background(), name, path, log)
		if err != nil {
			fmt.Fprintln(p.stderr, err)
			return drivers.Kind{}, false
		}
		kind.Flags = flags
		p.found = kind
	}
	return kind, true
}
