package cli

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/urfave/cli/v2"

	"machine/cli/lifecycle"
)

const sep = string(os.PathSeparator)

// errShell goes with the hint on stdout.
var errShell = errors.New("Error: Unknown shell") //nolint:staticcheck // docker-machine's words

func (p *program) envCommand() *cli.Command {
	return &cli.Command{Name: "env", Usage: "Print the commands that let the docker client use a machine", ArgsUsage: "[NAME]",
		Description: defaultText,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "swarm", Usage: "For the classic Swarm master instead of the engine"},
			&cli.StringFlag{Name: "shell", Usage: "For this shell: bash, zsh, fish, cmd, powershell, tcsh or emacs (default: the one that is used)"},
			&cli.BoolFlag{Name: "unset", Aliases: []string{"u"}, Usage: "Print the commands that undo it"},
			&cli.BoolFlag{Name: "no-proxy", Usage: "Add the machine's address to NO_PROXY"},
		},
		Action: p.env}
}

// A variable of the environment, in the order of printing.
type variable struct{ name, value string }

func (p *program) env(c *cli.Context) error {
	p.infoToStderr = true
	shell := c.String("shell")
	if shell == "" {
		var ok bool
		if shell, ok = detectShell(); !ok {
			fmt.Fprintf(p.stdout, "The default lines below are for a sh/bash shell, you can specify the shell you're using, with the --shell flag.\n\n")
			return errShell
		}
	}
	var vars []variable
	if c.Bool("unset") {
		if c.NArg() != 0 {
			return errors.New("Error: Expected no machine name when the -u flag is present") //nolint:staticcheck // docker-machine's words
		}
		vars = []variable{{"DOCKER_TLS_VERIFY", ""}, {"DOCKER_HOST", ""}, {"DOCKER_CERT_PATH", ""}, {"DOCKER_MACHINE_NAME", ""}}
		if c.Bool("no-proxy") {
			name, _ := proxyVar()
			vars = append(vars, variable{name, ""})
		}
		p.printEnv(shell, vars, true)
		return nil
	}
	mc, err := p.load(c)
	if err != nil {
		return err
	}
	defer func() { _ = mc.Close() }()
	host, err := p.connect(c.Context, mc, c.Bool("swarm"))
	if err != nil {
		return fmt.Errorf("Error checking TLS connection: %w", err) //nolint:staticcheck // docker-machine's words
	}
	vars = []variable{
		{"DOCKER_TLS_VERIFY", "1"}, {"DOCKER_HOST", host},
		{"DOCKER_CERT_PATH", p.m.Store.MachineDir(mc.Name)}, {"DOCKER_MACHINE_NAME", mc.Name},
	}
	if runtime.GOOS == "windows" {
		vars = append(vars, variable{"COMPOSE_CONVERT_WINDOWS_PATHS", "true"})
	}
	if c.Bool("no-proxy") {
		name, value := proxyVar()
		ip, err := mc.IP(c.Context)
		if err != nil {
			return err
		}
		if value == "" {
			value = ip
		} else if !strings.Contains(value, ip) {
			value += "," + ip
		}
		vars = append(vars, variable{name, value})
	}
	p.printEnv(shell, vars, false)
	return nil
}

// proxyVar prefers the lower-case variable if it is set.
func proxyVar() (name, value string) {
	if v := os.Getenv("no_proxy"); v != "" {
		return "no_proxy", v
	}
	return "NO_PROXY", os.Getenv("NO_PROXY")
}

func detectShell() (string, bool) {
	if s := os.Getenv("SHELL"); s != "" {
		return filepath.Base(s), true
	}
	if runtime.GOOS == "windows" {
		if os.Getenv("PSModulePath") != "" && os.Getenv("PROMPT") == "" {
			return "powershell", true
		}
		return "cmd", true
	}
	return "", false
}

// A dialect is how a shell sets (%s, %s) and unsets (%s) variables.
type dialect struct{ set, unset string }

var dialects = map[string]dialect{
	"":           {"export %s=\"%s\"", "unset %s"},
	"fish":       {"set -gx %s \"%s\";", "set -e %s;"},
	"cmd":        {"SET %s=%s", "SET %s="},
	"powershell": {"$Env:%s = \"%s\"", `Remove-Item Env:\\%s`},
	"tcsh":       {"setenv %s \"%s\";", "unsetenv %s;"},
	"emacs":      {`(setenv "%s" "%s")`, `(setenv "%s" nil)`},
}

func (p *program) printEnv(shell string, vars []variable, unset bool) {
	d, ok := dialects[shell]
	if !ok {
		d = dialects[""]
	}
	for _, v := range vars {
		if unset {
			fmt.Fprintf(p.stdout, d.unset+"\n", v.name)
		} else {
			fmt.Fprintf(p.stdout, d.set+"\n", v.name, v.value)
		}
	}
	fmt.Fprint(p.stdout, p.envHint(shell))
}

// envHint tells how to use the output.
func (p *program) envHint(shell string) string {
	argv := append([]string{}, p.argv...)
	if strings.ContainsAny(argv[0], ` \`) {
		argv[0] = `"` + argv[0] + `"`
	}
	line := strings.Join(argv, " ")
	const text = "Run this command to configure your shell: "
	switch shell {
	case "fish":
		return "# " + text + "\n# eval (" + line + ")\n"
	case "powershell":
		return "# " + text + "\n# & " + line + " | Invoke-Expression\n"
	case "cmd":
		return "REM " + text + "\nREM \t@FOR /f \"tokens=*\" %i IN ('" + line + "') DO @%i\n"
	case "emacs":
		return ";; " + text + "\n;; (with-temp-buffer (shell-command \"" + line + "\" (current-buffer)) (eval-buffer))\n"
	case "tcsh":
		return ": " + text + "\n: eval `" + line + "`\n"
	}
	return "# " + text + "\n# eval $(" + line + ")\n"
}

// swarmURL is the machine's address with the port of its swarm master.
func swarmURL(mc *lifecycle.Machine, raw string) (string, error) {
	sw := mc.HostOptions.SwarmOptions
	if !sw.Master {
		return "", fmt.Errorf("%q is not a swarm master. The --swarm flag is intended for use with swarm masters", mc.Name)
	}
	u, err := url.Parse(raw)
	if err != nil {
		return "", err
	}
	s, err := url.Parse(sw.Host)
	if err != nil {
		return "", err
	}
	u.Host = net.JoinHostPort(u.Hostname(), s.Port())
	return u.String(), nil
}
