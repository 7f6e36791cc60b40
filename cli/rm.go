package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"machine/cli/lifecycle"
)

func (p *program) rmCommand() *cli.Command {
	return &cli.Command{Name: "rm", Usage: "Remove machines", ArgsUsage: "NAME...",
		Description: "Names may hold *, ? and [], in quotes. What the driver made is removed; hosts of the driver generic stay as they are.",
		Flags: []cli.Flag{
			filterFlag(),
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "Forget machines also where removing them fails; implies -y"},
			&cli.BoolFlag{Name: "update-config", Hidden: true, Usage: "Rancher's, accepted"},
			&cli.BoolFlag{Name: "y", Usage: "Do not ask"},
		},
		Action: p.rm}
}

func (p *program) rm(c *cli.Context) error {
	force := c.Bool("force")
	if c.NArg() == 0 && len(c.StringSlice("filter")) == 0 {
		_ = cli.ShowCommandHelp(parent(c), "rm")
		return errors.New("Error: Expected to get one or more machine names as arguments") //nolint:staticcheck // docker-machine's words
	}
	names, err := p.chosen(c)
	if err != nil {
		return err
	}
	p.say("About to remove %s", strings.Join(names, ", "))
	p.say("WARNING: This action will delete both local reference and remote instance.")
	if !force && !c.Bool("y") {
		ok, _ := p.confirm("Are you sure? (y/n): ")
		if !ok {
			return nil
		}
	}
	return lifecycle.Each(c.Context, names, 0, func(ctx context.Context, name string) error {
		err := p.m.Remove(ctx, name, force)
		if err != nil && force {
			p.say("%s", err)
			p.say("Can't remove %q", name)
			return nil
		}
		if err != nil {
			return err
		}
		p.say("Successfully removed %s", name)
		return nil
	})
}

// confirm asks on stdout; eof tells that nobody answered.
func (p *program) confirm(question string) (yes, eof bool) {
	fmt.Fprint(p.stdout, question)
	line, err := bufio.NewReader(p.stdin).ReadString('\n')
	line = strings.ToLower(strings.TrimSpace(line))
	return strings.HasPrefix(line, "y"), errors.Is(err, io.EOF) && line == ""
}

func (p *program) regenerateCommand() *cli.Command {
	return &cli.Command{Name: "regenerate-certs", Usage: "Make the TLS certificates of machines anew; containers run on", ArgsUsage: "[NAME...]", Description: severalText,
		Flags: []cli.Flag{
			filterFlag(),
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "Do not ask"},
			&cli.BoolFlag{Name: "client-certs", Usage: "Also the client's certificate, and the CA where it ends soon"},
		},
		Action: func(c *cli.Context) error {
			if !c.Bool("force") {
				yes, eof := p.confirm("Regenerate TLS machine certs?  Warning: this is irreversible. (y/n): ")
				if eof {
					return errors.New("EOF")
				}
				if !yes {
					return nil
				}
			}
			p.say("Regenerating TLS certificates")
			if c.Bool("client-certs") {
				if err := p.m.RenewClient(c.Context); err != nil {
					return err
				}
			}
			return p.each(c, p.m.RegenerateCerts)
		}}
}
