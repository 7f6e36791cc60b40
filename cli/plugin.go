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
)

// servePlugin serves one of our drivers when this program is started as
// docker-machine-driver-NAME.
func servePlugin(ctx context.Context, program string, stdout io.Writer) (int, bool) {
	served, err := all.Serve(ctx, program, stdout, func() (string, error) { return lifecycle.AgentFile(defaultStore()) })
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1, served
	}
	return 0, served
}

// findPlugin looks for docker-machine-driver-NAME on the PATH. Its flags are
// asked for only when a machine is to be created.
func (p *program) findPlugin(name string) (drivers.Kind, bool) {
	if p.found.Name == name && name != "" {
		return p.found, true
	}
	kind, ok, err := all.Find(context.Background(), name, p.isCreate(), slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Fprintln(p.stderr, err)
	}
	if ok && p.isCreate() {
		p.found = kind
	}
	return kind, ok
}
