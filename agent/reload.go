package agent

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/events"
)

// healEvery is how often foreign changes to our packet filter are looked for.
const healEvery = 5 * time.Second

// reload re-reads certificates and configuration on SIGHUP and mends the packet
// filter when somebody flushed it.
func (a *Agent) reload(ctx context.Context, k *keys) (stop func()) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(healEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-hup:
				a.reread(k)
			case <-tick.C:
				a.reserve.Refill()
				if err := a.networks.Check(ctx); err != nil && ctx.Err() == nil {
					a.log.Error("mend the networks", "error", err)
				}
			}
		}
	}()
	return func() { signal.Stop(hup); cancel(); <-done }
}

// reread does what SIGHUP asks for. What is wrong is said and changes nothing.
func (a *Agent) reread(k *keys) {
	if a.c.TLS {
		if err := k.load(); err != nil {
			a.log.Error("certificates are not replaced", "error", err)
		} else {
			a.log.Info("certificates are replaced")
		}
	}
	if err := a.configure(); err != nil {
		a.log.Error("configuration is not read anew", "error", err)
	}
}

// configure reads the configuration anew and takes over what can change in an
// engine that runs: debug, log level, labels, mirrors and insecure registries,
// the better part of dockerd's list (dockerd(8), "Configuration reload
// behavior").
func (a *Agent) configure() error {
	read, err := ParseArgs(a.c.args, io.Discard)
	if err != nil {
		return err
	}
	if err := a.hub.Set(read.RegistryMirrors, read.InsecureRegistries); err != nil {
		return err
	}
	next := *a.c
	next.Debug, next.LogLevel, next.Labels = read.Debug, read.LogLevel, read.Labels
	next.RegistryMirrors, next.InsecureRegistries = read.RegistryMirrors, read.InsecureRegistries
	a.now.Store(&next)
	if a.level != nil {
		a.level.Set(levelOf(&next))
	}
	a.log.Info("configuration is read anew", "mirrors", next.RegistryMirrors, "insecure", next.InsecureRegistries)
	a.events.Publish(events.DaemonEventType, events.ActionReload, a.id, map[string]string{
		"name": hostname(), "debug": strconv.FormatBool(next.Debug), "labels": listed(next.Labels),
		"registry-mirrors": listed(next.RegistryMirrors), "insecure-registries": listed(next.InsecureRegistries),
	})
	return nil
}

// listed writes a list as dockerd's event has it.
func listed(l []string) string {
	b, err := json.Marshal(l)
	if err != nil || l == nil {
		return "[]"
	}
	return string(b)
}

func levelOf(c *Config) slog.Level {
	if c.Debug {
		return slog.LevelDebug
	}
	return map[string]slog.Level{"debug": slog.LevelDebug, "warn": slog.LevelWarn, "error": slog.LevelError, "fatal": slog.LevelError}[c.LogLevel]
}

// newLogger logs to w as c says; level can be changed later.
func newLogger(c *Config, w io.Writer) (log *slog.Logger, level *slog.LevelVar) {
	level = new(slog.LevelVar)
	level.Set(levelOf(c))
	o := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, o)), level
	}
	return slog.New(slog.NewTextHandler(w, o)), level
}
