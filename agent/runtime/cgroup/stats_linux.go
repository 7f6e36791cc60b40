package cgroup

import (
	"os"
	"strconv"
	"strings"
	"time"

	"machine/agent/fault"
	"machine/agent/model"
)

// Stats samples the group. It is NotFound when the group is gone.
func (g *Group) Stats() (*model.Stats, error) {
	if _, err := os.Stat(g.dirs()[0]); err != nil {
		return nil, fault.NotFound.Errorf("cgroup %s: %w", g.path, err)
	}
	st := &model.Stats{At: time.Now(), MemStats: map[string]uint64{}, CgroupV2: g.host.V2}
	if g.host.V2 {
		g.statsV2(st)
	} else {
		g.statsV1(st)
	}
	return st, nil
}

// userHZ is the unit of cpuacct.stat; it is 100 on every Linux we run on.
const userHZ = 100

func num(s string) uint64 {
	s = strings.TrimSpace(s)
	if s == "max" {
		return 1<<64 - 1
	}
	n, _ := strconv.ParseUint(s, 10, 64)
	return n
}

func pairs(text string) map[string]uint64 {
	m := map[string]uint64{}
	for _, line := range strings.Split(text, "\n") {
		if k, v, ok := strings.Cut(line, " "); ok {
			m[k] = num(v)
		}
	}
	return m
}

func (g *Group) statsV1(st *model.Stats) {
	if d := g.dir("cpuacct"); d != "" {
		st.CPUTotal = num(read(d, "cpuacct.usage"))
		for _, f := range strings.Fields(read(d, "cpuacct.usage_percpu")) {
			st.PerCPU = append(st.PerCPU, num(f))
		}
		p := pairs(read(d, "cpuacct.stat"))
		st.CPUUser, st.CPUSystem = p["user"]*(1e9/userHZ), p["system"]*(1e9/userHZ)
	}
	if d := g.dir("cpu"); d != "" {
		p := pairs(read(d, "cpu.stat"))
		st.Periods, st.Throttled, st.ThrottledTime = p["nr_periods"], p["nr_throttled"], p["throttled_time"]
	}
	if d := g.dir("memory"); d != "" {
		st.MemUsage = num(read(d, "memory.usage_in_bytes"))
		st.MemMaxUsage = num(read(d, "memory.max_usage_in_bytes"))
		st.MemLimit = num(read(d, "memory.limit_in_bytes"))
		st.MemFailcnt = num(read(d, "memory.failcnt"))
		st.MemStats = pairs(read(d, "memory.stat"))
	}
	if d := g.dir("pids"); d != "" {
		st.PidsCurrent, st.PidsLimit = num(read(d, "pids.current")), num(read(d, "pids.max"))
	}
	if d := g.dir("blkio"); d != "" {
		st.Blkio = blkioV1(read(d, "blkio.throttle.io_service_bytes_recursive"), read(d, "blkio.throttle.io_serviced_recursive"))
	}
}

type blkioKey struct {
	major, minor uint64
	op           string
}

func blkioV1(bytes, ops string) []model.BlkioEntry {
	var out []model.BlkioEntry
	at := map[blkioKey]int{}
	take := func(text string, set func(*model.BlkioEntry, uint64)) {
		for _, line := range strings.Split(text, "\n") {
			f := strings.Fields(line)
			if len(f) != 3 || f[1] != "Read" && f[1] != "Write" {
				continue
			}
			maj, min, _ := strings.Cut(f[0], ":")
			k := blkioKey{num(maj), num(min), f[1]}
			i, ok := at[k]
			if !ok {
				i = len(out)
				at[k] = i
				out = append(out, model.BlkioEntry{Major: k.major, Minor: k.minor, Op: k.op})
			}
			set(&out[i], num(f[2]))
		}
	}
	take(bytes, func(e *model.BlkioEntry, n uint64) { e.Bytes = n })
	take(ops, func(e *model.BlkioEntry, n uint64) { e.Ops = n })
	return out
}

func (g *Group) statsV2(st *model.Stats) {
	d := g.dir("")
	p := pairs(read(d, "cpu.stat"))
	st.CPUTotal, st.CPUUser, st.CPUSystem = p["usage_usec"]*1000, p["user_usec"]*1000, p["system_usec"]*1000
	st.Periods, st.Throttled, st.ThrottledTime = p["nr_periods"], p["nr_throttled"], p["throttled_usec"]*1000
	st.MemUsage, st.MemMaxUsage = num(read(d, "memory.current")), num(read(d, "memory.peak"))
	st.MemLimit = num(read(d, "memory.max"))
	st.MemFailcnt = pairs(read(d, "memory.events"))["oom"] // as Docker has it
	st.MemStats = pairs(read(d, "memory.stat"))
	st.PidsCurrent, st.PidsLimit = num(read(d, "pids.current")), num(read(d, "pids.max"))
	for _, line := range strings.Split(read(d, "io.stat"), "\n") {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		maj, min, _ := strings.Cut(f[0], ":")
		r := model.BlkioEntry{Major: num(maj), Minor: num(min), Op: "Read"}
		w := model.BlkioEntry{Major: r.Major, Minor: r.Minor, Op: "Write"}
		for _, kv := range f[1:] {
			k, v, _ := strings.Cut(kv, "=")
			switch k {
			case "rbytes":
				r.Bytes = num(v)
			case "wbytes":
				w.Bytes = num(v)
			case "rios":
				r.Ops = num(v)
			case "wios":
				w.Ops = num(v)
			}
		}
		st.Blkio = append(st.Blkio, r, w)
	}
}
