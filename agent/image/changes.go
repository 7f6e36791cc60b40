package image

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"machine/agent/fault"
	"machine/agent/model"
)

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
	lines := joinLines(strings.Join(changes, "\n"))
	if len(lines) == 0 {
		return fault.Invalid.Errorf("file with no instructions")
	}
	e := &editor{c: c}
	for _, line := range lines { // all are known before the first is applied
		if word, _, _ := cutBlank(line); e.instruction(word) == nil {
			return fault.Invalid.Errorf("%s is not a valid change command", strings.ToLower(word))
		}
	}
	for _, line := range lines {
		word, rest, _ := cutBlank(line)
		if err := e.instruction(word)(strings.ToUpper(word), rest); err != nil {
			return fault.Invalid.Errorf("%w", err)
		}
	}
	return nil
}

var continued = regexp.MustCompile(`\\[ \t]*$`)

// joinLines gives the instructions of a text: without comments and empty
// lines, continued lines made one.
func joinLines(text string) []string {
	var out []string
	var open strings.Builder
	for line := range strings.SplitSeq(text, "\n") {
		trimmed := strings.TrimSpace(line)
		if trimmed == "" || trimmed[0] == '#' {
			continue
		}
		if open.Len() == 0 {
			line = strings.TrimLeft(line, " \t")
		}
		line = strings.TrimRight(line, "\r")
		if m := continued.FindStringIndex(line); m != nil {
			open.WriteString(line[:m[0]])
			continue
		}
		open.WriteString(line)
		out = append(out, strings.TrimSpace(open.String()))
		open.Reset()
	}
	if open.Len() > 0 {
		out = append(out, strings.TrimSpace(open.String()))
	}
	return out
}

func cutBlank(s string) (first, rest string, ok bool) {
	i := strings.IndexAny(s, " \t")
	if i < 0 {
		return s, "", false
	}
	return s[:i], strings.TrimSpace(s[i:]), true
}

// An editor applies instructions to a configuration.
type editor struct {
	c       *dockerspec.DockerOCIImageConfig
	withCmd bool // an ENTRYPOINT drops the command that it finds
}

func (e *editor) instruction(word string) func(word, rest string) error {
	switch strings.ToUpper(word) {
	case "CMD":
		return e.cmd
	case "ENTRYPOINT":
		return e.entrypoint
	case "ENV", "LABEL":
		return e.pairs
	case "EXPOSE":
		return e.expose
	case "ONBUILD":
		return e.onbuild
	case "USER", "WORKDIR", "STOPSIGNAL":
		return e.single
	case "VOLUME":
		return e.volume
	case "HEALTHCHECK":
		return e.health
	}
	return nil
}

func jsonList(s string) ([]string, bool) {
	var list []string
	if !strings.HasPrefix(s, "[") || json.Unmarshal([]byte(s), &list) != nil {
		return nil, false
	}
	return list, true
}

// command is the exec form as it is, or the shell form in a shell.
func (e *editor) command(s string) []string {
	if list, ok := jsonList(s); ok {
		return list
	}
	sh := e.c.Shell
	if len(sh) == 0 {
		sh = []string{"/bin/sh", "-c"}
	}
	if s == "" {
		return slices.Clone(sh)
	}
	return append(slices.Clone(sh), s)
}

func (e *editor) cmd(_, rest string) error {
	e.c.Cmd = e.command(rest)
	e.withCmd = e.withCmd || rest != ""
	return nil
}

func (e *editor) entrypoint(_, rest string) error {
	e.c.Entrypoint = nil
	if rest != "" {
		e.c.Entrypoint = e.command(rest)
	}
	if !e.withCmd {
		e.c.Cmd = nil
	}
	return nil
}

// pairs is ENV and LABEL.
func (e *editor) pairs(word, rest string) error {
	list := splitWords(rest)
	if len(list) == 0 {
		return fmt.Errorf("%s requires at least one argument", word)
	}
	if !strings.Contains(list[0], "=") { // the old form: NAME the rest
		name, value, ok := cutBlank(rest)
		if !ok {
			return fmt.Errorf("%s must have two arguments", word)
		}
		list = []string{name + "=" + value}
	}
	env := e.c.Env // as it was before the instruction
	var done [][2]string
	for _, p := range list {
		k, v, ok := strings.Cut(p, "=")
		if !ok {
			return fmt.Errorf("Syntax error - can't find = in %q. Must be of the form: name=value", p) //nolint:staticcheck // Docker's words
		}
		k, err := expand(k, env)
		if err != nil {
			return err
		}
		if k == "" {
			return fmt.Errorf("%s names can not be blank", word)
		}
		if v, err = expand(v, env); err != nil {
			return err
		}
		done = append(done, [2]string{k, v})
	}
	for _, kv := range done {
		if word == "LABEL" {
			set(&e.c.Labels, kv[0], kv[1])
		} else {
			e.setEnv(kv[0], kv[1])
		}
	}
	return nil
}

