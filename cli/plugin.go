package cli

import (
	"context"
	"io"

	"machine/drivers"
)

// servePlugin serves one of our drivers when this program is started as
// docker-machine-driver-NAME.
func servePlugin(context.Context, string, io.Writer) (int, bool) { return 0, false }

// findPlugin looks for docker-machine-driver-NAME on the PATH.
func (p *program) findPlugin(string) (drivers.Kind, bool) { return drivers.Kind{}, false }
