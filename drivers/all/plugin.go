package all

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"machine/drivers"
	"machine/drivers/plugin"
)

// Find looks for docker-machine-driver-NAME on the PATH. Its flags are asked
// for, which starts the program, only if withFlags is set.
func Find(ctx context.Context, name string, withFlags bool, log *slog.Logger) (drivers.Kind, bool, error) {
	path, ok := plugin.Find(name)
	if !ok {
		return drivers.Kind{}, false, nil
	}
	kind := plugin.Kind(name, path)
	short := plugin.Short(name)
	kind.Bare = short == "ci-test" || short == "none" // docker-machine does not provision these
	if !withFlags {
		return kind, true, nil
	}
	flags, err := plugin.Flags(ctx, name, path, log)
	kind.Flags = flags
	return kind, err == nil, err
}

// Serve serves one of our drivers to another program's host if program is a
// name like docker-machine-driver-NAME; served is false if it is not.
func Serve(ctx context.Context, program string, stdout io.Writer, agent func() (string, error)) (served bool, err error) {
	name, ok := plugin.Name(program)
	if !ok {
		return false, nil
	}
	for _, k := range Kinds() {
		if k.Name == name {
			return true, plugin.Serve(ctx, k, stdout, agent)
		}
	}
	return true, fmt.Errorf("no driver %q is built in", name)
}
