package ssh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/term"
)

// A Session says what to run on a host, and how.
type Session struct {
	Command string // empty: the login shell
	// Terminal: nil asks for one when there is no command and stdin is one.
	Terminal *bool
	Agent    bool // let the host use the SSH agent of this computer
	Stdin    io.Reader
	Stdout   io.Writer
	Stderr   io.Writer
}

// Interactive runs a session, on this process's terminal when stdin is one. It
// restores the terminal.
func (c *Client) Interactive(ctx context.Context, o Session) error {
	s, end, err := c.session(ctx)
	if err != nil {
		return err
	}
	defer end()
	if o.Agent {
		if err := errors.Join(c.shareAgent(), agent.RequestAgentForwarding(s)); err != nil {
			return err
		}
	}
	s.Stdin, s.Stdout, s.Stderr = o.Stdin, o.Stdout, o.Stderr
	in, ok := o.Stdin.(*os.File)
	ours := ok && term.IsTerminal(int(in.Fd()))
	if want := o.Terminal; want != nil && *want || want == nil && ours && o.Command == "" {
		restore, err := c.terminal(s, in, ours)
		if err != nil {
			return err
		}
		defer restore()
	}
	if o.Command == "" {
		if err := s.Shell(); err != nil {
			return fmt.Errorf("ssh shell: %w", err)
		}
		return exitError(ctx, s.Wait())
	}
	return exitError(ctx, s.Run(o.Command))
}

// terminal asks for a pty like ours and keeps its size. restore ends both.
func (c *Client) terminal(s *ssh.Session, in *os.File, ours bool) (restore func(), err error) {
	fd, w, h := -1, 80, 24
	if ours {
		fd = int(in.Fd())
		if w2, h2, err := term.GetSize(fd); err == nil {
			w, h = w2, h2
		}
	}
	name := os.Getenv("TERM")
	if name == "" {
		name = "xterm"
	}
	if err := s.RequestPty(name, h, w, ssh.TerminalModes{ssh.ECHO: 1}); err != nil {
		return nil, fmt.Errorf("ssh terminal: %w", err)
	}
	if !ours {
		return func() {}, nil
	}
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	resized, forget := resizes()
	go func() {
		defer close(done)
		defer forget()
		for {
			select {
			case <-stop:
				return
			case <-resized:
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
