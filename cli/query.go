package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"machine/cli/lifecycle"
	"machine/cli/store"
	"machine/drivers"
)

func (p *program) ipCommand() *cli.Command {
	return &cli.Command{Name: "ip", Usage: "Print the IP addresses of machines", ArgsUsage: "[NAME...]", Description: severalText, Flags: []cli.Flag{filterFlag()},
		Action: func(c *cli.Context) error {
			return p.eachLine(c, func(ctx context.Context, mc *lifecycle.Machine) (string, error) { return mc.IP(ctx) })
		}}
}

// eachLine prints what f says of each machine, in the order of the names.
func (p *program) eachLine(c *cli.Context, f func(context.Context, *lifecycle.Machine) (string, error)) error {
	names, err := p.someNames(c)
	if err != nil {
		return err
	}
	lines := make([]string, len(names))
	index := map[string]int{}
	for i, n := range names {
		index[n] = i
	}
	err = lifecycle.Each(c.Context, names, 0, func(ctx context.Context, name string) error {
		mc, err := p.m.Load(name)
		if err != nil {
			return err
		}
		defer func() { _ = mc.Close() }()
		line, err := f(ctx, mc)
		lines[index[name]] = line
		return err
	})
	for _, n := range names {
		if l := lines[index[n]]; l != "" {
			p.println(l)
		}
	}
	return err
}

func (p *program) urlCommand() *cli.Command {
	return &cli.Command{Name: "url", Usage: "Print the URL of a machine's engine", ArgsUsage: "[NAME]", Description: defaultText,
		Action: func(c *cli.Context) error {
			mc, err := p.load(c)
			if err != nil {
				return err
			}
			defer func() { _ = mc.Close() }()
			url, err := mc.URL(c.Context)
			if err != nil {
				return err
			}
			p.println(url)
			return nil
		}}
}

func (p *program) statusCommand() *cli.Command {
	return &cli.Command{Name: "status", Usage: "Print what a machine does: Running, Stopped and so on", ArgsUsage: "[NAME]", Description: defaultText,
		Action: func(c *cli.Context) error {
			mc, err := p.load(c)
			if err != nil {
				return err
			}
			defer func() { _ = mc.Close() }()
			st, err := mc.Driver.State(c.Context)
			if err != nil {
				p.m.Log.Error("error getting state", "machine", mc.Name, "error", err)
			}
			p.println(st)
			return nil
		}}
}

func (p *program) versionCommand() *cli.Command {
	return &cli.Command{Name: "version", Usage: "Show the version of this program, or that of a machine's engine", ArgsUsage: "[NAME]",
		Action: func(c *cli.Context) error {
			switch c.NArg() {
			case 0:
				cli.ShowVersion(c)
				return nil
			case 1:
			default:
				return errOneName
			}
			mc, err := p.load(c)
			if err != nil {
				return err
			}
			defer func() { _ = mc.Close() }()
			v, err := p.m.Version(c.Context, mc)
			if err != nil {
				return err
			}
			p.println(v)
			return nil
		}}
}

func (p *program) configCommand() *cli.Command {
	return &cli.Command{Name: "config", Usage: "Print the docker client's options for a machine", ArgsUsage: "[NAME]",
		Description: defaultText + " Fails where the engine does not answer.",
		Flags:       []cli.Flag{&cli.BoolFlag{Name: "swarm", Usage: "Those of the classic Swarm master instead of the engine"}},
		Action: func(c *cli.Context) error {
			p.infoToStderr = true
			mc, err := p.load(c)
			if err != nil {
				return err
			}
			defer func() { _ = mc.Close() }()
			host, err := p.connect(c.Context, mc, c.Bool("swarm"))
			if err != nil {
				return fmt.Errorf("Error running connection boilerplate: %w", err) //nolint:staticcheck // docker-machine's words
			}
			dir := p.m.Store.MachineDir(mc.Name)
			fmt.Fprintf(p.stdout, "--tlsverify\n--tlscacert=%q\n--tlscert=%q\n--tlskey=%q\n-H=%s\n",
				dir+sep+"ca.pem", dir+sep+"cert.pem", dir+sep+"key.pem", host)
			return nil
		}}
}

// connect returns the engine's URL after a whole TLS handshake with it.
func (p *program) connect(ctx context.Context, mc *lifecycle.Machine, swarm bool) (string, error) {
	url, err := mc.URL(ctx)
	if err != nil {
		return "", err
	}
	if swarm {
		if url, err = swarmURL(mc, url); err != nil {
			return "", err
		}
	}
	p.m.KeepFresh(ctx, mc)
	endpoint := lifecycle.EngineURL(url)
	if err := p.m.CheckTLS(ctx, mc, endpoint); err != nil {
		return "", fmt.Errorf("Error checking and/or regenerating the certs: There was an error validating certificates for host %q: %w\nYou can attempt to regenerate them using 'docker-machine regenerate-certs [name]'.\nBe advised that this will trigger a Docker daemon restart which might stop running containers.", endpoint, err) //nolint:staticcheck // docker-machine's words
	}
	return url, nil
}

func (p *program) activeCommand() *cli.Command {
	return &cli.Command{Name: "active", Usage: "Print the machine that DOCKER_HOST points to",
		Flags: []cli.Flag{&cli.IntFlag{Name: "timeout", Aliases: []string{"t"}, Value: 10, Usage: "Seconds to wait for the machines"}},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return errors.New("Error: Too many arguments given") //nolint:staticcheck // docker-machine's words
			}
			names, err := p.m.Store.Names()
			if err != nil {
				return err
			}
			rows := p.listRows(c.Context, names, seconds(c.Int("timeout")))
			timeout := false
			for _, r := range rows {
				if r.ActiveHost || r.ActiveSwarm {
					p.println(r.Name)
					return nil
				}
				timeout = timeout || r.State == drivers.Timeout
			}
			if timeout {
				return errors.New("Error getting active host: timeout") //nolint:staticcheck // docker-machine's words
			}
			return errors.New("No active host found") //nolint:staticcheck // docker-machine's words
		}}
}

func (p *program) renameCommand() *cli.Command {
	return &cli.Command{Name: "rename", Usage: "Give a stopped machine another name", ArgsUsage: "OLD NEW",
		Action: func(c *cli.Context) error {
			if c.NArg() != 2 {
				return errors.New("rename: name the machine and its new name")
			}
			err := p.m.Rename(c.Context, c.Args().Get(0), c.Args().Get(1))
			var missing *store.NotExist
			if err != nil && !errors.As(err, &missing) {
				return fmt.Errorf("rename: %w", err)
			}
			return err
		}}
}
