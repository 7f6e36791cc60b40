package cli

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"
)

const newIP = "%s machines may have new IP addresses. You may need to re-run the `docker-machine env` command."

func (p *program) startCommand() *cli.Command {
	return &cli.Command{Name: "start", Usage: "Start machines", ArgsUsage: "[NAME...]", Description: severalText, Flags: []cli.Flag{filterFlag()},
		Action: func(c *cli.Context) error {
			if err := p.each(c, p.m.Start); err != nil {
				return err
			}
			p.say(newIP, "Started")
			return nil
		}}
}

func (p *program) stopCommand() *cli.Command {
	return &cli.Command{Name: "stop", Usage: "Stop machines", ArgsUsage: "[NAME...]", Description: severalText, Flags: []cli.Flag{filterFlag()},
		Action: func(c *cli.Context) error { return p.each(c, p.m.Stop) }}
}

func (p *program) killCommand() *cli.Command {
	return &cli.Command{Name: "kill", Usage: "Stop machines at once, as if their power were cut", ArgsUsage: "[NAME...]", Description: severalText, Flags: []cli.Flag{filterFlag()},
		Action: func(c *cli.Context) error { return p.each(c, p.m.Kill) }}
}

func (p *program) restartCommand() *cli.Command {
	return &cli.Command{Name: "restart", Usage: "Restart machines", ArgsUsage: "[NAME...]", Description: severalText, Flags: []cli.Flag{filterFlag()},
		Action: func(c *cli.Context) error {
			if err := p.each(c, p.m.Restart); err != nil {
				return err
			}
			p.say(newIP, "Restarted")
			return nil
		}}
}

func (p *program) provisionCommand() *cli.Command {
	return &cli.Command{Name: "provision", Usage: "Bring the hosts of machines up to date; containers run on", ArgsUsage: "[NAME...]", Description: severalText, Flags: []cli.Flag{filterFlag()},
		Action: func(c *cli.Context) error {
			return p.each(c, func(ctx context.Context, name string) error {
				done, err := p.m.Provision(ctx, name)
				if err == nil && len(done) == 0 {
					p.say("Machine %q is up to date.", name)
				}
				return err
			})
		}}
}

func (p *program) upgradeCommand() *cli.Command {
	return &cli.Command{Name: "upgrade", Usage: "Put the engine in this program on machines that have an older one; containers run on", ArgsUsage: "[NAME...]", Description: severalText, Flags: []cli.Flag{filterFlag(),
		&cli.BoolFlag{Name: "downgrade", Usage: "Also on those that have a newer one"}},
		Action: func(c *cli.Context) error {
			return p.each(c, func(ctx context.Context, name string) error {
				from, to, err := p.m.Upgrade(ctx, name, c.Bool("downgrade"))
				if err != nil {
					return fmt.Errorf("upgrade %s: %w", name, err)
				}
				if from != to && from != "" {
					p.say("Machine %q: %s -> %s", name, from, to)
				}
				return nil
			})
		}}
}
