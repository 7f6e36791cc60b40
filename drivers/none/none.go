// Package none is the driver for an engine that somebody else runs: it only
// remembers a URL.
package none

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"machine/drivers"
)

// Name is the driver's name.
const Name = "none"

// Kind describes the driver.
func Kind() drivers.Kind {
	return drivers.Kind{
		Name:  Name,
		Bare:  true,
		Flags: []drivers.Flag{{Name: "url", Usage: "URL of an engine that is there: tcp://HOST:PORT; one with a CA of its own needs --tls-ca-cert, --tls-client-cert and --tls-client-key before create", Value: ""}},
		New:   func(env drivers.Env) drivers.Driver { return &Driver{env: env} },
	}
}

// Driver is one URL.
type Driver struct {
	drivers.Base
	URL string

	env drivers.Env
}

// Configure takes --url, which must be a URL with a host.
func (d *Driver) Configure(o drivers.Options) error {
	d.Init(d.env, o)
	raw := o.String("url")
	if raw == "" {
		return errors.New("--url option is required when no driver is selected")
	}
	u, err := url.Parse(raw)
	if err != nil {
		return fmt.Errorf("--url %q: %w", raw, err)
	}
	d.URL, d.IPAddress = raw, u.Hostname()
	return nil
}

// Create does nothing: the host is there.
func (d *Driver) Create(context.Context) error { return nil }

// Change takes another URL.
func (d *Driver) Change(_ context.Context, o drivers.Options) error { return d.Configure(o) }

// State is always Running: nobody can know.
func (d *Driver) State(context.Context) (drivers.State, error) { return drivers.Running, nil }

// Address returns the URL and its host.
func (d *Driver) Address(context.Context) (drivers.Address, error) {
	a := d.Base.Address(2376)
	a.URL = d.URL
	if u, err := url.Parse(d.URL); err == nil {
		a.IP = u.Hostname()
	}
	return a, nil
}

// Remove leaves the host as it is.
func (d *Driver) Remove(context.Context) error { return nil }
