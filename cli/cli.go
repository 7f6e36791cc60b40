// Package cli is the command line: a file for each command, which parses its
// flags, calls cli/lifecycle and prints. Names, flags, messages and exit codes
// are docker-machine's.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"

	"machine/cli/lifecycle"
	"machine/cli/store"
	"machine/drivers"
	"machine/drivers/all"
)

// Version and Commit are set by the linker.
var (
	Version = "dev"
	Commit  = "HEAD"
)

// Exit codes beside 0 and 1.
const (
	exitPreCreate = 3
	exitHostKey   = 5 // the host shows another key than at first contact
	exitSignal    = 130
)

// program is one run.
type program struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	argv           []string // as it was given
	name           string   // base of argv[0]
	debug          bool
	infoToStderr   bool // env and config print only results on stdout
	m              *lifecycle.Manager
	mu             sync.Mutex
	usageFailed    bool
	found          drivers.Kind // the plugin of this run's create
}

// codeError is an error with an exit code; an empty text prints nothing.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *codeError) Unwrap() error { return e.err }

// Run runs one command line and returns the exit code. args[0] is the
// program's name.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		args = []string{"machine"}
	}
	p := &program{stdin: stdin, stdout: stdout, stderr: stderr, argv: args}
	p.name = strings.TrimSuffix(filepath.Base(args[0]), ".exe")
	if code, served := servePlugin(ctx, p.name, stdout); served {
		return code
	}
	app := p.app()
	args, err := p.arrange(app, args)
	if err == nil {
		err = app.RunContext(ctx, args)
	}
	return p.exitCode(ctx, err)
}

func (p *program) exitCode(ctx context.Context, err error) int {
	if p.usageFailed {
		// docker-machine answers 0 to wrong flags; scripts of its time may
		// count on that, others are better served by the truth.
		if p.name == "docker-machine" && !p.isCreate() {
			return 0
		}
		return 1
	}
	if err == nil {
		return 0
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(p.stderr, text)
	}
	var coded *codeError
	var pre *lifecycle.PreCreateError
	switch {
	case errors.As(err, &coded):
		return coded.code
	case errors.As(err, &pre):
		return exitPreCreate
	case lifecycle.HostKeyChanged(err):
		return exitHostKey
	case ctx.Err() != nil:
		return exitSignal
	}
	return 1
}

func (p *program) isCreate() bool {
	for _, a := range p.argv[1:] {
		if a == "create" {
			return true
		}
	}
	return false
}

func (p *program) app() *cli.App {
	app := cli.NewApp()
	app.Name = p.name
	app.HelpName = p.name
	app.Usage = "Create and manage machines that run containers"
	app.Version = Version + ", build " + Commit
	app.Writer, app.ErrWriter = p.stdout, p.stderr
	app.HideVersion = false
	app.DisableSliceFlagSeparator = true
	app.ExitErrHandler = func(*cli.Context, error) {}
	app.OnUsageError = p.usageError
	app.Before = p.before
	app.CommandNotFound = nil
	app.Flags = globalFlags()
	app.Commands = p.commands()
	sort.Slice(app.Commands, func(i, j int) bool { return app.Commands[i].Name < app.Commands[j].Name })
	plainSwitches(app.Flags)
	for _, c := range app.Commands {
		c.OnUsageError = p.usageError
		plainSwitches(c.Flags)
		if c.Name != "ssh" {
			c.HideHelpCommand = true
		}
	}
	app.Action = func(c *cli.Context) error {
		if c.Args().Present() {
			return fmt.Errorf("%s: '%s' is not a %s command. See '%s --help'.", p.name, c.Args().First(), p.name, p.argv[0]) //nolint:staticcheck // docker-machine's words
		}
		return cli.ShowAppHelp(c)
	}
	return app
}

// plainSwitches keeps "(default: false)" out of the help.
func plainSwitches(flags []cli.Flag) {
	for _, f := range flags {
		if b, ok := f.(*cli.BoolFlag); ok && !b.Value {
			b.DisableDefaultText = true
		}
	}
}

