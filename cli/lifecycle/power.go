package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"machine/cli/store"
	"machine/drivers"
	"machine/provision"
	"machine/provision/ssh"
)

// ErrAlready is under the error for a machine that is in the wanted state.
var ErrAlready = errors.New("already")

type alreadyError struct{ name, state string }

func (e *alreadyError) Error() string {
	return fmt.Sprintf("Machine %q is already %s.", e.name, e.state)
}

func (e *alreadyError) Unwrap() error { return ErrAlready }

// Start starts a machine and waits until its engine answers.
func (m *Manager) Start(ctx context.Context, name string) error {
	return m.With(ctx, name, func(mc *Machine) error {
		m.Say("Starting %q...", name)
		st, err := mc.Driver.State(ctx)
		if err != nil {
			return err
		}
		if st == drivers.Running {
			return &alreadyError{name, "running"}
		}
		return m.start(ctx, mc)
	})
}

func (m *Manager) start(ctx context.Context, mc *Machine) error {
	s, ok := mc.Driver.(drivers.Starter)
	if !ok {
		return fmt.Errorf("driver %q does not support start", mc.DriverName)
	}
	if err := s.Start(ctx); err != nil {
		return err
	}
	m.Say("(%s) Started.", mc.Name)
	if err := m.ready(ctx, mc); err != nil {
		return err
	}
	m.Say("Machine %q was started.", mc.Name)
	return nil
}

// ready waits for the engine, and gives the host a new certificate first when
// its address is a new one (F18).
func (m *Manager) ready(ctx context.Context, mc *Machine) error {
	if mc.Kind.Bare {
		return nil
	}
	if err := m.waitRunning(ctx, mc); err != nil {
		return err
	}
	addr, err := mc.Driver.Address(ctx)
	if err != nil {
		return err
	}
	if err := mc.Save(); err != nil {
		return err
	}
	endpoint := EngineURL(addr.URL)
	if conf, err := m.ClientTLS(mc, endpoint); err == nil && m.certFits(mc, addr.IP) {
		quick, cancel := context.WithTimeout(ctx, 10*time.Second)
		dial, release, err := mc.engineDial(quick)
		if err == nil {
			_, err = provision.WaitEngine(quick, endpoint, conf, dial)
			release()
		}
		cancel()
		if err == nil {
			return nil
		}
	}
	if err := m.Bootstrap(ctx); err != nil {
		return err
	}
	_, err = m.provision(ctx, mc, provisionOptions{})
	return err
}

// Stop shuts a machine down.
func (m *Manager) Stop(ctx context.Context, name string) error {
	return m.With(ctx, name, func(mc *Machine) error {
		m.Say("Stopping %q...", name)
		s, ok := mc.Driver.(drivers.Stopper)
		if !ok {
			return fmt.Errorf("driver %q does not support stop", mc.DriverName)
		}
		return m.halt(ctx, mc, s.Stop, "stopped")
	})
}

// Kill cuts a machine's power.
func (m *Manager) Kill(ctx context.Context, name string) error {
	return m.With(ctx, name, func(mc *Machine) error {
		m.Say("Killing %q...", name)
		k, ok := mc.Driver.(drivers.Killer)
		if !ok {
			return fmt.Errorf("driver %q does not support kill", mc.DriverName)
		}
		return m.halt(ctx, mc, k.Kill, "killed")
	})
}

func (m *Manager) halt(ctx context.Context, mc *Machine, how func(context.Context) error, word string) error {
	st, err := mc.Driver.State(ctx)
	if err != nil {
		return err
	}
	if st == drivers.Stopped {
		return &alreadyError{mc.Name, "stopped"}
	}
	if err := how(ctx); err != nil {
		return err
	}
	m.Say("Machine %q was %s.", mc.Name, word)
	return nil
}

// Restart restarts a running machine and starts a stopped one.
func (m *Manager) Restart(ctx context.Context, name string) error {
	return m.With(ctx, name, func(mc *Machine) error {
		m.Say("Restarting %q...", name)
		st, err := mc.Driver.State(ctx)
		if err != nil {
			return err
		}
		if st == drivers.Stopped {
			return m.start(ctx, mc)
		}
		if err := m.restart(ctx, mc); err != nil {
			return err
		}
		if err := m.ready(ctx, mc); err != nil {
			return err
		}
		m.Say("Machine %q was restarted.", name)
		return nil
	})
}

func (m *Manager) restart(ctx context.Context, mc *Machine) error {
	if r, ok := mc.Driver.(drivers.Restarter); ok {
		return r.Restart(ctx)
	}
	stop, ok1 := mc.Driver.(drivers.Stopper)
	start, ok2 := mc.Driver.(drivers.Starter)
	if ok1 && ok2 {
		if err := stop.Stop(ctx); err != nil {
			return err
		}
		return start.Start(ctx)
	}
	if mc.Kind.Bare {
		return fmt.Errorf("driver %q does not support restart", mc.DriverName)
	}
	return m.reboot(ctx, mc)
}

