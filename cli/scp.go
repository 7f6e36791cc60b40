package cli

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/urfave/cli/v2"

	"machine/cli/lifecycle"
)

func (p *program) scpCommand() *cli.Command {
	return &cli.Command{Name: "scp", Usage: "Copy files between machines", ArgsUsage: "[arg...]",
		Description: "Arguments are [[user@]machine:][path] [[user@]machine:][path].",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "recursive", Aliases: []string{"r"}, Usage: "Copy files recursively (required to copy directories)"},
			&cli.BoolFlag{Name: "delta", Aliases: []string{"d"}, Usage: "Reduce amount of data sent over network by sending only the differences"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "Disables the progress meter as well as warning and diagnostic messages"},
		},
		Action: func(c *cli.Context) error {
			if c.NArg() != 2 {
				_ = cli.ShowCommandHelp(parent(c), "scp")
				return errors.New("Improper number of arguments") //nolint:staticcheck // docker-machine's words
			}
			o := lifecycle.CopyOptions{Recursive: c.Bool("recursive"), Delta: c.Bool("delta")}
			if !c.Bool("quiet") {
				o.Each = func(name string, size int64) { fmt.Fprintf(p.stderr, "%s  %s\n", name, humanSize(size)) }
			}
			letters := runtime.GOOS == "windows"
			return p.m.Copy(c.Context, lifecycle.ParsePlace(c.Args().Get(0), letters), lifecycle.ParsePlace(c.Args().Get(1), letters), o)
		}}
}

func humanSize(n int64) string {
	units := []string{"B", "KB", "MB", "GB", "TB"}
	f, i := float64(n), 0
	for f >= 1000 && i < len(units)-1 {
		f /= 1000
		i++
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}
