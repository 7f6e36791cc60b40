package cli

import (
	"errors"

	"github.com/urfave/cli/v2"
)

var errTodo = errors.New("not built")

func (p *program) scpCommand() *cli.Command { return &cli.Command{Name: "scp", Action: todo} }
func (p *program) certificatesCommand() *cli.Command {
	return &cli.Command{Name: "certificates", Action: todo}
}
func (p *program) upCommand() *cli.Command   { return &cli.Command{Name: "up", Action: todo} }
func (p *program) downCommand() *cli.Command { return &cli.Command{Name: "down", Action: todo} }
func (p *program) completionCommand() *cli.Command {
	return &cli.Command{Name: "completion", Action: todo}
}

func todo(*cli.Context) error { return errTodo }