// reboot asks the host itself, and waits until it is another boot.
func (m *Manager) reboot(ctx context.Context, mc *Machine) error {
	conf, err := mc.SSH(ctx)
	if err != nil {
		return err
	}
	const bootID = "cat /proc/sys/kernel/random/boot_id"
	cl, err := ssh.Dial(ctx, conf)
	if err != nil {
		return err
	}
	before, err := cl.Output(ctx, bootID, nil)
	if err == nil {
		_, err = cl.Output(ctx, "if [ $(id -u) = 0 ]; then shutdown -r now || reboot; else sudo -n shutdown -r now; fi", nil)
	}
	_ = cl.Close()
	if _, failed := ExitStatus(err); failed {
		return fmt.Errorf("restart the host: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for {
		cl, err := ssh.Wait(ctx, conf)
		if err != nil {
			return fmt.Errorf("the host does not come back: %w", err)
		}
		now, err := cl.Output(ctx, bootID, nil)
		_ = cl.Close()
		if err == nil && now != before {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the host does not restart: %w", ctx.Err())
		case <-time.After(time.Second):
		}
	}
}

// Remove deletes a machine: remotely first, then its record. When the driver
// fails, the record stays, unless force is set. A machine that is half made
// or half removed is removed like any other.
func (m *Manager) Remove(ctx context.Context, name string, force bool) error {
	unlock, err := m.lockKnown(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.removeRemote(ctx, name); err != nil {
		if !force {
			return fmt.Errorf("Error removing host %q: %w", name, err) //nolint:staticcheck // docker-machine's words
		}
		m.Say("Error removing host %q: %s", name, err)
		m.Say("The provider may still hold it: remove it there by hand.")
	}
	if err := m.dropContext(name); err != nil {
		m.Say("%s", err)
	}
	return m.Store.Remove(name)
}

func (m *Manager) removeRemote(ctx context.Context, name string) error {
	mc, err := m.Load(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was made before config.json
	}
	if err != nil {
		return err
	}
	defer func() { _ = mc.Close() }()
	if err := m.Store.Begin(name, store.Intent{Op: "remove", Step: "driver", Started: time.Now()}); err != nil {
		return err
	}
	return mc.Driver.Remove(ctx)
}

// Provision brings a machine's host up to date; done tells what was changed.
func (m *Manager) Provision(ctx context.Context, name string) (done []string, err error) {
	if err := m.Bootstrap(ctx); err != nil {
		return nil, err
	}
	err = m.With(ctx, name, func(mc *Machine) error {
		if mc.Kind.Bare {
			return nil
		}
		res, err := m.provision(ctx, mc, provisionOptions{})
		done = res.Done
		if err != nil {
			return err
		}
		return m.Store.Done(name)
	})
	return done, err
}

// RegenerateCerts issues a server certificate anew; the agent reads it without
// a restart.
func (m *Manager) RegenerateCerts(ctx context.Context, name string) error {
	if err := m.Bootstrap(ctx); err != nil {
		return err
	}
	return m.With(ctx, name, func(mc *Machine) error {
		if mc.Kind.Bare {
			return nil
		}
		_, err := m.provision(ctx, mc, provisionOptions{newCert: true, certsOnly: true})
		return err
	})
}

// Upgrade puts this program's agent on the host. Containers keep running. An
// agent that does not answer is replaced by the old one again. A newer one is
// left alone, with an error, unless downgrade is set.
func (m *Manager) Upgrade(ctx context.Context, name string, downgrade bool) (from, to string, err error) {
	if err := m.Bootstrap(ctx); err != nil {
		return "", "", err
	}
	err = m.With(ctx, name, func(mc *Machine) error {
		if mc.Kind.Bare {
			return fmt.Errorf("driver %q has no host to upgrade", mc.DriverName)
		}
		st, err := mc.Driver.State(ctx)
		if err != nil {
			return err
		}
		if st != drivers.Running {
			if err := m.start(ctx, mc); err != nil {
				return err
			}
		}
		if v, err := m.Version(ctx, mc); err == nil {
			from = v
		}
		m.Say("Upgrading docker...")
		newer := provision.RefuseNewer
		if downgrade {
			newer = provision.Downgrade
		}
		res, err := m.provision(ctx, mc, provisionOptions{newer: newer})
		to = res.Version
		if err == nil && len(res.Done) == 0 {
			m.Say("Machine %q is up to date.", name)
		}
		return err
	})
	return from, to, err
}

// Version asks a machine's engine.
func (m *Manager) Version(ctx context.Context, mc *Machine) (string, error) {
	url, err := mc.URL(ctx)
	if err != nil {
		return "", err
	}
	endpoint := EngineURL(url)
	conf, err := m.ClientTLS(mc, endpoint)
	if err != nil {
		return "", err
	}
	dial, release, err := mc.engineDial(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	return provision.Version(ctx, endpoint, conf, dial)
}
