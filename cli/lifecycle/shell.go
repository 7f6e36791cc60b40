package lifecycle

import (
	"context"
	"io"

	"machine/provision/ssh"
)

// Shell runs cmd on a machine, or its login shell when cmd is empty, with our
// own SSH client.
func (m *Manager) Shell(ctx context.Context, mc *Machine, cmd string, stdin io.Reader, stdout, stderr io.Writer) error {
	conf, err := mc.SSH(ctx)
	if err != nil {
		return err
	}
	cl, err := ssh.Dial(ctx, conf)
	if err != nil {
		return err
	}
	defer func() { _ = cl.Close() }()
	return cl.Interactive(ctx, cmd, stdin, stdout, stderr)
}
