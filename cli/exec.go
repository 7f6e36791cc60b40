package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"machine/cli/lifecycle"
)

func (p *program) execCommand() *cli.Command {
	return &cli.Command{Name: "exec", Usage: "Run a command on many machines at once", ArgsUsage: "[--filter KEY=VALUE] NAME... -- COMMAND...",
		Description:     "Names may hold *, ? and [], in quotes. Each line of output begins with its machine's name. Fails if the command fails on any.",
		SkipFlagParsing: true, Action: p.exec}
}

func (p *program) exec(c *cli.Context) error {
	args := c.Args().Slice()
	if len(args) > 0 && (args[0] == "-h" || args[0] == "--help" || args[0] == "-help") {
		return cli.ShowCommandHelp(parent(c), "exec")
	}
	cut := -1
	for i, a := range args {
		if a == "--" {
			cut = i
			break
		}
	}
	if cut < 1 || cut == len(args)-1 {
		_ = cli.ShowCommandHelp(parent(c), "exec")
		return errors.New("exec: name machines, then --, then the command")
	}
	names, err := p.execNames(args[:cut])
	if err != nil {
		return err
	}
	width := 0
	for _, n := range names {
		width = max(width, len(n))
	}
	cmd := strings.Join(args[cut+1:], " ")
	var mu sync.Mutex
	return lifecycle.Each(c.Context, names, 64, func(ctx context.Context, name string) error {
		mc, err := p.m.Load(name)
		if err != nil {
			return err
		}
		defer func() { _ = mc.Close() }()
		head := fmt.Sprintf("%-*s | ", width, name)
		out, errs := &prefixer{w: p.stdout, head: head, mu: &mu}, &prefixer{w: p.stderr, head: head, mu: &mu}
		err = p.m.Shell(ctx, mc, cmd, out, errs)
		out.flush()
		errs.flush()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
}

// execNames reads what stands before the --: names, patterns and --filter.
func (p *program) execNames(args []string) (names []string, err error) {
	app := cli.NewApp()
	app.Writer, app.ErrWriter, app.HideHelp = io.Discard, io.Discard, true
	app.Flags = []cli.Flag{filterFlag()}
	app.DisableSliceFlagSeparator = true
	app.ExitErrHandler = func(*cli.Context, error) {}
	app.Action = func(c *cli.Context) error {
		if len(c.StringSlice("filter")) == 0 {
			names, err = p.match(c.Args().Slice())
		} else {
			names, err = p.chosen(c)
		}
		return err
	}
	flags, rest := []string{"exec"}, []string{"--"}
	for len(args) > 0 {
		n := 1
		if args[0] == "--filter" || args[0] == "-filter" {
			n = min(2, len(args))
		}
		if strings.HasPrefix(args[0], "-") {
			flags = append(flags, args[:n]...)
		} else {
			rest = append(rest, args[0])
		}
		args = args[n:]
	}
	return names, app.Run(append(flags, rest...))
}

// match expands patterns to the names of machines that there are.
func (p *program) match(patterns []string) ([]string, error) {
	names, err := p.expand(patterns)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if !p.m.Store.Exists(n) {
			return nil, fmt.Errorf("no machine is named %q", n)
		}
	}
	return names, nil
}

// A prefixer puts a head before each line; lines of several machines never mix.
type prefixer struct {
	w    io.Writer
	head string
	mu   *sync.Mutex
	rest []byte
}

// Write writes the whole lines and keeps what is left.
func (p *prefixer) Write(b []byte) (int, error) {
	p.rest = append(p.rest, b...)
	for {
		i := bytes.IndexByte(p.rest, '\n')
		if i < 0 && len(p.rest) < 64<<10 {
			return len(b), nil
		}
		if i < 0 {
			i = len(p.rest) - 1
		}
		p.line(p.rest[:i+1])
		p.rest = p.rest[i+1:]
	}
}

func (p *prefixer) line(l []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, "%s%s\n", p.head, bytes.TrimSuffix(l, []byte("\n")))
}

func (p *prefixer) flush() {
	if len(p.rest) > 0 {
		p.line(p.rest)
		p.rest = nil
	}
}

// passphraseVar names the variable that holds the passphrase of an export.
const passphraseVar = "MACHINE_PASSPHRASE"

func (p *program) exportCommand() *cli.Command {
	return &cli.Command{Name: "export", Usage: "Write a machine's record, keys and certificates for another computer, encrypted", ArgsUsage: "NAME",
		Description: passphraseText,
		Flags:       []cli.Flag{passphraseFlag(), &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "File to write instead of standard output"}},
		Action: func(c *cli.Context) error {
			p.infoToStderr = true
			name, err := p.oneName(c)
			if err != nil {
				return err
			}
			pass, err := p.passphrase(c, true)
			if err != nil {
				return err
			}
			data, err := p.m.Export(name, pass)
			if err != nil {
				return err
			}
			if o := c.String("output"); o != "" {
				return os.WriteFile(o, data, 0o600)
			}
			if f, ok := p.stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
				return errors.New("export: redirect the output into a file, or take -o FILE")
			}
			_, err = p.stdout.Write(data)
			return err
		}}
}

func (p *program) importCommand() *cli.Command {
	return &cli.Command{Name: "import", Usage: "Take over a machine that another computer exported", ArgsUsage: "FILE [NAME]",
		Description: passphraseText, Flags: []cli.Flag{passphraseFlag()},
		Action: func(c *cli.Context) error {
			if c.NArg() < 1 || c.NArg() > 2 {
				return errors.New("import: name the file, and a new name if need be")
			}
			data, err := os.ReadFile(c.Args().First())
			if err != nil {
				return err
			}
			pass, err := p.passphrase(c, false)
			if err != nil {
				return err
			}
			name, err := p.m.Import(c.Context, data, pass, c.Args().Get(1))
			if err != nil {
				return err
			}
			p.say("Machine %q was imported.", name)
			return nil
		}}
}

const passphraseText = "The passphrase is asked for, or taken from --passphrase-file or " + passphraseVar + ". It never stands on the command line."

func passphraseFlag() cli.Flag {
	return &cli.StringFlag{Name: "passphrase-file", Usage: "Take the passphrase from the first line of this file"}
}

func (p *program) passphrase(c *cli.Context, twice bool) (string, error) {
	if file := c.String("passphrase-file"); file != "" {
		data, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		line, _, _ := strings.Cut(string(data), "\n")
		if line = strings.TrimSuffix(line, "\r"); line == "" {
			return "", fmt.Errorf("%s: the first line is empty", file)
		}
		return line, nil
	}
	if v := os.Getenv(passphraseVar); v != "" {
		return v, nil
	}
	in, ok := p.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return "", errors.New("no terminal to ask for the passphrase: set " + passphraseVar)
	}
	ask := func(text string) (string, error) {
		fmt.Fprint(p.stderr, text)
		b, err := term.ReadPassword(int(in.Fd()))
		fmt.Fprintln(p.stderr)
		return string(b), err
	}
	one, err := ask("Passphrase: ")
	if err != nil || !twice {
		return one, err
	}
	two, err := ask("Once more: ")
	if err != nil {
		return "", err
	}
	if one != two || one == "" {
		return "", errors.New("the passphrases differ, or are empty")
	}
	return one, nil
}
