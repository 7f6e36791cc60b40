package volume

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"syscall"

	apivolume "github.com/moby/moby/api/types/volume"

	"machine/agent/model"
)

// List returns the volumes in the order of their names. Filters: dangling,
// driver, label, name.
func (m *Manager) List(f model.Filters) (apivolume.ListResponse, error) {
	out := apivolume.ListResponse{Volumes: []apivolume.Volume{}, Warnings: []string{}}
	if err := f.Check("dangling", "driver", "label", "name"); err != nil {
		return out, err
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

func matches(f model.Filters, v *volume) bool {
	return f.Any("driver", func(d string) bool { return d == "local" }) &&
		f.Any("dangling", func(d string) bool { return model.Truth(d) == (len(v.users) == 0) }) &&
		f.Any("name", func(n string) bool {
			re, err := regexp.Compile(n)
			return n == v.rec.Name || err == nil && re.MatchString(v.rec.Name)
		}) && f.Labels(v.rec.Labels)
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
