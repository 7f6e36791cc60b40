package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"machine/cli/lifecycle"
)

func (p *program) execCommand() *cli.Command {
	return &cli.Command{Name: "exec", Usage: "Run a command on many machines at once", ArgsUsage: "NAME... -- COMMAND...",
		Description:     "Names may hold * and ?. Each line of output begins with its machine's name. Fails if one fails.",
		SkipFlagParsing: true, Action: p.exec}
}

func (p *program) exec(c *cli.Context) error {
	args := c.Args().Slice()
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
	names, err := p.match(args[:cut])
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
		err = p.m.Shell(ctx, mc, cmd, strings.NewReader(""), out, errs)
		out.flush()
		errs.flush()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
}

// match expands patterns to the names of machines. One that matches nothing is
// an error.
func (p *program) match(patterns []string) ([]string, error) {
	all, err := p.m.Store.Names()
	if err != nil {
		return nil, err
	}
	var names []string
	seen := map[string]bool{}
	for _, pat := range patterns {
		found := false
		for _, n := range all {
			ok, err := path.Match(pat, n)
			if err != nil {
				return nil, fmt.Errorf("pattern %q: %w", pat, err)
			}
			if ok && !seen[n] {
				seen[n] = true
				names = append(names, n)
			}
			found = found || ok
		}
		if !found {
			return nil, fmt.Errorf("no machine is named %q", pat)
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
		Description: "The passphrase is asked for, or taken from " + passphraseVar + ".",
		Flags:       []cli.Flag{&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "file to write instead of standard output"}},
		Action: func(c *cli.Context) error {
			p.infoToStderr = true
			name, err := p.oneName(c)
			if err != nil {
				return err
			}
			pass, err := p.passphrase(true)
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
		Action: func(c *cli.Context) error {
			if c.NArg() < 1 || c.NArg() > 2 {
				return errors.New("import: name the file, and a new name if need be")
			}
			data, err := os.ReadFile(c.Args().First())
			if err != nil {
				return err
			}
			pass, err := p.passphrase(false)
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

func (p *program) passphrase(twice bool) (string, error) {
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
