package image

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"machine/agent/fault"
	"machine/agent/model"
)

// changeCommands are the instructions that make no layer and ask for no file.
var changeCommands = []string{"cmd", "entrypoint", "healthcheck", "env", "expose", "label", "onbuild", "stopsignal", "user", "volume", "workdir"}

// ApplyChanges applies Dockerfile instructions to a configuration: those that
// `docker commit --change` and `docker import --change` allow, with variables
// and continued lines. The words of its errors are Docker's. Invalid for any
// other instruction.
func ApplyChanges(c *dockerspec.DockerOCIImageConfig, changes []string) error {
	// The configuration may be another image's: maps and lists are copied.
	c.Env = slices.Clone(c.Env)
	c.ExposedPorts = maps.Clone(c.ExposedPorts)
	c.Volumes = maps.Clone(c.Volumes)
	c.Labels = maps.Clone(c.Labels)
	c.OnBuild = slices.Clone(c.OnBuild)
	if len(changes) == 0 {
		return nil
	}
	file, err := parser.Parse(strings.NewReader(strings.Join(changes, "\n")))
	if err != nil {
		return invalid(err)
	}
	for _, n := range file.AST.Children { // all are known before the first is applied
		if !slices.Contains(changeCommands, strings.ToLower(n.Value)) {
			return fault.Invalid.Errorf("%s is not a valid change command", strings.ToLower(n.Value))
		}
	}
	e := &editor{c: c, lex: shell.NewLex(file.EscapeToken)}
	for _, n := range file.AST.Children {
		if err := e.apply(n); err != nil {
			return invalid(err)
		}
	}
	return nil
}

// invalid has the words of an error alone: the parser's tell of lines of a
// file that nobody wrote.
func invalid(err error) error {
	var at *parser.LocationError
	if errors.As(err, &at) {
		err = at.Unwrap()
	}
	return fault.Invalid.Errorf("%w", err)
}

// An editor applies instructions to a configuration.
type editor struct {
	c       *dockerspec.DockerOCIImageConfig
	lex     *shell.Lex
	withCmd bool // an ENTRYPOINT drops the command that it finds
}

func (e *editor) apply(n *parser.Node) error {
	cmd, err := instructions.ParseCommand(n)
	if err != nil {
		return err
	}
	env := shell.EnvsFromSlice(slices.Clone(e.c.Env)) // as it was before the instruction
	if x, ok := cmd.(instructions.SupportsSingleWordExpansion); ok {
		err := x.Expand(func(word string) (string, error) {
			out, _, err := e.lex.ProcessWord(word, env)
			return out, err
		})
		if err != nil {
			return err
		}
	}
	switch i := cmd.(type) {
	case *instructions.EnvCommand:
		for _, kv := range i.Env {
			e.setEnv(kv.Key, kv.Value)
		}
	case *instructions.LabelCommand:
		for _, kv := range i.Labels {
			set(&e.c.Labels, kv.Key, kv.Value)
		}
	case *instructions.ExposeCommand:
		return e.expose(i.Ports, env)
	case *instructions.VolumeCommand:
		for _, v := range i.Volumes {
			set(&e.c.Volumes, v, struct{}{})
		}
	case *instructions.CmdCommand:
		e.c.Cmd = e.command(i.ShellDependantCmdLine)
		e.withCmd = e.withCmd || len(i.CmdLine) > 0
	case *instructions.EntrypointCommand:
		e.c.Entrypoint = e.command(i.ShellDependantCmdLine)
		if !e.withCmd {
			e.c.Cmd = nil
		}
	case *instructions.OnbuildCommand:
		e.c.OnBuild = append(e.c.OnBuild, i.Expression)
	case *instructions.HealthCheckCommand:
		e.c.Healthcheck = i.Health
	default:
		return e.single(cmd)
	}
	return nil
}

// single is an instruction of one argument.
func (e *editor) single(cmd instructions.Command) error {
	switch i := cmd.(type) {
	case *instructions.UserCommand:
		e.c.User = i.User
	case *instructions.WorkdirCommand:
		if e.c.WorkingDir, i.Path = i.Path, e.c.WorkingDir; !path.IsAbs(e.c.WorkingDir) {
			e.c.WorkingDir = path.Join("/", i.Path, e.c.WorkingDir)
		}
	case *instructions.StopSignalCommand:
		if _, err := model.ParseSignal(i.Signal); err != nil {
			return err
		}
		e.c.StopSignal = i.Signal
	}
	return nil
}

// command is the exec form as it is, or the shell form in a shell.
func (e *editor) command(line instructions.ShellDependantCmdLine) []string {
	if !line.PrependShell || line.CmdLine == nil {
		return line.CmdLine
	}
	sh := e.c.Shell
	if len(sh) == 0 {
		sh = []string{"/bin/sh", "-c"}
	}
	return slices.Concat(sh, line.CmdLine)
}

func (e *editor) setEnv(k, v string) {
	i := slices.IndexFunc(e.c.Env, func(o string) bool { name, _, _ := strings.Cut(o, "="); return name == k })
	if i < 0 {
		e.c.Env = append(e.c.Env, k+"="+v)
	} else {
		e.c.Env[i] = k + "=" + v
	}
}

func set[V any](m *map[string]V, k string, v V) {
	if *m == nil {
		*m = map[string]V{}
	}
	(*m)[k] = v
}

func (e *editor) expose(words []string, env shell.EnvGetter) error {
	for _, w := range words {
		all, err := e.lex.ProcessWords(w, env) // one variable may hold several
		if err != nil {
			return err
		}
		for _, p := range all {
			if err := e.ports(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// ports is PORT[-PORT][/PROTOCOL].
func (e *editor) ports(spec string) error {
	port, proto, ok := strings.Cut(strings.ToLower(spec), "/")
	if !ok || proto == "" {
		proto = "tcp"
	}
	if proto != "tcp" && proto != "udp" && proto != "sctp" {
		return fmt.Errorf("invalid proto: %s", proto)
	}
	low, high, ok := strings.Cut(port, "-")
	if !ok {
		high = low
	}
	from, err := strconv.ParseUint(low, 10, 16)
	to, err2 := strconv.ParseUint(high, 10, 16)
	if err != nil || err2 != nil || to < from {
		return fmt.Errorf("invalid containerPort: %s", port)
	}
	for n := from; n <= to; n++ {
		set(&e.c.ExposedPorts, fmt.Sprintf("%d/%s", n, proto), struct{}{})
	}
	return nil
}
