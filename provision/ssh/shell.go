package ssh

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/term"
)

// Interactive runs cmd, or the login shell when cmd is empty, on this
// process's terminal when stdin is one. It restores the terminal.
func (c *Client) Interactive(ctx context.Context, cmd string, stdin io.Reader, stdout, stderr io.Writer) error {
	s, err := c.NewSession()
	if err != nil {
		return fmt.Errorf("ssh session: %w", err)
	}
	defer func() { _ = s.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	s.Stdin, s.Stdout, s.Stderr = stdin, stdout, stderr
	if in, ok := stdin.(*os.File); ok && cmd == "" && term.IsTerminal(int(in.Fd())) {
		restore, err := c.terminal(s, in)
		if err != nil {
			return err
		}
		defer restore()
	}
	if cmd == "" {
		if err := s.Shell(); err != nil {
			return fmt.Errorf("ssh shell: %w", err)
		}
		return exitError(ctx, s.Wait())
	}
	return exitError(ctx, s.Run(cmd))
}

// terminal asks for a pty like ours and keeps its size. restore ends both.
func (c *Client) terminal(s *ssh.Session, in *os.File) (restore func(), err error) {
	fd := int(in.Fd())
	w, h, err := term.GetSize(fd)
	if err != nil {
		w, h = 80, 24
	}
	name := os.Getenv("TERM")
	if name == "" {
		name = "xterm"
	}
	if err := s.RequestPty(name, h, w, ssh.TerminalModes{ssh.ECHO: 1}); err != nil {
		return nil, fmt.Errorf("ssh terminal: %w", err)
	}
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(250 * time.Millisecond):
			}
			if w2, h2, err := term.GetSize(fd); err == nil && (w2 != w || h2 != h) {
				w, h = w2, h2
				_ = s.WindowChange(h, w)
			}
		}
	}()
	return func() {
		close(stop)
		<-done
		_ = term.Restore(fd, old)
	}, nil
}
