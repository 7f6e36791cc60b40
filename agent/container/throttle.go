package container

import (
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// throttle looks up the devices of --device-read-bps and its kin.
func throttle(in []*blkiodev.ThrottleDevice) (out []specs.LinuxThrottleDevice) {
	for _, t := range in {
		if _, rule, ok := device(t.Path); ok {
			d := specs.LinuxThrottleDevice{Rate: t.Rate}
			d.Major, d.Minor = *rule.Major, *rule.Minor
			out = append(out, d)
		}
	}
	return out
}
