package container

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"machine/agent/failpoint"
	"machine/agent/model"
)

// Docker's back-off between restarts.
const (
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = time.Minute
	goodRun      = 10 * time.Second // a run this long starts the back-off over
)

// A run is one life of a container, from start to exit.
type run struct {
	booked chan struct{} // closed when its end is booked and told of
	ended  chan struct{} // closed when all that it held is free
}

func newRun() *run { return &run{make(chan struct{}), make(chan struct{})} }

// monitor books the end of one run: state, networks, events, waiters, and
// what the restart policy wants.
func (c *Container) monitor(task model.Task, run *run) {
	told := false // of kills for memory
	for ended := false; !ended; {
		select {
		case <-task.Done():
			ended = true
		case <-task.OOM():
			told = true
			if err := c.set(func(r *Record) { r.State.OOMKilled = true }); err != nil {
				c.m.o.Log.Error("save container", "container", c.id, "error", err)
			}
			c.event(events.ActionOOM)
		case <-c.m.ctx.Done(): // the agent ends; the container goes on
			return
		}
	}
	x := task.Exit()
	failpoint.Hit("exit.seen")
	c.stopHealth()
	ctx := context.WithoutCancel(c.m.ctx)
	r := c.rec.Load()
	ran := x.At.Sub(r.State.StartedAt)
	restart := c.wantsRestart(r, x)
	var left sync.WaitGroup // addresses are free again while the disk is busy
	left.Go(func() { c.leaveNetworks(ctx, r); failpoint.Hit("exit.networks") })
	c.bookExit(x, restart)
	failpoint.Hit("exit.booked")
	left.Wait()
	c.tellVolumes(r, events.ActionUnmount)
	if x.OOMKilled && !told {
		c.event(events.ActionOOM)
	}
	c.event(events.ActionDie, "exitCode", strconv.Itoa(x.Code), "execDuration", strconv.Itoa(int(max(ran, 0)/time.Second)))
	c.mu.Lock()
	c.exitCode = x.Code
	c.task, c.endpoints = nil, nil
	c.wake(condNextExit, x.Code, "")
	if !restart {
		c.wake(condNotRunning, x.Code, "")
	}
	c.mu.Unlock()
	close(run.booked)
	failpoint.Hit("exit.told")
	switch {
	case restart:
		c.scheduleRestart(ran)
	case r.HostConfig.AutoRemove:
		c.m.bg.Go(func() {
			if err := c.m.Remove(ctx, c.id, RemoveOptions{Volumes: true, Force: true, auto: true}); err != nil {
				c.m.o.Log.Error("auto-remove", "container", c.id, "error", err)
			}
		})
	}
	// Only the next start waits for what the kernel takes its time to free.
	if err := task.Delete(ctx); err != nil {
		c.m.o.Log.Error("clean up task", "container", c.id, "error", err)
	}
	failpoint.Hit("exit.deleted")
	close(run.ended)
}

// bookExit stores how the run ended.
func (c *Container) bookExit(x model.ExitStatus, restart bool) {
	err := c.set(func(r *Record) {
		macs := map[string]bool{}
		for name, e := range r.Networks {
			macs[name] = len(e.MacAddress) > 0 && e.IPAMConfig != nil && e.IPAMConfig.IPv4Address.IsValid()
		}
		r.Networks, r.Ports, r.SandboxKey = clearEndpoints(r.Networks, macs), nil, ""
		s := &r.State
		s.Status, s.Pid, s.ExitCode, s.OOMKilled = container.StateExited, 0, x.Code, x.OOMKilled
		s.FinishedAt = x.At.UTC()
		s.Error = x.Err
		if restart {
			s.Status = container.StateRestarting
			r.RestartCount++
		}
	})
	if err != nil {
		c.m.o.Log.Error("save container", "container", c.id, "error", err)
	}
}

// wantsRestart applies the policy to an end.
func (c *Container) wantsRestart(r *Record, x model.ExitStatus) bool {
	c.mu.Lock()
	stopping := c.stopping
	c.mu.Unlock()
	if stopping || r.State.ManuallyStopped {
		return false
	}
	p := r.HostConfig.RestartPolicy
	switch p.Name {
	case "always", "unless-stopped":
		return true
	case "on-failure":
		return x.Code != 0 && (p.MaximumRetryCount == 0 || r.RestartCount < p.MaximumRetryCount)
	}
	return false
}

// backoff is the delay before restart number n (from 1) in a row.
func backoff(n int) time.Duration {
	d := firstBackoff
	for ; n > 1 && d < maxBackoff; n-- {
		d *= 2
	}
	return min(d, maxBackoff)
}

// scheduleRestart starts the container again after the back-off.
func (c *Container) scheduleRestart(ran time.Duration) {
	ctx, cancel := context.WithCancel(c.m.ctx)
	c.mu.Lock()
	if c.stopping { // a stop came between the end and now
		c.mu.Unlock()
		cancel()
		c.settleStopped()
		return
	}
	if ran >= goodRun {
		c.streak = 0
	}
	c.streak++
	delay := backoff(c.streak)
	c.stopRetry = cancel
	c.mu.Unlock()
	c.m.bg.Go(func() {
		select {
		case <-ctx.Done():
			return
		case <-c.m.o.Clock.After(delay):
		}
		if err := c.lock(ctx); err != nil {
			return
		}
		defer c.unlock()
		if ctx.Err() != nil || c.rec.Load().State.Status != container.StateRestarting {
			return
		}
		if err := c.start(context.WithoutCancel(ctx)); err != nil {
			c.m.o.Log.Error("restart", "container", c.id, "error", err)
			c.retryFailedStart()
		}
	})
}

// retryFailedStart goes on with the policy when even the start failed, as a
// program may be missing for a while only.
func (c *Container) retryFailedStart() {
	r := c.rec.Load()
	p := r.HostConfig.RestartPolicy
	if p.Name == "on-failure" && p.MaximumRetryCount > 0 && r.RestartCount >= p.MaximumRetryCount {
		c.settleStopped()
		return
	}
	if err := c.set(func(r *Record) { r.State.Status = container.StateRestarting; r.RestartCount++ }); err != nil {
		c.m.o.Log.Error("save container", "container", c.id, "error", err)
	}
	c.scheduleRestart(0)
}

// settleStopped makes a container that waited for its restart a stopped one.
func (c *Container) settleStopped() {
	err := c.set(func(r *Record) {
		if r.State.Status == container.StateRestarting {
			r.State.Status = container.StateExited
		}
	})
	if err != nil {
		c.m.o.Log.Error("save container", "container", c.id, "error", err)
	}
	c.mu.Lock()
	c.wake(condNotRunning, c.exitCode, "")
	c.mu.Unlock()
}

// Wait conditions; a waiter of one is woken by it alone.
const (
	condNotRunning = container.WaitConditionNotRunning
	condNextExit   = container.WaitConditionNextExit
	condRemoved    = container.WaitConditionRemoved
)
