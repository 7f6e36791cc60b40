package container

import (
	"bytes"
	"context"
	"io"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"machine/agent/fault"
	"machine/agent/model"
)

// Docker's defaults and bounds of health checks.
const (
	healthInterval      = 30 * time.Second
	healthTimeout       = 30 * time.Second
	healthStartInterval = 5 * time.Second
	healthRetries       = 3
	healthOutput        = 4096
	healthLog           = 5
)

// hasHealth tells whether there is something to probe.
func hasHealth(h *container.HealthConfig) bool {
	return h != nil && len(h.Test) > 0 && h.Test[0] != "NONE"
}

func checkHealth(h *container.HealthConfig) error {
	if h == nil {
		return nil
	}
	for name, d := range map[string]time.Duration{"Interval": h.Interval, "Timeout": h.Timeout, "StartPeriod": h.StartPeriod, "StartInterval": h.StartInterval} {
		if d != 0 && d < container.MinimumDuration {
			return fault.Invalid.Errorf("%s in Healthcheck cannot be less than %s", name, container.MinimumDuration)
		}
	}
	if h.Retries < 0 {
		return fault.Invalid.Errorf("Retries in Healthcheck cannot be negative")
	}
	if len(h.Test) > 0 {
		switch h.Test[0] {
		case "NONE", "CMD", "CMD-SHELL", "":
		default:
			return fault.Invalid.Errorf("unknown health check type: %s", h.Test[0])
		}
	}
	return nil
}

// mergeHealth lets the request override single fields of the image's check.
func mergeHealth(h, img *container.HealthConfig) *container.HealthConfig {
	if img == nil {
		return h
	}
	if h == nil {
		c := *img
		return &c
	}
	if len(h.Test) == 0 {
		h.Test = img.Test
	}
	if h.Interval == 0 {
		h.Interval = img.Interval
	}
	if h.Timeout == 0 {
		h.Timeout = img.Timeout
	}
	if h.StartPeriod == 0 {
		h.StartPeriod = img.StartPeriod
	}
	if h.StartInterval == 0 {
		h.StartInterval = img.StartInterval
	}
	if h.Retries == 0 {
		h.Retries = img.Retries
	}
	return h
}

// A prober runs one container's health checks.
type prober struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// startHealth begins probing, when the container has a check.
func (c *Container) startHealth(task model.Task) {
	cfg := c.rec.Load().Config.Healthcheck
	if !hasHealth(cfg) {
		return
	}
	ctx, cancel := context.WithCancel(c.m.ctx)
	p := &prober{cancel: cancel, done: make(chan struct{})}
	c.mu.Lock()
	c.health = p
	c.mu.Unlock()
	go func() {
		defer close(p.done)
		c.probeLoop(ctx, task, cfg)
	}()
}

// stopHealth ends probing and waits for the probe in flight.
func (c *Container) stopHealth() {
	c.mu.Lock()
	p := c.health
	c.health = nil
	c.mu.Unlock()
	if p != nil {
		p.cancel()
		<-p.done
	}
}

func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

func (c *Container) probeLoop(ctx context.Context, task model.Task, cfg *container.HealthConfig) {
	started := c.rec.Load().State.StartedAt
	for {
		wait := or(cfg.Interval, healthInterval)
		h := c.rec.Load().State.Health
		if cfg.StartPeriod > 0 && h != nil && h.Status == container.Starting && c.m.o.Clock.Now().Sub(started) < cfg.StartPeriod {
			wait = or(cfg.StartInterval, healthStartInterval)
		}
		select {
		case <-ctx.Done():
			return
		case <-c.m.o.Clock.After(wait):
		}
		if c.rec.Load().State.Status == container.StatePaused {
			continue
		}
		res := c.probe(ctx, task, cfg)
		if ctx.Err() != nil {
			return
		}
		c.bookHealth(cfg, started, res)
	}
}

// probe runs the check once.
func (c *Container) probe(ctx context.Context, task model.Task, cfg *container.HealthConfig) *container.HealthcheckResult {
	res := &container.HealthcheckResult{Start: c.m.o.Clock.Now()}
	timeout := or(cfg.Timeout, healthTimeout)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r := c.rec.Load()
	proc := c.execProcess(r, cfg.Test[1:])
	if cfg.Test[0] == "CMD-SHELL" || cfg.Test[0] == "" {
		proc.Args = append(shellOf(r), cfg.Test[1:]...)
	}
	out, code, err := runProbe(ctx, task, proc)
	res.End, res.ExitCode, res.Output = c.m.o.Clock.Now(), code, out
	switch {
	case ctx.Err() == context.DeadlineExceeded:
		res.ExitCode = -1
		res.Output = "Health check exceeded timeout (" + timeout.String() + ")"
		if out != "" {
			res.Output += ": " + out
		}
	case err != nil:
		res.ExitCode, res.Output = -1, err.Error()
	}
	return res
}

func shellOf(r *Record) []string {
	if len(r.Config.Shell) > 0 {
		return append([]string{}, r.Config.Shell...)
	}
	return []string{"/bin/sh", "-c"}
}

// runProbe runs a process and collects the first of its output.
func runProbe(ctx context.Context, task model.Task, p model.Process) (string, int, error) {
	ex, err := task.Exec(ctx, p)
	if err != nil {
		return "", -1, err
	}
	defer ex.Release()
	var mu sync.Mutex
	var buf bytes.Buffer
	var wg sync.WaitGroup
	if st, err := ex.Attach(); err == nil {
		defer st.Close()
		for _, rd := range []io.Reader{st.Stdout, st.Stderr} {
			if rd == nil {
				continue
			}
			wg.Go(func() {
				b := make([]byte, 4096)
				for {
					n, err := rd.Read(b)
					mu.Lock()
					if room := healthOutput - buf.Len(); room > 0 {
						buf.Write(b[:min(n, room)])
					}
					mu.Unlock()
					if err != nil {
						return
					}
				}
			})
		}
	}
	x, err := ex.Wait(ctx)
	if err != nil {
		ex.Kill(9)
		return text(&mu, &buf), -1, err
	}
	wg.Wait()
	return text(&mu, &buf), x.Code, nil
}

func text(mu *sync.Mutex, b *bytes.Buffer) string {
	mu.Lock()
	defer mu.Unlock()
	return b.String()
}

// bookHealth applies a probe's result. It lives in memory only while the
// container runs: a restarted agent probes anew.
func (c *Container) bookHealth(cfg *container.HealthConfig, started time.Time, res *container.HealthcheckResult) {
	var was, is container.HealthStatus
	c.note(func(r *Record) {
		if r.State.Health == nil {
			return
		}
		h := *r.State.Health
		was = h.Status
		h.Log = append(append([]*container.HealthcheckResult{}, h.Log...), res)
		if len(h.Log) > healthLog {
			h.Log = h.Log[len(h.Log)-healthLog:]
		}
		if res.ExitCode == 0 {
			h.FailingStreak, h.Status = 0, container.Healthy
		} else if !(h.Status == container.Starting && res.Start.Sub(started) < cfg.StartPeriod) {
			h.FailingStreak++
			if h.FailingStreak >= or(cfg.Retries, healthRetries) {
				h.Status = container.Unhealthy
			}
		}
		is = h.Status
		r.State.Health = &h
	})
	if was != is {
		c.event(events.Action("health_status: " + string(is)))
	}
}