func globalFlags() []cli.Flag {
	str := func(name, usage string) cli.Flag {
		return &cli.StringFlag{Name: name, Usage: usage, EnvVars: []string{"MACHINE_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))}}
	}
	return []cli.Flag{
		&cli.BoolFlag{Name: "debug", Aliases: []string{"D"}, Usage: "Tell what is done, on standard error"},
		&cli.StringFlag{Name: "storage-path", Aliases: []string{"s"}, EnvVars: []string{"MACHINE_STORAGE_PATH"}, Value: defaultStore(), Usage: "Folder of the machines and certificates"},
		str("tls-ca-cert", "CA's certificate (default: certs/ca.pem of the storage path)"),
		str("tls-ca-key", "CA's key, which signs certificates (default: certs/ca-key.pem there)"),
		str("tls-client-cert", "Client's certificate (default: certs/cert.pem there)"),
		str("tls-client-key", "Client's key (default: certs/key.pem there)"),
		str("github-api-token", "Accepted and ignored: nothing is downloaded from there"),
		&cli.BoolFlag{Name: "native-ssh", EnvVars: []string{"MACHINE_NATIVE_SSH"}, Value: true, Usage: "Use the SSH client inside; --native-ssh=false takes the ssh program"},
		str("bugsnag-api-token", "Accepted and ignored: no crash report is ever sent"),
		&cli.StringFlag{Name: "secret-namespace", Hidden: true, Usage: "Rancher's, accepted when empty"},
		&cli.StringFlag{Name: "secret-name", Hidden: true, Usage: "Rancher's, accepted when empty"},
	}
}

func defaultStore() string {
	home, err := os.UserHomeDir()
	if err != nil {
		home = "."
	}
	return filepath.Join(home, ".docker", "machine")
}

// dockerDir is the docker client's folder.
func dockerDir() string {
	if d := os.Getenv("DOCKER_CONFIG"); d != "" {
		return d
	}
	return filepath.Dir(defaultStore())
}

// before opens the store with the global flags.
func (p *program) before(c *cli.Context) error {
	if v := os.Getenv("MACHINE_DEBUG"); v != "" {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return fmt.Errorf("MACHINE_DEBUG=%q is not a boolean", v)
		}
		p.debug = b
	}
	p.debug = p.debug || c.Bool("debug")
	if c.String("secret-name") != "" {
		return errors.New("--secret-name: machines are not kept in Kubernetes secrets; leave it empty, and keep the folder of --storage-path")
	}
	st, err := store.Open(c.String("storage-path"))
	if err != nil {
		return err
	}
	level := slog.LevelWarn
	if p.debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: level}))
	p.m = &lifecycle.Manager{
		Store: st, Kinds: all.Kinds(), Log: log, Say: p.say,
		Certs: lifecycle.CertPaths{CA: c.String("tls-ca-cert"), CAKey: c.String("tls-ca-key"),
			Cert: c.String("tls-client-cert"), Key: c.String("tls-client-key")},
	}
	p.m.Find = p.findPlugin
	p.m.KeepAgents()
	p.m.DockerDir, p.m.AgentVersion = dockerDir(), Version
	return nil
}

// say prints a line of progress, as docker-machine does on stdout.
func (p *program) say(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.stdout
	if p.infoToStderr {
		w = p.stderr
	}
	fmt.Fprintf(w, format+"\n", args...)
}

func (p *program) usageError(c *cli.Context, err error, _ bool) error {
	p.usageFailed = true
	fmt.Fprintln(p.stdout, "Incorrect Usage.")
	fmt.Fprintln(p.stdout)
	if c.Command != nil && c.Command.Name != "" && c.Command.Name != p.name {
		_ = cli.ShowCommandHelp(parent(c), c.Command.Name)
	} else {
		_ = cli.ShowAppHelp(c)
	}
	fmt.Fprintln(p.stderr, err)
	return err
}

func parent(c *cli.Context) *cli.Context {
	if l := c.Lineage(); len(l) > 1 && l[1] != nil && l[1].App != nil {
		return l[1]
	}
	return c
}

func (p *program) commands() []*cli.Command {
	return []*cli.Command{
		p.activeCommand(), p.configCommand(), p.createCommand(), p.envCommand(), p.inspectCommand(),
		p.ipCommand(), p.killCommand(), p.lsCommand(), p.mountCommand(), p.provisionCommand(),
		p.regenerateCommand(), p.restartCommand(), p.rmCommand(), p.scpCommand(), p.sshCommand(),
		p.startCommand(), p.statusCommand(), p.stopCommand(), p.upgradeCommand(), p.urlCommand(),
		p.versionCommand(), p.renameCommand(), p.certificatesCommand(), p.applyCommand(), p.planCommand(), p.downCommand(), p.execCommand(),
		p.exportCommand(), p.importCommand(), p.completionCommand(),
	}
}
