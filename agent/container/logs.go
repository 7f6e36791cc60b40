package container

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"

	"machine/agent/fault"
	"machine/agent/model"
)

// logConfig checks and translates --log-driver and --log-opt; r is nil when
// only checking.
func logConfig(path string, lc container.LogConfig, r *Record) (model.LogConfig, error) {
	out := model.LogConfig{Driver: lc.Type, Path: path, MaxFiles: 1}
	if lc.Type == "local" {
		out.MaxSize, out.MaxFiles, out.Compress = 20<<20, 5, true
	}
	switch lc.Type {
	case "json-file", "local", "none":
	default:
		return out, fault.Invalid.Errorf("logger: no log driver named '%s' is registered; this engine has json-file, local and none", lc.Type)
	}
	for k, v := range lc.Config {
		var err error
		switch k {
		case "max-size":
			out.MaxSize, err = parseSize(v)
		case "max-file":
			out.MaxFiles, err = strconv.Atoi(v)
			if err == nil && out.MaxFiles < 1 {
				err = fmt.Errorf("at least 1")
			}
		case "compress":
			out.Compress, err = strconv.ParseBool(v)
		case "labels", "labels-regex", "env", "env-regex", "tag", "mode", "max-buffer-size":
		default:
			err = fmt.Errorf("unknown log opt '%s' for %s log driver", k, lc.Type)
		}
		if err != nil {
			return out, fault.Invalid.Errorf("log option %s=%s: %w", k, v, err)
		}
	}
	if out.MaxFiles > 1 && out.MaxSize == 0 && lc.Type == "json-file" {
		return out, fault.Invalid.Errorf("max-file cannot be used without max-size")
	}
	if r != nil && lc.Type == "json-file" {
		if attrs := logAttrs(lc.Config, r); len(attrs) > 0 {
			out.Attrs, _ = json.Marshal(attrs)
		}
	}
	return out, nil
}

// logAttrs are the labels and variables that go with each record.
func logAttrs(opts map[string]string, r *Record) map[string]string {
	out := map[string]string{}
	for k := range strings.SplitSeq(opts["labels"], ",") {
		if v, ok := r.Config.Labels[k]; ok && k != "" {
			out[k] = v
		}
	}
	for k := range strings.SplitSeq(opts["env"], ",") {
		for _, e := range r.Config.Env {
			if n, v, _ := strings.Cut(e, "="); n == k && k != "" {
				out[k] = v
			}
		}
	}
	if t := opts["tag"]; t != "" {
		t = strings.ReplaceAll(t, "{{.ID}}", r.ID[:12])
		t = strings.ReplaceAll(t, "{{.FullID}}", r.ID)
		out["tag"] = strings.ReplaceAll(t, "{{.Name}}", r.Name)
	}
	return out
}

// parseSize reads "10m", "1g", "1024", in bytes; -1 is unlimited.
func parseSize(s string) (int64, error) {
	if s == "-1" {
		return 0, nil
	}
	t := strings.TrimSuffix(strings.ToLower(s), "b")
	mul := int64(1)
	if i := strings.IndexAny(t, "kmgt"); i >= 0 && i == len(t)-1 {
		mul = map[byte]int64{'k': 1 << 10, 'm': 1 << 20, 'g': 1 << 30, 't': 1 << 40}[t[i]]
		t = t[:i]
	}
	n, err := strconv.ParseInt(t, 10, 64)
	if err != nil || n < 0 || n > 1<<50/mul {
		return 0, fmt.Errorf("invalid size: '%s'", s)
	}
	return n * mul, nil
}

// logPath is where the log is: Docker's place for json-file.
func (m *Manager) logPath(r *Record) string {
	if r.HostConfig.LogConfig.Type == "local" {
		return filepath.Join(m.dir(r.ID), "local-logs", "container.log")
	}
	return filepath.Join(m.dir(r.ID), r.ID+"-json.log")
}
