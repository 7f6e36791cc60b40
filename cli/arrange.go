package cli

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// arrange brings flags before the positional arguments, so that they may stand
// anywhere, and takes the debug switch out wherever it is. The arguments of
// ssh behind the machine's name are left as they are.
func (p *program) arrange(app *cli.App, args []string) ([]string, error) {
	global, rest := splitFlags(app.Flags, args[1:])
	out := append([]string{args[0]}, global...)
	if len(rest) == 0 {
		return out, nil
	}
	cmd := app.Command(rest[0])
	if cmd == nil {
		return append(out, rest...), nil
	}
	if cmd.Name == "create" {
		if err := p.addDriverFlags(cmd, rest[1:]); err != nil {
			return nil, err
		}
	}
	out = append(out, rest[0])
	if cmd.SkipFlagParsing {
		return append(out, rest[1:]...), nil
	}
	flags, names := []string{}, []string{}
	params := rest[1:]
	for len(params) > 0 {
		a := params[0]
		switch {
		case a == "--":
			names = append(names, params[1:]...)
			params = nil
		case a == "-D" || a == "--debug" || a == "-debug":
			p.debug = true
			params = params[1:]
		case len(a) > 1 && a[0] == '-':
			n := 1
			if takesValue(cmd.Flags, a) && len(params) > 1 {
				n = 2
			}
			flags = append(flags, params[:n]...)
			params = params[n:]
		default:
			names = append(names, a)
			params = params[1:]
		}
	}
	out = append(out, flags...)
	if len(names) > 0 {
		out = append(append(out, "--"), names...)
	}
	return out, nil
}

// splitFlags cuts args before the first that is neither a flag nor a value.
func splitFlags(flags []cli.Flag, args []string) (head, rest []string) {
	i := 0
	for i < len(args) && len(args[i]) > 1 && args[i][0] == '-' {
		if takesValue(flags, args[i]) {
			i++
		}
		i++
	}
	i = min(i, len(args))
	return args[:i], args[i:]
}

// takesValue reports whether the flag arg has its value in the next argument.
func takesValue(flags []cli.Flag, arg string) bool {
	name := strings.TrimLeft(arg, "-")
	if strings.Contains(name, "=") {
		return false
	}
	for _, f := range flags {
		for _, n := range f.Names() {
			if n == name {
				d, ok := f.(cli.DocGenerationFlag)
				return ok && d.TakesValue()
			}
		}
	}
	return false
}
