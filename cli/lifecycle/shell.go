package lifecycle

import (
	"context"
	"io"
	"strings"

	"machine/provision/ssh"
)

// A Login says how `machine ssh` goes to a machine.
type Login struct {
	ssh.Session
	ssh.Forwards
	User, Key, Jump string // in place of the machine's, when not empty
	Port            int
	NoCommand       bool // only forwards; until ctx ends or the connection breaks
}

// Login runs a command or a shell on a machine with our own SSH client.
func (m *Manager) Login(ctx context.Context, mc *Machine, l Login) error {
	m.KeepFresh(ctx, mc)
	conf, err := mc.SSH(ctx)
	if err != nil {
		return err
	}
	if l.User != "" {
		conf.User = l.User
	}
	if l.Key != "" {
		conf.Key = l.Key
	}
	if l.Port != 0 {
		conf.Port = l.Port
	}
	if l.Jump != "" {
		conf.Jumps = nil
		if conf, err = conf.Via(l.Jump); err != nil {
			return err
		}
	}
	cl, err := ssh.Dial(ctx, conf)
	if err != nil {
		return err
	}
	defer func() { _ = cl.Close() }()
	stop, err := cl.Forward(ctx, l.Forwards)
	if err != nil {
		return err
	}
	defer stop()
	if !l.NoCommand {
		return cl.Interactive(ctx, l.Session)
	}
	broke := make(chan error, 1)
	go func() { broke <- cl.Wait() }()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-broke:
		return err
	}
}

// Shell runs cmd on a machine without input.
func (m *Manager) Shell(ctx context.Context, mc *Machine, cmd string, stdout, stderr io.Writer) error {
	return m.Login(ctx, mc, Login{Session: ssh.Session{Command: cmd, Stdin: strings.NewReader(""), Stdout: stdout, Stderr: stderr}})
}
