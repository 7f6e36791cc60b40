// Package local is the driver for hosts on this very computer without a
// virtual machine: namespaces over the computer's own root, with a private
// address, SSH and the agent. It needs Linux and root.
//
// The kernel's part is done by the agent's binary (agent host …), so that this
// package is the same on every platform.
package local

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"machine/drivers"
)

// Name is the driver's name.
const Name = "local"

const (
	enginePort = 2376
	callLimit  = 90 * time.Second
)

// Kind describes the driver.
func Kind() drivers.Kind {
	return drivers.Kind{
		Name: Name,
		Flags: []drivers.Flag{
			{Name: "local-ip-address", Usage: "Address on the computer's machine0 bridge (default: the first free one)", Env: "LOCAL_IP_ADDRESS", Value: ""},
		},
		New: func(env drivers.Env) drivers.Driver { return &Driver{env: env} },
	}
}

// Driver is one local machine.
type Driver struct {
	drivers.Base

	env drivers.Env
}

// Configure takes the wanted address.
func (d *Driver) Configure(o drivers.Options) error {
	d.Init(d.env, o)
	d.IPAddress = o.String("local-ip-address")
	d.SSHUser, d.SSHPort = "root", 22
	return nil
}

// PreCreateCheck tells at once what cannot work.
func (d *Driver) PreCreateCheck(context.Context) error {
	if runtime.GOOS != "linux" {
		return fmt.Errorf("the local driver needs Linux, this is %s: take -d virtualbox", runtime.GOOS)
	}
	if os.Geteuid() != 0 {
		return errors.New("the local driver needs root, for namespaces and the bridge: run the command with sudo")
	}
	_, err := d.env.Agent()
	return err
}

// Create makes a key and starts the machine.
func (d *Driver) Create(ctx context.Context) error {
	key := filepath.Join(d.dir(), "id_ed25519")
	if err := makeKey(key, d.MachineName); err != nil {
		return err
	}
	d.SSHKeyPath = key
	if err := d.env.Save(); err != nil {
		return err
	}
	return d.Start(ctx)
}

// status is what the agent's host commands print.
type status struct {
	Running bool
	IP      string
}

// Start boots the machine; it keeps its address if nobody took it.
func (d *Driver) Start(ctx context.Context) error {
	st, err := d.call(ctx, "run", "--name", d.MachineName, "--ip", d.IPAddress, "--key", d.SSHKeyPath+".pub", "--store", d.StorePath)
	if err != nil {
		return err
	}
	d.IPAddress = st.IP
	return d.env.Save()
}

// Stop ends what runs inside, containers as well, and then the machine.
func (d *Driver) Stop(ctx context.Context) error { _, err := d.call(ctx, "stop"); return err }

// Kill ends the machine at once.
func (d *Driver) Kill(ctx context.Context) error { _, err := d.call(ctx, "kill"); return err }

// State looks for the machine's first process.
func (d *Driver) State(context.Context) (drivers.State, error) {
	if alive(filepath.Join(d.dir(), "host.pid")) {
		return drivers.Running, nil
	}
	return drivers.Stopped, nil
}

// Address is that on the bridge.
func (d *Driver) Address(ctx context.Context) (drivers.Address, error) {
	a := d.Base.Address(enginePort)
	st, err := d.State(ctx)
	if err == nil && st != drivers.Running {
		a.URL, err = "", drivers.ErrNotRunning
	}
	return a, err
}

// Remove takes the machine away, with its address and, if it was the last
// one, the bridge.
func (d *Driver) Remove(ctx context.Context) error { _, err := d.call(ctx, "remove"); return err }

// dir is where the machine's files are; a renamed machine keeps its own.
func (d *Driver) dir() string { return filepath.Join(d.StorePath, "machines", d.MachineName) }

func (d *Driver) call(ctx context.Context, verb string, args ...string) (status, error) {
	bin, err := d.env.Agent()
	if err != nil {
		return status{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, append([]string{"host", verb, "--dir", d.dir()}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		if msg := strings.TrimSpace(errs.String()); msg != "" {
			return status{}, errors.New(msg)
		}
		return status{}, fmt.Errorf("machine-agent host %s: %w", verb, err)
	}
	var st status
	if err := json.Unmarshal(out.Bytes(), &st); err != nil {
		return status{}, fmt.Errorf("machine-agent host %s: %w", verb, err)
	}
	return st, nil
}

// alive tells whether the process of the record still is that process: its
// number may belong to another one by now.
func alive(file string) bool {
	data, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	var rec struct {
		PID   int
		Start json.Number
	}
	if json.Unmarshal(data, &rec) != nil || rec.PID <= 1 {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", rec.PID))
	if err != nil {
		return false
	}
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	return len(f) > 19 && f[0][0] != 'Z' && string(f[19]) == rec.Start.String()
}

// makeKey writes an Ed25519 key pair unless it is there.
func makeKey(path, comment string) error {
	if _, err := os.Stat(path + ".pub"); err == nil {
		return nil
	}
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("make SSH key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(priv, comment)
	if err != nil {
		return fmt.Errorf("make SSH key: %w", err)
	}
	sshPub, err := ssh.NewPublicKey(pub)
	if err != nil {
		return fmt.Errorf("make SSH key: %w", err)
	}
	// The public half last: its presence says that the pair is whole.
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		return fmt.Errorf("make SSH key: %w", err)
	}
	if err := os.WriteFile(path+".pub", ssh.MarshalAuthorizedKey(sshPub), 0o600); err != nil {
		return fmt.Errorf("make SSH key: %w", err)
	}
	return nil
}
