package volume

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	apivolume "github.com/moby/moby/api/types/volume"

	"machine/agent/fault"
)

// Filters are the API's filters: key to its values.
type Filters map[string][]string

// List returns the volumes in the order of their names. Filters: dangling,
// driver, label, name.
func (m *Manager) List(f Filters) (apivolume.ListResponse, error) {
	out := apivolume.ListResponse{Volumes: []apivolume.Volume{}, Warnings: []string{}}
	for k := range f {
		switch k {
		case "dangling", "driver", "label", "name":
		default:
			return out, fault.Invalid.Errorf("invalid filter '%s'", k)
		}
	}
	for _, name := range m.names() {
		v := m.get(name)
		if v == nil {
			continue
		}
		if matches(f, v) {
			out.Volumes = append(out.Volumes, m.describe(v))
		}
		v.mu.Unlock()
	}
	return out, nil
}

func matches(f Filters, v *volume) bool {
	oneOf := func(key string, fits func(string) bool) bool {
		if len(f[key]) == 0 {
			return true
		}
		for _, want := range f[key] {
			if fits(want) {
				return true
			}
		}
		return false
	}
	return oneOf("driver", func(d string) bool { return d == "local" }) &&
		oneOf("dangling", func(d string) bool { return truth(d) == (len(v.users) == 0) }) &&
		oneOf("name", func(n string) bool {
			re, err := regexp.Compile(n)
			return n == v.rec.Name || err == nil && re.MatchString(v.rec.Name)
		}) && labelled(f, v.rec.Labels)
}

func truth(s string) bool {
	switch strings.ToLower(s) {
	case "", "0", "no", "false", "none", "f":
		return false
	}
	return true
}

// labelled holds when all of label and none of label! are there.
func labelled(f Filters, labels map[string]string) bool {
	has := func(want string) bool {
		k, val, exact := strings.Cut(want, "=")
		got, ok := labels[k]
		return ok && (!exact || got == val)
	}
	for _, want := range f["label"] {
		if !has(want) {
			return false
		}
	}
	for _, not := range f["label!"] {
		if has(not) {
			return false
		}
	}
	return true
}

// Prune removes volumes without users and without mount options: the
// anonymous ones, or with the filter all=true the named ones too. Filters: all,
// label, label!.
func (m *Manager) Prune(ctx context.Context, f Filters) (apivolume.PruneReport, error) {
	report := apivolume.PruneReport{VolumesDeleted: []string{}}
	all := false
	for k := range f {
		switch k {
		case "all":
			for _, v := range f[k] {
				all = truth(v)
			}
		case "label", "label!":
		default:
			return report, fault.Invalid.Errorf("invalid filter '%s'", k)
		}
	}
	for _, name := range m.names() {
		if err := ctx.Err(); err != nil {
			return report, err
		}
		v := m.get(name)
		if v == nil {
			continue
		}
		_, anonymous := v.rec.Labels[AnonymousLabel]
		if len(v.users) == 0 && len(v.rec.Options) == 0 && (all || anonymous) && labelled(f, v.rec.Labels) {
			size := diskSize(ctx, m.data(name))
			if err := m.remove(v); err != nil {
				m.log.Warn("prune: volume not removed", "volume", name, "err", err)
			} else {
				report.VolumesDeleted = append(report.VolumesDeleted, name)
				report.SpaceReclaimed += uint64(size)
			}
		}
		v.mu.Unlock()
	}
	m.publish("prune", "", "", "")
	return report, nil
}

// Usage returns all volumes with their sizes in bytes and their numbers of
// users. The size of what is mounted from elsewhere is not counted: -1.
func (m *Manager) Usage(ctx context.Context) ([]apivolume.Volume, error) {
	out := []apivolume.Volume{}
	for _, name := range m.names() {
		v := m.get(name)
		if v == nil {
			continue
		}
		d := m.describe(v)
		d.UsageData = &apivolume.UsageData{RefCount: int64(len(v.users)), Size: -1}
		local := len(v.rec.Options) == 0
		v.mu.Unlock() // the walk takes long
		if local {
			d.UsageData.Size = diskSize(ctx, m.data(name))
		}
		out = append(out, d)
	}
	return out, ctx.Err()
}

// diskSize adds up the lengths of the files below dir, as Docker does; one with
// several names counts once, folders do not. What vanishes or cannot be read meanwhile does not count.
func diskSize(ctx context.Context, dir string) int64 {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	var total int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return fs.SkipAll
		}
		if err != nil {
			if d != nil && d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		var fi os.FileInfo
		if fi, err = d.Info(); err != nil {
			return nil
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if d.IsDir() {
			return nil
		}
		if st.Nlink > 1 {
			k := inode{uint64(st.Dev), st.Ino}
			if seen[k] {
				return nil
			}
			seen[k] = true
		}
		total += fi.Size()
		return nil
	})
	return total
}
