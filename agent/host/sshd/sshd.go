// Package sshd is the small SSH server of a local machine: commands, shells,
// terminals, SFTP and forwards, for holders of the machine's key.
//
// Protocol: RFC 4251-4254, with OpenSSH's direct-streamlocal extension
// (PROTOCOL in OpenSSH's sources). Every key in the authorized_keys file may
// log in as any user of /etc/passwd: it is the key of the machine's root.
package sshd

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	confDir          = "/etc/machine"
	handshakeTimeout = 20 * time.Second
	maxHandshakes    = 64 // at once; more wait in the listener's queue
)

// A Server serves connections of one listener.
type Server struct {
	HostKey        ssh.Signer
	AuthorizedKeys string // path, read at every login
	Log            *slog.Logger
}

// Main is the process that the machine's init starts, with the listener as
// fd 3. It serves until SIGTERM.
func Main() error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	f := os.NewFile(3, "listener")
	l, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("SSH listener: %w", err)
	}
	_ = f.Close()
	key, err := readHostKey(filepath.Join(confDir, "ssh_host_ed25519_key"))
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	s := &Server{HostKey: key, AuthorizedKeys: filepath.Join(confDir, "authorized_keys"), Log: log}
	return s.Serve(ctx, l)
}

// EnsureHostKey makes an Ed25519 host key unless there is one. Safe to repeat.
func EnsureHostKey(path string) error {
	if _, err := readHostKey(path); err == nil {
		return nil
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("host key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		return fmt.Errorf("host key: %w", err)
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, pem.EncodeToMemory(block), 0o600); err != nil {
		return fmt.Errorf("host key: %w", err)
	}
	return os.Rename(tmp, path)
}

func readHostKey(path string) (ssh.Signer, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("host key: %w", err)
	}
	key, err := ssh.ParsePrivateKey(data)
	if err != nil {
		return nil, fmt.Errorf("host key %s: %w", path, err)
	}
	return key, nil
}

// Serve accepts connections until ctx ends, closes l, and waits for all that
// it started.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	slots := make(chan struct{}, maxHandshakes)
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() || errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ECONNABORTED) {
				time.Sleep(10 * time.Millisecond)
				continue
			}
			return fmt.Errorf("accept SSH connection: %w", err)
		}
		slots <- struct{}{}
		wg.Go(func() { s.serveConn(ctx, conn, func() { <-slots }) })
	}
}

func (s *Server) config() *ssh.ServerConfig {
	cfg := &ssh.ServerConfig{
		MaxAuthTries:  6,
		ServerVersion: "SSH-2.0-machine",
		PublicKeyCallback: func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if s.authorized(key) {
				return &ssh.Permissions{}, nil
			}
			return nil, errors.New("key is not authorized")
		},
	}
	cfg.Ciphers = []string{"aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr"}
	cfg.AddHostKey(s.HostKey)
	return cfg
}

func (s *Server) authorized(key ssh.PublicKey) bool {
	data, err := os.ReadFile(s.AuthorizedKeys)
	if err != nil {
		return false
	}
	wire := key.Marshal()
	for len(data) > 0 {
		known, _, _, rest, err := ssh.ParseAuthorizedKey(data)
		if err != nil {
			return false
		}
		if bytes.Equal(known.Marshal(), wire) {
			return true
		}
		data = rest
	}
	return false
}

// serveConn serves one connection. shaken gives the handshake's slot back.
func (s *Server) serveConn(ctx context.Context, conn net.Conn, shaken func()) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	_ = conn.SetDeadline(time.Now().Add(handshakeTimeout))
	sc, chans, reqs, err := ssh.NewServerConn(conn, s.config())
	shaken()
	if err != nil {
		_ = conn.Close()
		s.Log.Info("SSH login failed", "from", conn.RemoteAddr(), "error", err)
		return
	}
	_ = conn.SetDeadline(time.Time{})
	acct, err := lookup(sc.User())
	if err != nil {
		s.Log.Warn("SSH login", "user", sc.User(), "error", err)
		_ = sc.Close()
		return
	}
	c := &connection{Server: s, conn: sc, user: acct, forwards: map[string]net.Listener{}}
	ctx, cancel := context.WithCancel(ctx)
	defer c.wg.Wait()
	defer cancel()
	defer c.closeForwards()
	defer func() { _ = sc.Close() }()
	c.wg.Go(func() { c.globalRequests(ctx, reqs) })
	for nc := range chans {
		c.wg.Go(func() { c.channel(ctx, nc) })
	}
}

// A connection is one login.
type connection struct {
	*Server
	conn *ssh.ServerConn
	user account
	wg   sync.WaitGroup

	mu       sync.Mutex
	forwards map[string]net.Listener
	closed   bool
}

func (c *connection) channel(ctx context.Context, nc ssh.NewChannel) {
	switch nc.ChannelType() {
	case "session":
		ch, reqs, err := nc.Accept()
		if err != nil {
			return
		}
		newSession(c, ch).serve(ctx, reqs)
	case "direct-tcpip":
		c.directTCP(ctx, nc)
	case "direct-streamlocal@openssh.com":
		c.directUnix(ctx, nc)
	default:
		_ = nc.Reject(ssh.UnknownChannelType, "unknown channel type "+nc.ChannelType())
	}
}
