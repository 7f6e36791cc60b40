// Package ssh reaches hosts: it dials with the machine's key or the user's
// agent, pins the host's key at first contact, runs commands, copies files and
// forwards connections, all over one connection.
package ssh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	dialTimeout      = 10 * time.Second
	handshakeTimeout = 10 * time.Second // a silent or half-open peer (F14)
	keepAlive        = 10 * time.Second
)

// A Config says which host to reach and how.
type Config struct {
	Host string
	Port int    // 22 when 0
	User string // root when empty
	Key  string // private key file; empty: SSH agent and the user's default keys
	// KnownHosts is the machine's own file. The key of the first contact is
	// written there, under Alias, and any other key is refused afterwards.
	KnownHosts string
	// Alias is the machine's name: with it a new IP is the same host.
	Alias string
	// Say, when set, is told of a host key that is seen for the first time.
	Say func(format string, args ...any)
	// KeepAlive is how often a silent host is asked for a sign of life, and
	// how long it may take for it; 10 s when 0.
	KeepAlive time.Duration
	// Jumps are the hosts that lead there, the nearest first.
	Jumps []Config

	jump bool // is one: the user's own keys count beside Key
}

func (c Config) addr() string {
	port := c.Port
	if port == 0 {
		port = 22
	}
	return net.JoinHostPort(c.Host, strconv.Itoa(port))
}

func (c Config) user() string {
	if c.User == "" {
		return "root"
	}
	return c.User
}

// ErrAuth is under the error of a host that refused our key: trying again does
// not help.
var ErrAuth = errors.New("the host refused the login")

// An ExitError is the status of a command that ran and failed.
type ExitError struct {
	Status int    // 128+n when a signal ended it
	Stderr string // its last words, when they were not shown
}

func (e *ExitError) Error() string {
	msg := fmt.Sprintf("exit status %d", e.Status)
	if s := strings.TrimSpace(e.Stderr); s != "" {
		msg += ": " + s
	}
	return msg
}

// A Client is one connection to a host. Its methods are for use by any number
// of goroutines.
type Client struct {
	*ssh.Client
	stop  chan struct{}
	done  chan struct{}
	jumps func() // closes the jump hosts' connections
}

// Dial connects and logs in. ErrAuth and *HostKeyError are final, other
// errors may pass. The caller closes the client.
func Dial(ctx context.Context, c Config) (*Client, error) {
	auth, closeAgent, err := authMethods(c)
	if err != nil {
		return nil, err
	}
	defer closeAgent()
	hostKeys, err := newHostKeys(c)
	if err != nil {
		return nil, err
	}
	conn, closeJumps, err := reach(ctx, c)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	// Not by a deadline: channels of jump hosts have none.
	late := time.AfterFunc(handshakeTimeout, func() { _ = conn.Close() })
	defer late.Stop()
	cfg := &ssh.ClientConfig{
		User:              c.user(),
		Auth:              auth,
		HostKeyCallback:   hostKeys.check,
		HostKeyAlgorithms: hostKeys.algorithms(),
		ClientVersion:     "SSH-2.0-machine",
	}
	// No chacha20-poly1305 and no CBC: Terrapin needs one of them, also
	// against a peer without strict key exchange.
	cfg.Ciphers = []string{"aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr"}
	sc, chans, reqs, err := ssh.NewClientConn(conn, c.addr(), cfg)
	if err != nil {
		_ = conn.Close()
		closeJumps()
		return nil, dialError(ctx, c, err)
	}
	cl := &Client{Client: ssh.NewClient(sc, chans, reqs), stop: make(chan struct{}), done: make(chan struct{}), jumps: closeJumps}
	every := c.KeepAlive
	if every == 0 {
		every = keepAlive
	}
	go cl.keepAlive(every)
	return cl, nil
}

func dialError(ctx context.Context, c Config, err error) error {
	var hk *HostKeyError
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("ssh to %s: %w", c.addr(), ctx.Err())
	case errors.As(err, &hk):
		return hk
	case strings.Contains(err.Error(), "unable to authenticate"):
		with := "with " + c.Key
		if c.Key == "" {
			with = "with the SSH agent and the default keys"
		}
		return fmt.Errorf("ssh to %s: %w of user %q %s: is the public key in that user's authorized_keys?", c.addr(), ErrAuth, c.user(), with)
	}
	return fmt.Errorf("ssh to %s: %w", c.addr(), err)
}

