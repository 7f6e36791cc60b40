package shim

import (
	"fmt"
	"os"
	"sort"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"machine/agent/model"
)

func report(b *testing.B, times []time.Duration, name string) {
	sort.Slice(times, func(i, j int) bool { return times[i] < times[j] })
	b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, name+"-median-ms")
}

// BenchmarkRun is create, start, wait and delete of true.
func BenchmarkRun(b *testing.B) {
	be := newBench(b)
	var total, create, start, wait, del []time.Duration
	cpu := cpuTime()
	for b.Loop() {
		bu := be.bundle("true")
		t0 := time.Now()
		k, err := be.s.Create(ctxOf(b), bu)
		if err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		if err := k.Start(ctxOf(b)); err != nil {
			b.Fatal(err)
		}
		t2 := time.Now()
		<-k.Done()
		t3 := time.Now()
		if err := k.Delete(ctxOf(b)); err != nil {
			b.Fatal(err)
		}
		t4 := time.Now()
		total, create, start = append(total, t4.Sub(t0)), append(create, t1.Sub(t0)), append(start, t2.Sub(t1))
		wait, del = append(wait, t3.Sub(t2)), append(del, t4.Sub(t3))
	}
	b.ReportMetric(float64((cpuTime()-cpu).Microseconds())/1000/float64(b.N), "cpu-ms")
	report(b, total, "total")
	report(b, create, "create")
	report(b, start, "start")
	report(b, wait, "wait")
	report(b, del, "delete")
}

func BenchmarkExec(b *testing.B) {
	be := newBench(b)
	k := be.start(be.bundle("sleep", "1000"))
	var times []time.Duration
	for b.Loop() {
		t0 := time.Now()
		e, err := k.Exec(ctxOf(b), model.Process{Args: []string{"true"}, Env: []string{"PATH=/bin"}, Caps: defaultCaps})
		if err != nil {
			b.Fatal(err)
		}
		e.Wait(ctxOf(b))
		e.Release()
		times = append(times, time.Since(t0))
	}
	report(b, times, "exec")
	b.ReportMetric(pss(k.(*task).shim), "shim-PSS-kB")
}

func pss(pid int) (kb float64) {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	for _, l := range strings.Split(string(data), "\n") {
		if strings.HasPrefix(l, "Pss:") {
			fmt.Sscanf(strings.TrimPrefix(l, "Pss:"), "%f", &kb)
		}
	}
	return kb
}

// BenchmarkOutput is a container's output through the shim to its log.
func BenchmarkOutput(b *testing.B) {
	for _, d := range []string{"json-file", "local", "none"} {
		b.Run(d, func(b *testing.B) {
			be := newBench(b)
			line := strings.Repeat("2026-11-21 INFO some ordinary line of a log, as they come ", 2) + "\n"
			be.write("lines", strings.Repeat(line, 50<<20/len(line)), 0o644)
			const times = 6
			b.SetBytes(int64(50 << 20 / len(line) * len(line) * times))
			for b.Loop() {
				bu := be.bundle("cat", "/lines", "/lines", "/lines", "/lines", "/lines", "/lines")
				bu.Log.Driver = d
				k := be.start(bu)
				<-k.Done()
				b.StopTimer()
				k.Delete(ctxOf(b))
				os.Remove(bu.Log.Path)
				b.StartTimer()
			}
		})
	}
}

// cpuTime is what we and the shims that we have reaped have used: it depends
// less than the clock on who else is at work here.
func cpuTime() (d time.Duration) {
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var r unix.Rusage
		_ = unix.Getrusage(who, &r)
		d += time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	return d
}
