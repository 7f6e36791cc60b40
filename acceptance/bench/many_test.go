package bench

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// BenchmarkMany takes one agent to 1,000 running containers and back, and
// prints what that costs. It runs once, whatever the framework asks for.
func BenchmarkMany(b *testing.B) {
	if b.N > 1 {
		b.Skip("run with -benchtime 1x")
	}
	if os.Getuid() != 0 {
		b.Skip("needs root")
	}
	const n, hands = 1000, 8
	s := ours(b)
	before, _, err := s.memory()
	if err != nil {
		b.Fatal(err)
	}
	all := make([]string, n)
	crowd(b, hands, n, "created", func(i int) (err error) {
		all[i], err = s.create("", "sleep", "10000")
		return err
	})
	crowd(b, hands, n, "started", func(i int) error { return s.start(all[i]) })
	f, err := times(20, func() error {
		out, err := s.do("GET", "/containers/json", "")
		if got := strings.Count(out, `"ImageID"`); err == nil && got != n {
			err = fmt.Errorf("%d containers in the list", got)
		}
		return err
	})
	report(b, "list, ms", f, err)
	f, err = cycles(s, "bridge")
	report(b, "cycle of true beside them, bridge, ms", f, err)
	f, err = times(20, func() error { return s.execTrue(all[n/2]) })
	report(b, "exec beside them, ms", f, err)
	own, holders, err := s.memory()
	report(b, "agent before, PSS MB", figure{before / mega}, nil)
	report(b, "agent with them, PSS MB", figure{own / mega}, err)
	report(b, "shims, PSS MB each", figure{holders / mega / n}, err)
	crowd(b, hands, n, "stopped", func(i int) error { _, err := s.do("POST", "/containers/"+all[i]+"/stop?t=0", ""); return err })
	crowd(b, hands, n, "removed", func(i int) error { return s.remove(all[i]) })
}

func report(b *testing.B, what string, f figure, err error) {
	if err != nil {
		b.Errorf("%s: %v", what, err)
		return
	}
	fmt.Printf("%-40s %s\n", what, f)
}

// crowd does f for all numbers below n, some at a time, and prints how long
// each and all took.
func crowd(b *testing.B, hands, n int, what string, f func(i int) error) {
	took, work := make([]float64, n), make(chan int)
	var wg sync.WaitGroup
	var mu sync.Mutex
	failed := 0
	begin := time.Now()
	for range hands {
		wg.Go(func() {
			for i := range work {
				t := time.Now()
				if err := f(i); err != nil {
					mu.Lock()
					if failed++; failed < 4 {
						b.Errorf("%s: %v", what, err)
					}
					mu.Unlock()
				}
				took[i] = float64(time.Since(t).Microseconds()) / 1000
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	wg.Wait()
	slices.Sort(took)
	fmt.Printf("%-40s %.1f s in all; each median %.1f, p99 %.1f ms, %d at a time\n",
		fmt.Sprint(n, " ", what), time.Since(begin).Seconds(), took[n/2], took[n*99/100], hands)
}
