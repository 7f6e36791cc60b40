package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/rpc"
	"os"
	"strings"
	"sync"
	"time"

	"machine/drivers"
)

// silence is how long a served driver lives without a heartbeat.
const silence = 10 * time.Second

// Name returns which driver a program of this name serves.
func Name(program string) (string, bool) { return strings.CutPrefix(program, prefix) }

// Serve serves one driver until its host closes it or falls silent. The
// address goes to stdout. agent finds the agent's binary.
func Serve(ctx context.Context, kind drivers.Kind, stdout io.Writer, agent func() (string, error)) error {
	if os.Getenv(tokenVar) != tokenValue {
		return fmt.Errorf("This is a Docker Machine plugin binary.\nPlugin binaries are not intended to be invoked directly.\nPlease use this plugin through the main 'docker-machine' binary.\n(API version: %d)", apiVersion) //nolint:staticcheck // docker-machine's words
	}
	register()
	s := &Server{kind: kind, beats: make(chan struct{}, 1), done: make(chan struct{})}
	s.env = drivers.Env{
		Log:   slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Say:   func(format string, args ...any) { fmt.Fprintf(stdout, format+"\n", args...) },
		Save:  func() error { return nil }, // the host saves
		Agent: agent,
	}
	srv := rpc.NewServer()
	if err := errors.Join(srv.RegisterName(service, s), srv.RegisterName(legacyService, s)); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(rpc.DefaultRPCPath, srv)
	hs := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = hs.Serve(sameUser{l}) }()
	defer func() { _ = hs.Close() }()
	fmt.Fprintln(stdout, l.Addr())
	for {
		select {
		case <-s.done:
			time.Sleep(50 * time.Millisecond) // let the answer out
			return nil
		case <-ctx.Done():
			return nil
		case <-s.beats:
		case <-time.After(silence):
			return errors.New("no heartbeat of the host: it is gone")
		}
	}
}

// sameUser drops connections of other users (S47).
type sameUser struct{ net.Listener }

// Accept returns the next connection of this user or root.
func (l sameUser) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil || peerAllowed(c) {
			return c, err
		}
		_ = c.Close()
	}
}

// Server is the RPC service. Its method set is the protocol's, which is why it
// is wider than a type of ours should be.
type Server struct {
	kind  drivers.Kind
	env   drivers.Env
	beats chan struct{}
	done  chan struct{}
	once  sync.Once

	mu     sync.Mutex
	driver drivers.Driver
}

// None is the empty argument and answer.
type None = struct{}

func (s *Server) get() drivers.Driver {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.driver == nil {
		s.driver = s.kind.New(s.env)
	}
	return s.driver
}

// guard turns a panic of the driver into an error.
func guard(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("panic in the driver: %v", r)
	}
}

// GetVersion tells the protocol's version.
func (s *Server) GetVersion(_ *None, out *int) error { *out = apiVersion; return nil }

// Close ends the program.
func (s *Server) Close(_, _ *None) error { s.once.Do(func() { close(s.done) }); return nil }

// Heartbeat keeps the program alive.
func (s *Server) Heartbeat(_, _ *None) error {
	select {
	case s.beats <- struct{}{}:
	default:
	}
	return nil
}

// SetConfigRaw makes the driver with a configuration.
func (s *Server) SetConfigRaw(data []byte, _ *None) (err error) {
	defer guard(&err)
	var b drivers.Base
	if err := json.Unmarshal(data, &b); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.env.Machine, s.env.Store = b.MachineName, b.StorePath
	s.driver = s.kind.New(s.env)
	return json.Unmarshal(data, s.driver)
}

// GetConfigRaw returns the driver's configuration.
func (s *Server) GetConfigRaw(_ *None, out *[]byte) (err error) {
	*out, err = json.Marshal(s.get())
	return err
}

// GetCreateFlags returns the driver's flags.
func (s *Server) GetCreateFlags(_ *None, out *[]any) error { *out = toWire(s.kind.Flags); return nil }

