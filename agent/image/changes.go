package image

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"machine/agent/fault"
)

// ApplyChanges applies Dockerfile instructions to a configuration: those that
// `docker commit --change` and `docker import --change` allow. Invalid for
// any other.
func ApplyChanges(c *dockerspec.DockerOCIImageConfig, changes []string) error {
	// The configuration may be another image's: maps and lists are copied.
	c.Env = append([]string(nil), c.Env...)
	c.ExposedPorts = copyMap(c.ExposedPorts)
	c.Volumes = copyMap(c.Volumes)
	c.Labels = copyMap(c.Labels)
	c.OnBuild = append([]string(nil), c.OnBuild...)
	withCmd := false // an ENTRYPOINT drops the command that it finds
	for _, ch := range changes {
		for line := range strings.SplitSeq(ch, "\n") {
			if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
				continue
			}
			if err := applyChange(c, line); err != nil {
				return fault.Invalid.Errorf("change %q: %w", line, err)
			}
			switch word, _, _ := strings.Cut(strings.ToUpper(line), " "); {
			case word == "CMD":
				withCmd = true
			case word == "ENTRYPOINT" && !withCmd:
				c.Cmd = nil
			}
		}
	}
	return nil
}

func copyMap[V any](m map[string]V) map[string]V {
	if m == nil {
		return nil
	}
	out := make(map[string]V, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

func applyChange(c *dockerspec.DockerOCIImageConfig, line string) error {
	word, rest, _ := strings.Cut(line, " ")
	rest = strings.TrimSpace(rest)
	word = strings.ToUpper(word)
	if rest == "" && word != "CMD" && word != "ENTRYPOINT" {
		return fmt.Errorf("%s requires at least one argument", word)
	}
	switch word {
	case "CMD":
		c.Cmd = command(c, rest)
	case "ENTRYPOINT":
		c.Entrypoint = command(c, rest)
	case "ENV", "LABEL":
		return pairs(c, word, rest)
	case "EXPOSE":
		for _, p := range words(rest) {
			if !strings.Contains(p, "/") {
				p += "/tcp"
			}
			if c.ExposedPorts == nil {
				c.ExposedPorts = map[string]struct{}{}
			}
			c.ExposedPorts[strings.ToLower(p)] = struct{}{}
		}
	case "ONBUILD":
		c.OnBuild = append(c.OnBuild, rest)
	case "USER":
		c.User = rest
	case "VOLUME":
		list := words(rest)
		if j, ok := jsonList(rest); ok {
			list = j
		}
		for _, v := range list {
			if c.Volumes == nil {
				c.Volumes = map[string]struct{}{}
			}
			c.Volumes[v] = struct{}{}
		}
	case "WORKDIR":
		if !strings.HasPrefix(rest, "/") {
			rest = strings.TrimRight(c.WorkingDir, "/") + "/" + rest
		}
		c.WorkingDir = rest
	case "STOPSIGNAL":
		c.StopSignal = rest
	case "SHELL":
		list, ok := jsonList(rest)
		if !ok {
			return fmt.Errorf("SHELL requires the arguments to be in JSON form")
		}
		c.Shell = list
	case "HEALTHCHECK":
		return health(c, rest)
	default:
		return fmt.Errorf("%s is not a valid change command", word)
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
func command(c *dockerspec.DockerOCIImageConfig, s string) []string {
	if list, ok := jsonList(s); ok {
		return list
	}
	if s == "" {
		return nil
	}
	sh := c.Shell
	if len(sh) == 0 {
		sh = []string{"/bin/sh", "-c"}
	}
	return append(append([]string(nil), sh...), s)
}

// words splits at blanks outside of quotes; quotes and backslashes go.
func words(s string) []string {
	var out []string
	var cur strings.Builder
	var quote byte
	in := false
	for i := 0; i < len(s); i++ {
		ch := s[i]
		switch {
		case ch == '\\' && quote != '\'' && i+1 < len(s):
			i++
			cur.WriteByte(s[i])
			in = true
		case quote != 0 && ch == quote:
			quote = 0
		case quote == 0 && (ch == '"' || ch == '\''):
			quote, in = ch, true
		case quote == 0 && (ch == ' ' || ch == '\t'):
			if in {
				out = append(out, cur.String())
				cur.Reset()
				in = false
			}
		default:
			cur.WriteByte(ch)
			in = true
		}
	}
	if in {
		out = append(out, cur.String())
	}
	return out
}

func pairs(c *dockerspec.DockerOCIImageConfig, word, rest string) error {
	list := words(rest)
	if len(list) == 0 {
		return fmt.Errorf("%s names cannot be blank", word)
	}
	if !strings.Contains(list[0], "=") { // the old form: NAME the rest
		name, value, ok := strings.Cut(rest, " ")
		if !ok {
			return fmt.Errorf("%s must have two arguments", word)
		}
		list = []string{name + "=" + strings.TrimSpace(value)}
	}
	for _, p := range list {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return fmt.Errorf("syntax error - can't find = in %q: must be of the form name=value", p)
		}
		if word == "LABEL" {
			if c.Labels == nil {
				c.Labels = map[string]string{}
			}
			c.Labels[k] = v
			continue
		}
		found := false
		for i, e := range c.Env {
			if strings.HasPrefix(e, k+"=") {
				c.Env[i], found = k+"="+v, true
			}
		}
		if !found {
			c.Env = append(c.Env, k+"="+v)
		}
	}
	return nil
}

func health(c *dockerspec.DockerOCIImageConfig, rest string) error {
	h := &dockerspec.HealthcheckConfig{}
	for strings.HasPrefix(rest, "--") {
		var opt string
		opt, rest, _ = strings.Cut(rest, " ")
		rest = strings.TrimSpace(rest)
		name, value, _ := strings.Cut(opt, "=")
		if name == "--retries" {
			if _, err := fmt.Sscan(value, &h.Retries); err != nil || h.Retries < 0 {
				return fmt.Errorf("bad retries %q", value)
			}
			continue
		}
		d, err := time.ParseDuration(value)
		if err != nil || d < 0 {
			return fmt.Errorf("bad duration %q", value)
		}
		switch name {
		case "--interval":
			h.Interval = d
		case "--timeout":
			h.Timeout = d
		case "--start-period":
			h.StartPeriod = d
		case "--start-interval":
			h.StartInterval = d
		default:
			return fmt.Errorf("unknown flag %s", name)
		}
	}
	kind, cmd, _ := strings.Cut(rest, " ")
	cmd = strings.TrimSpace(cmd)
	switch strings.ToUpper(kind) {
	case "NONE":
		h.Test = []string{"NONE"}
	case "CMD":
		if list, ok := jsonList(cmd); ok {
			h.Test = append([]string{"CMD"}, list...)
		} else if cmd != "" {
			h.Test = []string{"CMD-SHELL", cmd}
		} else {
			return fmt.Errorf("missing command after HEALTHCHECK CMD")
		}
	default:
		return fmt.Errorf("unknown type %q in HEALTHCHECK (try CMD)", kind)
	}
	c.Healthcheck = h
	return nil
}