func (e *editor) setEnv(k, v string) {
	env := slices.Clone(e.c.Env)
	i := slices.IndexFunc(env, func(o string) bool { name, _, _ := strings.Cut(o, "="); return name == k })
	if i < 0 {
		env = append(env, k+"="+v)
	} else {
		env[i] = k + "=" + v
	}
	e.c.Env = env
}

func set[V any](m *map[string]V, k string, v V) {
	if *m == nil {
		*m = map[string]V{}
	}
	(*m)[k] = v
}

func (e *editor) expose(word, rest string) error {
	words := splitWords(rest)
	if len(words) == 0 {
		return fmt.Errorf("%s requires at least one argument", word)
	}
	for _, w := range words {
		all, err := expand(w, e.c.Env)
		if err != nil {
			return err
		}
		for _, p := range strings.Fields(all) { // one variable may hold several
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

// single is an instruction of one argument, which is all of the line.
func (e *editor) single(word, rest string) error {
	if rest == "" {
		return fmt.Errorf("%s requires exactly one argument", word)
	}
	v, err := expand(rest, e.c.Env)
	if err != nil {
		return err
	}
	switch word {
	case "USER":
		e.c.User = v
	case "WORKDIR":
		if !path.IsAbs(v) {
			v = path.Join("/", e.c.WorkingDir, v)
		}
		e.c.WorkingDir = v
	case "STOPSIGNAL":
		if _, err := model.ParseSignal(v); err != nil {
			return err
		}
		e.c.StopSignal = v
	}
	return nil
}

func (e *editor) onbuild(word, rest string) error {
	if rest == "" {
		return fmt.Errorf("%s requires at least one argument", word)
	}
	trigger, _, _ := cutBlank(rest)
	switch trigger = strings.ToUpper(trigger); trigger {
	case "ONBUILD":
		return fmt.Errorf("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed") //nolint:staticcheck // Docker's words
	case "MAINTAINER", "FROM":
		return fmt.Errorf("%s isn't allowed as an ONBUILD trigger", trigger)
	}
	e.c.OnBuild = append(slices.Clone(e.c.OnBuild), rest)
	return nil
}

func (e *editor) volume(word, rest string) error {
	list, ok := jsonList(rest)
	if !ok {
		list = splitWords(rest)
	}
	if len(list) == 0 {
		return fmt.Errorf("%s requires at least one argument", word)
	}
	for _, w := range list {
		v, err := expand(w, e.c.Env)
		if err != nil {
			return err
		}
		if v = strings.TrimSpace(v); v == "" {
			return fmt.Errorf("VOLUME specified can not be an empty string")
		}
		set(&e.c.Volumes, v, struct{}{})
	}
	return nil
}

func (e *editor) health(word, rest string) error {
	h := &dockerspec.HealthcheckConfig{}
	for strings.HasPrefix(rest, "--") {
		var opt string
		opt, rest, _ = cutBlank(rest)
		name, value, _ := strings.Cut(strings.TrimPrefix(opt, "--"), "=")
		if err := healthFlag(h, name, value); err != nil {
			return err
		}
	}
	kind, cmd, _ := cutBlank(rest)
	switch strings.ToUpper(kind) {
	case "":
		return fmt.Errorf("%s requires at least one argument", word)
	case "NONE":
		if cmd != "" {
			return fmt.Errorf("HEALTHCHECK NONE takes no arguments")
		}
		h = &dockerspec.HealthcheckConfig{Test: []string{"NONE"}}
	case "CMD":
		if list, ok := jsonList(cmd); ok && len(list) > 0 {
			h.Test = append([]string{"CMD"}, list...)
		} else if cmd != "" && !ok {
			h.Test = []string{"CMD-SHELL", cmd}
		} else {
			return fmt.Errorf("Missing command after HEALTHCHECK CMD") //nolint:staticcheck // Docker's words
		}
	default:
		return fmt.Errorf("Unknown type %#v in HEALTHCHECK (try CMD)", strings.ToUpper(kind)) //nolint:staticcheck // Docker's words
	}
	e.c.Healthcheck = h
	return nil
}

func healthFlag(h *dockerspec.HealthcheckConfig, name, value string) (err error) {
	to := map[string]*time.Duration{"interval": &h.Interval, "timeout": &h.Timeout, "start-period": &h.StartPeriod, "start-interval": &h.StartInterval}[name]
	switch {
	case name == "retries":
		if h.Retries, err = strconv.Atoi(value); err == nil && h.Retries < 0 {
			err = fmt.Errorf("--retries cannot be negative (%d)", h.Retries)
		}
		return err
	case to == nil:
		return fmt.Errorf("unknown flag: %s", name)
	}
	if *to, err = time.ParseDuration(value); err != nil {
		return err
	}
	if d := *to; d != 0 && d < time.Millisecond {
		return fmt.Errorf("Interval %q cannot be less than 1ms", name) //nolint:staticcheck // Docker's words
	}
	return nil
}