// SetConfigFromFlags configures the driver.
func (s *Server) SetConfigFromFlags(flags *any, _ *None) (err error) {
	defer guard(&err)
	f, ok := (*flags).(*RPCFlags)
	if !ok {
		return fmt.Errorf("flags are %T", *flags)
	}
	return s.get().Configure(drivers.Options(f.Values))
}

// DriverName returns the driver's name.
func (s *Server) DriverName(_ *None, out *string) error { *out = s.kind.Name; return nil }

// GetMachineName returns the machine's name.
func (s *Server) GetMachineName(_ *None, out *string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	*out = s.env.Machine
	return nil
}

func (s *Server) address(f func(drivers.Address)) (err error) {
	defer guard(&err)
	a, err := s.get().Address(context.Background())
	f(a)
	return err
}

// GetIP returns the address.
func (s *Server) GetIP(_ *None, out *string) error {
	return s.address(func(a drivers.Address) { *out = a.IP })
}

// GetURL returns the engine's URL.
func (s *Server) GetURL(_ *None, out *string) error {
	return s.address(func(a drivers.Address) { *out = a.URL })
}

// GetSSHHostname returns where SSH is.
func (s *Server) GetSSHHostname(_ *None, out *string) error {
	return s.address(func(a drivers.Address) { *out = a.SSH.Host })
}

// GetSSHKeyPath returns the private key; it is known also while the host is down.
func (s *Server) GetSSHKeyPath(_ *None, out *string) error {
	_ = s.address(func(a drivers.Address) { *out = a.SSH.Key })
	return nil
}

// GetSSHUsername returns the login user, also while the host is down.
func (s *Server) GetSSHUsername(_ *None, out *string) error {
	_ = s.address(func(a drivers.Address) { *out = a.SSH.User })
	return nil
}

// GetSSHPort returns SSH's port, also while the host is down.
func (s *Server) GetSSHPort(_ *None, out *int) error {
	_ = s.address(func(a drivers.Address) { *out = a.SSH.Port })
	return nil
}

// GetState observes the machine.
func (s *Server) GetState(_ *None, out *int) (err error) {
	defer guard(&err)
	st, err := s.get().State(context.Background())
	*out = int(st)
	return err
}

// PreCreateCheck checks if the driver can.
func (s *Server) PreCreateCheck(_, _ *None) (err error) {
	defer guard(&err)
	if c, ok := s.get().(drivers.Checker); ok {
		return c.PreCreateCheck(context.Background())
	}
	return nil
}

// Create makes the machine.
func (s *Server) Create(_, _ *None) (err error) {
	defer guard(&err)
	return s.get().Create(context.Background())
}

// Remove deletes the machine.
func (s *Server) Remove(_, _ *None) (err error) {
	defer guard(&err)
	return s.get().Remove(context.Background())
}

// Start starts the machine.
func (s *Server) Start(_, _ *None) (err error) {
	defer guard(&err)
	if d, ok := s.get().(drivers.Starter); ok {
		return d.Start(context.Background())
	}
	return s.unsupported("start")
}

// Stop stops the machine.
func (s *Server) Stop(_, _ *None) (err error) {
	defer guard(&err)
	if d, ok := s.get().(drivers.Stopper); ok {
		return d.Stop(context.Background())
	}
	return s.unsupported("stop")
}

// Kill cuts the machine's power.
func (s *Server) Kill(_, _ *None) (err error) {
	defer guard(&err)
	if d, ok := s.get().(drivers.Killer); ok {
		return d.Kill(context.Background())
	}
	return s.unsupported("kill")
}

// Restart restarts the machine, by stop and start if need be.
func (s *Server) Restart(in, out *None) (err error) {
	defer guard(&err)
	if d, ok := s.get().(drivers.Restarter); ok {
		return d.Restart(context.Background())
	}
	if err := s.Stop(in, out); err != nil {
		return err
	}
	return s.Start(in, out)
}

func (s *Server) unsupported(what string) error {
	return fmt.Errorf("driver %q does not support %s", s.kind.Name, what)
}