// Wait dials until the host answers or ctx ends; a refused login or a changed
// host key end it at once (F15).
func Wait(ctx context.Context, c Config) (*Client, error) {
	pause := 50 * time.Millisecond
	for {
		cl, err := Dial(ctx, c)
		var hk *HostKeyError
		if err == nil || errors.Is(err, ErrAuth) || errors.As(err, &hk) || isFinal(err) {
			return cl, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
		pause = min(pause*3/2, 2*time.Second)
	}
}

// isFinal tells errors of this computer from those of the host or the net.
func isFinal(err error) bool {
	var key *KeyError
	return errors.As(err, &key)
}

// keepAlive closes a connection whose peer fell silent (F13, F27).
func (c *Client) keepAlive(every time.Duration) {
	defer close(c.done)
	for {
		select {
		case <-c.stop:
			return
		case <-time.After(every):
		}
		alive := make(chan error, 1)
		go func() {
			_, _, err := c.SendRequest("keepalive@openssh.com", true, nil)
			alive <- err
		}()
		select {
		case err := <-alive:
			if err != nil {
				return
			}
		case <-time.After(every):
			_ = c.Client.Close()
			return
		case <-c.stop:
			return
		}
	}
}

// Close ends the connection and waits for its helpers. Safe to repeat.
func (c *Client) Close() error {
	select {
	case <-c.stop:
		return nil
	default:
	}
	close(c.stop)
	err := c.Client.Close()
	<-c.done
	c.jumps()
	return err
}

// session begins a session that is cut off when ctx ends. The caller calls end.
func (c *Client) session(ctx context.Context) (s *ssh.Session, end func(), err error) {
	if s, err = c.NewSession(); err != nil {
		return nil, nil, fmt.Errorf("ssh session: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	return s, func() { stop(); _ = s.Close() }, nil
}

// Run runs cmd in the login user's shell. A failed command is an *ExitError;
// when ctx ends, the command is cut off. Nil streams are empty.
func (c *Client) Run(ctx context.Context, cmd string, stdin io.Reader, stdout, stderr io.Writer) error {
	s, end, err := c.session(ctx)
	if err != nil {
		return err
	}
	defer end()
	s.Stdin, s.Stdout, s.Stderr = stdin, stdout, stderr
	return exitError(ctx, s.Run(cmd))
}

// Output runs cmd and returns its standard output, at most 16 MiB of it.
func (c *Client) Output(ctx context.Context, cmd string, stdin io.Reader) (string, error) {
	out, errs := &capped{max: 16 << 20}, &capped{max: 64 << 10}
	err := c.Run(ctx, cmd, stdin, out, errs)
	var exit *ExitError
	if errors.As(err, &exit) {
		exit.Stderr = errs.String()
	}
	return out.String(), err
}

// A Process is a command that runs on a host, with its streams.
type Process struct {
	Stdin  io.WriteCloser
	Stdout io.Reader
	wait   func() error
}

// Wait returns how the command ended, an *ExitError with its last words on
// standard error if it failed. Stdout must have been read to its end.
func (p *Process) Wait() error { return p.wait() }

// Start starts cmd in the login user's shell. When ctx ends, it is cut off.
// The caller calls Wait.
func (c *Client) Start(ctx context.Context, cmd string) (*Process, error) {
	s, end, err := c.session(ctx)
	if err != nil {
		return nil, err
	}
	errs := &capped{max: 64 << 10}
	s.Stderr = errs
	in, err1 := s.StdinPipe()
	out, err2 := s.StdoutPipe()
	if err := errors.Join(err1, err2); err != nil {
		end()
		return nil, err
	}
	if err := s.Start(cmd); err != nil {
		end()
		return nil, fmt.Errorf("ssh: %w", err)
	}
	return &Process{in, out, func() error {
		// Of a program that still talks nobody listens to: it is let go.
		_, _ = io.Copy(io.Discard, out)
		err := exitError(ctx, s.Wait())
		end()
		var exit *ExitError
		if errors.As(err, &exit) {
			exit.Stderr = errs.String()
			if exit.Stderr != "" {
				return errors.New(strings.TrimSpace(exit.Stderr))
			}
		}
		return err
	}}, nil
}

func exitError(ctx context.Context, err error) error {
	var exit *ssh.ExitError
	var missing *ssh.ExitMissingError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &exit):
		return &ExitError{Status: exit.ExitStatus()}
	case errors.As(err, &missing):
		return errors.New("the connection to the host broke while the command ran")
	}
	return err
}

// capped keeps the first max bytes and drops the rest.
type capped struct {
	strings.Builder
	max int
}

func (c *capped) Write(p []byte) (int, error) {
	if room := c.max - c.Len(); room > 0 {
		c.Builder.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// A KeyError says what is wrong with a private key file.
type KeyError struct {
	Path string
	Err  error
}

func (e *KeyError) Error() string { return fmt.Sprintf("SSH key %s: %v", e.Path, e.Err) }

func (e *KeyError) Unwrap() error { return e.Err }

// Quote makes s one word of a POSIX shell.
func Quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// readKey reads a private key, which nobody else may read.
func readKey(path string) (ssh.Signer, error) {
	if err := checkMode(path); err != nil {
		return nil, &KeyError{path, err}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, &KeyError{path, err}
	}
	signer, err := ssh.ParsePrivateKey(data)
	if err != nil {
		return nil, &KeyError{path, err}
	}
	return signer, nil
}
