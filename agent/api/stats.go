package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	apicontainer "github.com/moby/moby/api/types/container"

	"machine/agent/container"
	"machine/agent/fault"
	"machine/agent/model"
)

// statsEvery is the pace of docker stats.
const statsEvery = time.Second

// stats answers one sample or one a second. A sample needs the one before it:
// stream=0 waits for it, one-shot does without.
func (c *containerAPI) stats(w http.ResponseWriter, r *request) error {
	id := r.vars["id"]
	stream := r.query("stream") == "" || r.boolean("stream")
	oneShot := r.boolean("one-shot")
	if stream && oneShot {
		return fault.Invalid.Errorf("cannot have stream=true and one-shot=true")
	}
	first, err := c.b.Info.Stats(r.Context(), id)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	out := newFlushWriter(w)
	enc := json.NewEncoder(out)
	if oneShot || first.Stats == nil && !stream {
		return silent(enc.Encode(statsJSON(first, nil)))
	}
	tick := time.NewTicker(statsEvery)
	defer tick.Stop()
	now := statsJSON(first, nil)
	for {
		if stream {
			if err := enc.Encode(now); err != nil {
				return nil
			}
		}
		select {
		case <-r.Context().Done():
			return nil
		case <-tick.C:
		}
		next, err := c.b.Info.Stats(r.Context(), id)
		if err != nil {
			return nil // removed
		}
		now = statsJSON(next, now)
		if !stream {
			return silent(enc.Encode(now))
		}
	}
}

// silent drops an error that only says that the client is gone.
func silent(error) error { return nil }

// statsResponse is a sample with the one before it.
type statsResponse struct {
	apicontainer.StatsResponse
	PreRead      time.Time             `json:"preread"`
	PreCPU       apicontainer.CPUStats `json:"precpu_stats"`
	NumProcs     uint32                `json:"num_procs"`
	StorageStats struct{}              `json:"storage_stats"`
}

func statsJSON(s *container.Sample, prev *statsResponse) *statsResponse {
	out := &statsResponse{}
	out.ID, out.Name, out.OSType = s.ID, "/"+s.Name, "linux"
	if prev != nil {
		out.PreRead, out.PreCPU = prev.Read, prev.CPUStats
	}
	st := s.Stats
	if st == nil {
		return out
	}
	out.Read = st.At
	out.CPUStats = apicontainer.CPUStats{
		CPUUsage:       apicontainer.CPUUsage{TotalUsage: st.CPUTotal, UsageInKernelmode: st.CPUSystem, UsageInUsermode: st.CPUUser, PercpuUsage: st.PerCPU},
		SystemUsage:    systemCPU(),
		OnlineCPUs:     uint32(runtime.NumCPU()),
		ThrottlingData: apicontainer.ThrottlingData{Periods: st.Periods, ThrottledPeriods: st.Throttled, ThrottledTime: st.ThrottledTime},
	}
	out.MemoryStats = apicontainer.MemoryStats{Usage: st.MemUsage, MaxUsage: st.MemMaxUsage, Limit: memoryLimit(st.MemLimit), Failcnt: st.MemFailcnt, Stats: st.MemStats}
	out.PidsStats = apicontainer.PidsStats{Current: st.PidsCurrent, Limit: st.PidsLimit}
	out.BlkioStats = blkio(st)
	if len(s.Links) > 0 {
		out.Networks = map[string]apicontainer.NetworkStats{}
		for name, l := range s.Links {
			out.Networks[name] = apicontainer.NetworkStats{
				RxBytes: l.RxBytes, RxPackets: l.RxPackets, RxErrors: l.RxErrors, RxDropped: l.RxDropped,
				TxBytes: l.TxBytes, TxPackets: l.TxPackets, TxErrors: l.TxErrors, TxDropped: l.TxDropped,
			}
		}
	}
	return out
}

func blkio(st *model.Stats) apicontainer.BlkioStats {
	var out apicontainer.BlkioStats
	for _, e := range st.Blkio {
		op := e.Op
		if st.CgroupV2 {
			op = strings.ToLower(op)
		}
		out.IoServiceBytesRecursive = append(out.IoServiceBytesRecursive, apicontainer.BlkioStatEntry{Major: e.Major, Minor: e.Minor, Op: op, Value: e.Bytes})
		out.IoServicedRecursive = append(out.IoServicedRecursive, apicontainer.BlkioStatEntry{Major: e.Major, Minor: e.Minor, Op: op, Value: e.Ops})
	}
	return out
}

// memoryLimit is what a container can have at most: no limit is the host's
// memory.
func memoryLimit(n uint64) uint64 {
	var si syscall.Sysinfo_t
	if syscall.Sysinfo(&si) != nil {
		return n
	}
	if total := uint64(si.Totalram) * uint64(si.Unit); n == 0 || n > total {
		return total
	}
	return n
}

// systemCPU is the host's CPU time in nanoseconds, proc(5) stat.
func systemCPU() uint64 {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	f := strings.Fields(string(line))
	var total uint64
	for i := 1; i < len(f) && i <= 7; i++ {
		n, _ := strconv.ParseUint(f[i], 10, 64)
		total += n
	}
	return total * (1e9 / 100) // USER_HZ is 100 on every Linux that Go runs on
}

