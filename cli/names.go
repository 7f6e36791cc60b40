package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"machine/cli/lifecycle"
)

const defaultName = "default"

var (
	errNoName  = errors.New(`Error: No machine name(s) specified and no "default" machine exists`) //nolint:staticcheck // docker-machine's words
	errOneName = errors.New("Error: Expected one machine name as an argument")                     //nolint:staticcheck // docker-machine's words
)

// oneName returns the only name given, or "default" if there is such a machine.
func (p *program) oneName(c *cli.Context) (string, error) {
	switch c.NArg() {
	case 0:
		if p.m.Store.Exists(defaultName) {
			return defaultName, nil
		}
		return "", errNoName
	case 1:
		return c.Args().First(), nil
	}
	return "", errOneName
}

// someNames returns the machines that were named, or "default" if there is
// such a machine. One that is not known is an error.
func (p *program) someNames(c *cli.Context) (names []string, err error) {
	if c.NArg() == 0 && len(c.StringSlice("filter")) == 0 {
		names = make([]string, 1)
		names[0], err = p.oneName(c)
	} else {
		names, err = p.chosen(c)
	}
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if _, err := p.m.Store.Load(n); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// load loads the one machine that a command is about.
func (p *program) load(c *cli.Context) (*lifecycle.Machine, error) {
	name, err := p.oneName(c)
	if err != nil {
		return nil, err
	}
	return p.m.Load(name)
}

// each runs f for all names that the command was given, at once. One unknown
// machine stops all, before anything is done.
func (p *program) each(c *cli.Context, f func(ctx context.Context, name string) error) error {
	names, err := p.someNames(c)
	if err != nil {
		return err
	}
	return lifecycle.Each(c.Context, names, 0, f)
}

// println prints a result.
func (p *program) println(args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintln(p.stdout, args...)
}
