package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"machine/cli/lifecycle"
	"machine/drivers"
)

func (p *program) sshCommand() *cli.Command {
	return &cli.Command{Name: "ssh", Usage: "Log in on a machine, or run a command there", ArgsUsage: "[NAME] [SSH OPTIONS] [COMMAND]",
		Description:     "Of ssh's options, -A, -D, -i, -J, -L, -l, -N, -n, -p, -R, -T and -t\nwork everywhere; for others, or with --native-ssh=false before ssh, the ssh program is run.\n" + defaultText,
		SkipFlagParsing: true, HideHelp: true, Action: p.ssh}
}

func (p *program) ssh(c *cli.Context) error {
	args := c.Args().Slice()
	if len(args) > 0 && (args[0] == "-h" || args[0] == "--help" || args[0] == "-help") {
		return cli.ShowCommandHelp(parent(c), "ssh")
	}
	name := defaultName
	if len(args) > 0 {
		name, args = args[0], args[1:]
	} else if !p.m.Store.Exists(defaultName) {
		return errNoName
	}
	mc, err := p.m.Load(name)
	if err != nil {
		return err
	}
	defer func() { _ = mc.Close() }()
	st, err := mc.Driver.State(c.Context)
	if err != nil {
		return err
	}
	if st != drivers.Running {
		return fmt.Errorf("Error: Cannot run SSH command: Host %q is not running", name) //nolint:staticcheck // docker-machine's words
	}
	line, native := parseSSH(args)
	bin, missing := exec.LookPath("ssh")
	system := c.IsSet("native-ssh") && !c.Bool("native-ssh")
	if missing != nil && (system || !native) {
		return fmt.Errorf("ssh: these options need the ssh program: %w", missing)
	}
	if native && !system {
		line.Stdin, line.Stdout, line.Stderr = p.stdin, p.stdout, p.stderr
		return p.sshStatus(p.m.Login(c.Context, mc, line))
	}
	argv, err := p.sshOptions(c.Context, mc)
	if err != nil {
		return err
	}
	return p.sshStatus(p.run(c.Context, bin, append(argv, args...)...))
}

// sshOptions are for the computer's own ssh, and say where to. The host's key
// is checked against the machine's file: what it first showed is what it has to
// show.
func (p *program) sshOptions(ctx context.Context, mc *lifecycle.Machine) ([]string, error) {
	conf, err := mc.SSH(ctx)
	if err != nil {
		return nil, err
	}
	strict := "yes"
	if _, err := os.Stat(conf.KnownHosts); err != nil {
		strict = "accept-new" // a machine of docker-machine's
	}
	file, host, err := mc.JumpConfig(conf)
	if err != nil {
		return nil, err
	}
	if file == "" {
		file = os.DevNull
	}
	opts := []string{"-F", file, "-o", "ConnectionAttempts=3", "-o", "ConnectTimeout=10", "-o", "ControlMaster=no",
		"-o", "ControlPath=none", "-o", "LogLevel=ERROR", "-o", "PasswordAuthentication=no", "-o", "ServerAliveInterval=60",
		"-o", "StrictHostKeyChecking=" + strict, "-o", "UserKnownHostsFile=" + lifecycle.SSHQuote(conf.KnownHosts),
		"-o", "GlobalKnownHostsFile=" + os.DevNull, "-o", "HostKeyAlias=" + conf.Alias, "-o", "CheckHostIP=no"}
	if conf.Key != "" {
		opts = append(opts, "-o", "IdentitiesOnly=yes", "-i", conf.Key)
	}
	return append(opts, "-p", strconv.Itoa(conf.Port), conf.User+"@"+host), nil
}

// run runs a program on our streams. Ctrl-C reaches it by the terminal.
func (p *program) run(ctx context.Context, bin string, args ...string) error {
	p.m.Log.Debug("run", "program", bin, "args", args)
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.stdin, p.stdout, p.stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	return cmd.Run()
}

// sshStatus makes the remote status ours; docker-machine always says 1.
func (p *program) sshStatus(err error) error {
	status, failed := lifecycle.ExitStatus(err)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		status, failed = exit.ExitCode(), true
	}
	if !failed {
		return err
	}
	if p.name == "docker-machine" || status < 1 {
		return fmt.Errorf("exit status %d", status)
	}
	return &codeError{status, fmt.Errorf("exit status %d", status)}
}

func (p *program) mountCommand() *cli.Command {
	return &cli.Command{Name: "mount", Usage: "Mount a machine's folder here, with sshfs", ArgsUsage: "[NAME:]PATH [MOUNTPOINT]",
		Description: "PATH is on the machine, MOUNTPOINT here (default: the same path).\n" + defaultText,
		Flags:       []cli.Flag{&cli.BoolFlag{Name: "unmount", Aliases: []string{"u"}, Usage: "End the mount"}},
		Action:      p.mount}
}

func (p *program) mount(c *cli.Context) error {
	if c.NArg() < 1 || c.NArg() > 2 {
		_ = cli.ShowCommandHelp(parent(c), "mount")
		return errors.New("Improper number of arguments") //nolint:staticcheck // docker-machine's words
	}
	name, path, ok := strings.Cut(c.Args().First(), ":")
	if !ok {
		name, path = defaultName, name
	}
	point := c.Args().Get(1)
	if point == "" {
		point = path
	}
	if c.Bool("unmount") {
		return p.unmount(c.Context, point)
	}
	bin, err := exec.LookPath("sshfs")
	if err != nil {
		return fmt.Errorf("mount: %w: install sshfs", err)
	}
	mc, err := p.m.Load(name)
	if err != nil {
		return err
	}
	defer func() { _ = mc.Close() }()
	conf, err := mc.SSH(c.Context)
	if err != nil {
		return err
	}
	file, host, err := mc.JumpConfig(conf)
	if err != nil {
		return err
	}
	args := []string{"-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile=" + lifecycle.SSHQuote(conf.KnownHosts),
		"-o", "HostKeyAlias=" + conf.Alias, "-p", strconv.Itoa(conf.Port)}
	if conf.Key != "" {
		args = append(args, "-o", "IdentitiesOnly=yes", "-o", "IdentityFile="+conf.Key)
	}
	if file != "" {
		args = append(args, "-F", file)
	}
	if strings.Contains(host, ":") { // else sshfs takes its end for the path
		host = "[" + host + "]"
	}
	return p.run(c.Context, bin, append(args, conf.User+"@"+host+":"+path, point)...)
}

// unmount ends a mount as FUSE's user, or, where FUSE has no program for that,
// with the system's own.
func (p *program) unmount(ctx context.Context, point string) error {
	for _, name := range []string{"fusermount", "fusermount3"} {
		if bin, err := exec.LookPath(name); err == nil {
			return p.run(ctx, bin, "-u", point)
		}
	}
	bin, err := exec.LookPath("umount")
	if err != nil {
		return fmt.Errorf("mount: %w: install fuse", err)
	}
	return p.run(ctx, bin, point)
}
