package volume

import (
	"context"

	apivolume "github.com/moby/moby/api/types/volume"

	"machine/agent/model"
)

// Prune removes volumes without users and without mount options: the
// anonymous ones, or with the filter all=true the named ones too. Filters: all,
// label, label!.
func (m *Manager) Prune(ctx context.Context, f model.Filters) (apivolume.PruneReport, error) {
	report := apivolume.PruneReport{VolumesDeleted: []string{}}
	if err := f.Check("all", "label", "label!"); err != nil {
		return report, err
	}
	all := len(f["all"]) == 1 && model.Truth(f["all"][0])
	for _, name := range m.names() {
		if err := ctx.Err(); err != nil {
			return report, err
		}
		v := m.get(name)
		if v == nil {
			continue
		}
		_, anonymous := v.rec.Labels[AnonymousLabel]
		if len(v.users) == 0 && len(v.rec.Options) == 0 && (all || anonymous) && f.Labels(v.rec.Labels) {
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
	return report, nil
}