// top lists processes in the form of ps -ef, from /proc: the host need not
// have a ps.
func (c *containerAPI) top(w http.ResponseWriter, r *request) error {
	pids, err := c.b.Info.Top(r.vars["id"])
	if err != nil {
		return err
	}
	args := r.query("ps_args")
	if args == "" {
		args = "-ef"
	}
	cols, err := psColumns(args)
	if err != nil {
		return err
	}
	out := apicontainer.TopResponse{Processes: [][]string{}, Titles: cols}
	for _, pid := range pids {
		p, ok := readProc(pid)
		if !ok {
			continue
		}
		row := []string{}
		for _, col := range cols {
			row = append(row, p[col])
		}
		out.Processes = append(out.Processes, row)
	}
	return writeJSON(w, http.StatusOK, out)
}

// psNames are the columns that ps -o can be asked for.
var psNames = map[string]string{
	"pid": "PID", "ppid": "PPID", "user": "USER", "uid": "UID", "cmd": "CMD", "command": "COMMAND", "args": "COMMAND", "comm": "COMMAND",
	"time": "TIME", "stime": "STIME", "tty": "TTY", "tt": "TT", "stat": "STAT", "s": "S", "state": "S", "rss": "RSS", "vsz": "VSZ", "c": "C", "nlwp": "NLWP",
	"pcpu": "%CPU", "pmem": "%MEM", "%cpu": "%CPU", "%mem": "%MEM", "start": "START", "etime": "ELAPSED", "pgid": "PGID", "sid": "SID", "ni": "NI", "pri": "PRI",
}

// psColumns reads ps's arguments: the usual forms and -o lists.
func psColumns(args string) ([]string, error) {
	f := strings.Fields(args)
	for i, a := range f {
		list := ""
		switch {
		case a == "-o" && i+1 < len(f):
			list = f[i+1]
		case strings.HasPrefix(a, "-o"), strings.HasPrefix(a, "-eo"):
			list = a[strings.IndexByte(a, 'o')+1:]
			if list == "" && i+1 < len(f) {
				list = f[i+1]
			}
		default:
			continue
		}
		var cols []string
		for n := range strings.SplitSeq(list, ",") {
			n, title, renamed := strings.Cut(n, "=")
			t, ok := psNames[strings.ToLower(n)]
			if !ok {
				return nil, fault.Invalid.Errorf("error listing processes: unknown column %q", n)
			}
			if renamed && title != "" {
				t = strings.ToUpper(t)
			}
			cols = append(cols, t)
		}
		return cols, nil
	}
	if strings.Contains(args, "u") && !strings.HasPrefix(args, "-e") {
		return []string{"USER", "PID", "%CPU", "%MEM", "VSZ", "RSS", "TTY", "STAT", "START", "TIME", "COMMAND"}, nil
	}
	return []string{"UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"}, nil
}

// readProc reads one process's columns, proc(5).
func readProc(pid int) (map[string]string, bool) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	b, err := os.ReadFile(dir + "stat")
	if err != nil {
		return nil, false
	}
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return nil, false
	}
	comm := string(b[open+1 : end])
	f := strings.Fields(string(b[end+1:]))
	if len(f) < 22 {
		return nil, false
	}
	num := func(i int) int64 { n, _ := strconv.ParseInt(f[i], 10, 64); return n }
	cmd := comm
	if c, err := os.ReadFile(dir + "cmdline"); err == nil && len(c) > 0 {
		cmd = strings.TrimRight(strings.ReplaceAll(string(c), "\x00", " "), " ")
	} else {
		cmd = "[" + comm + "]"
	}
	uid := ""
	if st, err := os.Stat(dir); err == nil {
		uid = ownerOf(st)
	}
	name := uid
	if u, err := user.LookupId(uid); err == nil {
		name = u.Username
	}
	cpu := (num(11) + num(12)) / 100
	started := time.Unix(bootTime()+num(19)/100, 0)
	tty := "?"
	if n := num(4); n != 0 {
		tty = fmt.Sprintf("pts/%d", n&0xff)
	}
	return map[string]string{
		"PID": strconv.Itoa(pid), "PPID": f[1], "UID": name, "USER": name, "CMD": cmd, "COMMAND": cmd,
		"TIME": fmt.Sprintf("%02d:%02d:%02d", cpu/3600, cpu/60%60, cpu%60), "STIME": started.Format("15:04"), "START": started.Format("15:04"),
		"TTY": tty, "TT": tty, "STAT": f[0], "S": f[0], "RSS": strconv.FormatInt(num(21)*int64(os.Getpagesize()>>10), 10),
		"VSZ": strconv.FormatInt(num(20)>>10, 10), "C": "0", "NLWP": f[17], "%CPU": "0.0", "%MEM": "0.0", "PGID": f[2], "SID": f[3],
		"NI": f[16], "PRI": f[15], "ELAPSED": time.Since(started).Truncate(time.Second).String(),
	}, true
}

func bootTime() int64 {
	b, _ := os.ReadFile("/proc/stat")
	if _, rest, ok := bytes.Cut(b, []byte("\nbtime ")); ok {
		line, _, _ := bytes.Cut(rest, []byte("\n"))
		n, _ := strconv.ParseInt(string(line), 10, 64)
		return n
	}
	return 0
}

func ownerOf(fi os.FileInfo) string {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return strconv.FormatUint(uint64(st.Uid), 10)
	}
	return "?"
}
