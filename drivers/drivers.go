// Package drivers says what a provider of hosts must offer: the Driver
// contract, the flags that it reads, the states a machine can be in, and small
// optional powers (Starter, Stopper …) that a driver has or has not.
//
// A driver's exported fields are its saved configuration: they are written as
// the "Driver" object of a machine's config.json and read back before any
// other call. The field names of [Base] and of each provider are those of
// docker-machine, so that existing stores keep working.
package drivers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
)

// A State is what a machine does just now. The numbers are docker-machine's
// and travel over its plugin protocol.
type State int

// The states.
const (
	None State = iota
	Running
	Paused
	Saved
	Stopped
	Stopping
	Starting
	Error
	Timeout
)

var stateNames = []string{"", "Running", "Paused", "Saved", "Stopped", "Stopping", "Starting", "Error", "Timeout"}

// String returns docker-machine's word for s, "" for None and the unknown.
func (s State) String() string {
	if s < 0 || int(s) >= len(stateNames) {
		return ""
	}
	return stateNames[s]
}

// ErrNotRunning is what Address answers while the machine is down. Its text is
// matched by docker-machine and by programs that drive it.
var ErrNotRunning = errors.New("Host is not running") //nolint:staticcheck // a message of docker-machine

// An Address says where a machine can be reached.
type Address struct {
	IP  string // without port; empty when not known
	URL string // the engine, tcp://IP:PORT; empty when the machine is down
	SSH SSH
}

// SSH says how to log in on a machine.
type SSH struct {
	Host string
	Port int    // 22 when 0
	User string // root when empty
	Key  string // path of the private key; empty: the user's SSH agent and default keys
	Jump string // hosts that lead there, [user@]host[:port],...; empty: none
}

// A Driver makes and removes one machine. Calls are not concurrent: whoever
// holds the machine's lock owns its driver. Every call returns soon after ctx
// ends.
type Driver interface {
	// Configure takes the values of the flags. It checks them, and has no
	// side effects.
	Configure(Options) error
	// Create makes the machine and starts it. It calls Env.Save each time
	// when it learns an identity that Remove needs, and before the act that
	// creates it where the provider lets it choose the identity. A second
	// Create after a failed one goes on with what is there.
	Create(ctx context.Context) error
	// State observes the machine; it trusts nothing stored.
	State(ctx context.Context) (State, error)
	// Address tells where the machine is. A machine that is down answers
	// with what is known and ErrNotRunning.
	Address(ctx context.Context) (Address, error)
	// Remove deletes the machine and all that Create made for it. A machine
	// that is gone already is no error.
	Remove(ctx context.Context) error
}

// A Starter can start a stopped machine, and returns when it runs.
type Starter interface {
	Start(ctx context.Context) error
}

// A Stopper can shut a machine down, and returns when it is down.
type Stopper interface {
	Stop(ctx context.Context) error
}

// A Killer can cut a machine's power.
type Killer interface {
	Kill(ctx context.Context) error
}

// A Restarter can restart a machine at once; others are stopped and started.
type Restarter interface {
	Restart(ctx context.Context) error
}

// A Checker checks before anything is made whether Create can work.
type Checker interface {
	PreCreateCheck(ctx context.Context) error
}

// A Changer can take other options for a machine that is there already. What
// creation has learnt stays. Safe to repeat.
type Changer interface {
	Change(ctx context.Context, o Options) error
}

// A Closer holds something (a plugin's process) that must be let go.
type Closer interface {
	Close() error
}

// Env is what a driver gets of the program around it.
type Env struct {
	Machine string // the machine's name
	Store   string // the store's folder, absolute
	Log     *slog.Logger
	// Say tells the user one line of progress.
	Say func(format string, args ...any)
	// Save writes the driver's configuration durably. Safe to repeat.
	Save func() error
	// Agent returns the path of an agent binary for this computer, which it
	// writes out of the program on first use.
	Agent func() (string, error)
}

// Dir returns the machine's own folder in the store.
func (e Env) Dir() string { return join(e.Store, "machines", e.Machine) }

// A Kind is one provider: its name, its flags and how to make its driver.
type Kind struct {
	Name  string
	Flags []Flag
	// New returns a driver without configuration; the caller then decodes
	// JSON into it, or calls Configure.
	New func(Env) Driver
	// Bare says that there is no host to log in to and to provision.
	Bare bool
}

// A Flag is one option of a driver, as --name on the command line.
type Flag struct {
	Name  string // without dashes, starts with the driver's name
	Usage string
	Env   string // environment variable that sets it, or ""
	// Value is the default and the type: string, int, bool or []string.
	Value any
}

// Options are the values of flags by name.
type Options map[string]any

// String returns the value of a string flag, "" when unset.
func (o Options) String(name string) string { v, _ := o[name].(string); return v }

// Strings returns the values of a repeatable flag.
func (o Options) Strings(name string) []string { v, _ := o[name].([]string); return v }

// Int returns the value of a number flag, 0 when unset.
func (o Options) Int(name string) int {
	switch v := o[name].(type) {
	case int:
		return v
	case string:
		n, _ := strconv.Atoi(v)
		return n
	}
	return 0
}

// Bool returns the value of a switch.
func (o Options) Bool(name string) bool { v, _ := o[name].(bool); return v }

// Base are the fields that every driver of docker-machine saves.
type Base struct {
	IPAddress      string
	MachineName    string
	SSHUser        string
	SSHPort        int
	SSHKeyPath     string
	StorePath      string
	SwarmMaster    bool
	SwarmHost      string
	SwarmDiscovery string
}

// Init fills what the environment tells, and the swarm flags.
func (b *Base) Init(env Env, o Options) {
	b.MachineName, b.StorePath = env.Machine, env.Store
	b.SwarmMaster = o.Bool("swarm-master")
	b.SwarmHost = o.String("swarm-host")
	b.SwarmDiscovery = o.String("swarm-discovery")
}

// Address builds the address of a machine whose engine listens on port.
func (b *Base) Address(port int) Address {
	a := Address{IP: b.IPAddress, SSH: SSH{Host: b.IPAddress, Port: b.SSHPort, User: b.SSHUser, Key: b.SSHKeyPath}}
	if a.SSH.Port == 0 {
		a.SSH.Port = 22
	}
	if a.SSH.User == "" {
		a.SSH.User = "root"
	}
	if b.IPAddress != "" {
		a.URL = fmt.Sprintf("tcp://%s", net.JoinHostPort(b.IPAddress, strconv.Itoa(port)))
	}
	return a
}
