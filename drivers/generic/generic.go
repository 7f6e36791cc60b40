// Package generic is the driver for a host that is there already and answers
// SSH.
package generic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"machine/drivers"
)

// Name is the driver's name.
const Name = "generic"

// dialTimeout bounds the look whether the host is up, as in docker-machine.
const dialTimeout = 15 * time.Second

// Kind describes the driver.
func Kind() drivers.Kind {
	return drivers.Kind{
		Name: Name,
		Flags: []drivers.Flag{
			{Name: "generic-engine-port", Usage: "Port of the engine", Env: "GENERIC_ENGINE_PORT", Value: 2376},
			{Name: "generic-ip-address", Usage: "Address of the host, or its name in ~/.ssh/config", Env: "GENERIC_IP_ADDRESS", Value: ""},
			{Name: "generic-ssh-jump", Usage: "Hosts that lead there: [USER@]HOST[:PORT], with commas between", Env: "GENERIC_SSH_JUMP", Value: ""},
			{Name: "generic-ssh-key", Usage: "File of the private key (default: the SSH agent, and keys in ~/.ssh)", Env: "GENERIC_SSH_KEY", Value: ""},
			{Name: "generic-ssh-port", Usage: "Port of SSH", Env: "GENERIC_SSH_PORT", Value: 22},
			{Name: "generic-ssh-user", Usage: "User who logs in: root, or one who may use sudo without a password", Env: "GENERIC_SSH_USER", Value: "root"},
		},
		New: func(env drivers.Env) drivers.Driver { return &Driver{env: env} },
	}
}

// Driver is one host behind SSH.
type Driver struct {
	drivers.Base
	EnginePort int
	SSHKey     string // the key as the user named it; SSHKeyPath is our copy
	SSHJump    string `json:",omitempty"` // hosts that lead there

	env drivers.Env
}

// Configure takes the flags; the address is required.
func (d *Driver) Configure(o drivers.Options) error {
	d.Init(d.env, o)
	d.EnginePort = o.Int("generic-engine-port")
	d.IPAddress = o.String("generic-ip-address")
	d.SSHUser = o.String("generic-ssh-user")
	d.SSHKey = o.String("generic-ssh-key")
	d.SSHPort = o.Int("generic-ssh-port")
	d.SSHJump = o.String("generic-ssh-jump")
	if err := d.readSSHConfig(); err != nil {
		return err
	}
	if d.IPAddress == "" {
		return errors.New("generic driver requires the --generic-ip-address option")
	}
	if d.SSHPort < 1 || d.SSHPort > 65535 || d.EnginePort < 1 || d.EnginePort > 65535 {
		return fmt.Errorf("ports must be 1 to 65535: --generic-ssh-port %d, --generic-engine-port %d", d.SSHPort, d.EnginePort)
	}
	return nil
}

// PreCreateCheck reads the key, so that a public key or one with a passphrase
// is refused here and not after a minute of tries.
func (d *Driver) PreCreateCheck(context.Context) error {
	if d.SSHKey == "" {
		return nil
	}
	data, err := os.ReadFile(d.SSHKey)
	if err != nil {
		return fmt.Errorf("SSH key does not exist: %q", d.SSHKey)
	}
	_, err = ssh.ParseRawPrivateKey(data)
	var locked *ssh.PassphraseMissingError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &locked):
		return fmt.Errorf("SSH key %q has a passphrase: load it with ssh-add and leave --generic-ssh-key out", d.SSHKey)
	case strings.HasSuffix(d.SSHKey, ".pub"):
		return fmt.Errorf("SSH key %q is the public half: name the private key", d.SSHKey)
	}
	return fmt.Errorf("SSH key %q: %w", d.SSHKey, err)
}

// Create copies the key into the machine's folder. The host is not touched.
func (d *Driver) Create(context.Context) error {
	if d.SSHKey == "" {
		d.env.Say("No SSH key specified. Assuming an existing key at the default location.")
		return nil
	}
	d.env.Say("Importing SSH key...")
	dst := filepath.Join(d.env.Dir(), filepath.Base(d.SSHKey))
	if err := copyFile(d.SSHKey, dst); err != nil {
		return fmt.Errorf("copy SSH key %s: %w", d.SSHKey, err)
	}
	d.SSHKeyPath = dst
	if err := copyFile(d.SSHKey+".pub", dst+".pub"); err != nil {
		d.env.Say("Couldn't copy SSH public key : %s", err)
	}
	return nil
}

// Change takes another address, user, port or key for the same host.
func (d *Driver) Change(ctx context.Context, o drivers.Options) error {
	key := d.SSHKey
	if err := d.Configure(o); err != nil || d.SSHKey == key {
		return err
	}
	if d.SSHKey == "" { // the default ones from now on; the copy stays until the machine goes
		d.SSHKeyPath = ""
		return nil
	}
	if err := d.PreCreateCheck(ctx); err != nil {
		return err
	}
	return d.Create(ctx)
}

// State is Running when the SSH port accepts.
func (d *Driver) State(ctx context.Context) (drivers.State, error) {
	dialer := net.Dialer{Timeout: dialTimeout}
	addr := net.JoinHostPort(d.IPAddress, strconv.Itoa(d.SSHPort))
	if d.SSHJump != "" {
		addr = firstJump(d.SSHJump) // all that can be seen from here
	}
	c, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return drivers.Stopped, nil
	}
	_ = c.Close()
	return drivers.Running, nil
}

// Address returns the address that the user gave.
func (d *Driver) Address(ctx context.Context) (drivers.Address, error) {
	port := d.EnginePort
	if port == 0 {
		port = 2376
	}
	a := d.Base.Address(port)
	a.SSH.Jump = d.SSHJump
	return a, nil
}

// Remove leaves the host as it is: it was there before us.
func (d *Driver) Remove(context.Context) error { return nil }

func copyFile(src, dst string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(0o600), out.Close())
}
