package cli

import (
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
)

// defaultText and severalText say what the names of a command mean.
const (
	defaultText = "Without a name, the machine that is called default is meant."
	severalText = "Names may hold *, ? and [], in quotes. " + defaultText
)

// filterFlag is on every command that works on many machines.
func filterFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "filter", Usage: "Only machines with KEY=VALUE: name, driver, state, label or swarm; several keys all have to match"}
}

// isPattern tells a pattern from a name: names hold none of these.
func isPattern(s string) bool { return strings.ContainsAny(s, "*?[") }

// chosen are the machines that the arguments and --filter name: names as they
// are, patterns expanded, and all machines where there is a filter only. An
// empty answer comes with an error.
func (p *program) chosen(c *cli.Context) ([]string, error) {
	names, err := p.expand(c.Args().Slice())
	if err != nil {
		return nil, err
	}
	wanted := c.StringSlice("filter")
	if len(wanted) == 0 {
		return names, nil
	}
	f, err := parseFilters(wanted)
	if err != nil {
		return nil, err
	}
	if c.NArg() == 0 {
		if names, err = p.m.Store.Names(); err != nil {
			return nil, err
		}
	}
	var kept []string
	for _, n := range f.known(p, names) {
		// What cannot be read may be anything: it takes its name to act on it.
		if _, err := p.m.Store.Load(n); err == nil {
			kept = append(kept, n)
		}
	}
	if len(f["state"]) > 0 {
		names, kept = kept, nil
		for _, r := range p.listRows(c.Context, names, 10*time.Second) {
			if f.state(r.State) {
				kept = append(kept, r.Name)
			}
		}
	}
	if len(kept) == 0 {
		return nil, fmt.Errorf("no machine matches --filter %s", strings.Join(wanted, " --filter "))
	}
	return kept, nil
}

// expand replaces patterns by the names of machines. One that matches nothing
// is an error; a name is kept also when there is no such machine.
func (p *program) expand(args []string) ([]string, error) {
	var all, names []string
	seen := map[string]bool{}
	for _, a := range args {
		if !isPattern(a) {
			if !seen[a] {
				seen[a] = true
				names = append(names, a)
			}
			continue
		}
		if all == nil {
			var err error
			if all, err = p.m.Store.Names(); err != nil {
				return nil, err
			}
		}
		found := false
		for _, n := range all {
			ok, err := path.Match(a, n)
			if err != nil {
				return nil, fmt.Errorf("pattern %q: %w", a, err)
			}
			if ok && !seen[n] {
				seen[n] = true
				names = append(names, n)
			}
			found = found || ok
		}
		if !found {
			return nil, fmt.Errorf("no machine is named %q", a)
		}
	}
	return names, nil
}
