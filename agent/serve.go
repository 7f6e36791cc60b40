package agent

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Time-outs of the API's connections: a client that does not finish its
// handshake or its headers is cut off; an idle one costs little and stays.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 5 * time.Minute
)

// keys is the TLS identity, replaced as a whole when certificates are renewed.
type keys struct {
	c   *Config
	cur atomic.Pointer[tls.Config]
}

// load reads the certificate files; a failure leaves the old ones in use.
func (k *keys) load() error {
	cert, err := tls.LoadX509KeyPair(k.c.Cert, k.c.Key)
	if err != nil {
		return fmt.Errorf("TLS certificate: %w", err)
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}
	if k.c.TLSVerify {
		pem, err := os.ReadFile(k.c.CACert)
		if err != nil {
			return fmt.Errorf("TLS CA: %w", err)
		}
		t.ClientCAs = x509.NewCertPool()
		if !t.ClientCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("TLS CA: %s holds no certificate", k.c.CACert)
		}
		t.ClientAuth = tls.RequireAndVerifyClientCert
	}
	k.cur.Store(t)
	return nil
}

// config looks the identity up for each connection, so that renewed
// certificates need no restart.
func (k *keys) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return k.cur.Load(), nil },
	}
}

// listen opens the addresses of --host. On failure none stays open.
func listen(c *Config, k *keys) (list []net.Listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range list {
				l.Close()
			}
		}
	}()
	for _, h := range c.Hosts {
		l, err := listenAt(h, c, k)
		// A child that was being made when the last agent was killed has its
		// sockets until its exec.
		for try := 0; try < 20 && errors.Is(err, unix.EADDRINUSE); try++ {
			time.Sleep(50 * time.Millisecond)
			l, err = listenAt(h, c, k)
		}
		if err != nil {
			return list, fmt.Errorf("listen on %s: %w", h, err)
		}
		list = append(list, l)
	}
	return list, nil
}

func listenAt(host string, c *Config, k *keys) (net.Listener, error) {
	proto, addr, ok := strings.Cut(host, "://")
	if !ok {
		proto, addr = "tcp", host
	}
	switch proto {
	case "unix":
		return listenUnix(addr, c.SocketGroup)
	case "tcp":
		return listenTCP(addr, c, k)
	case "fd":
		return inherited()
	}
	return nil, fmt.Errorf("protocol %q is not supported", proto)
}

func listenTCP(addr string, c *Config, k *keys) (net.Listener, error) {
	if addr == "" {
		addr = "127.0.0.1"
	}
	if _, _, err := net.SplitHostPort(addr); err != nil {
		port := "2375"
		if c.TLS {
			port = "2376"
		}
		addr = net.JoinHostPort(addr, port)
	}
	host, _, _ := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); !c.TLSVerify && (ip == nil || !ip.IsLoopback()) && host != "localhost" {
		return nil, errors.New("without --tlsverify whoever can connect is root here: use --tlsverify, or listen on 127.0.0.1")
	}
	l, err := net.Listen("tcp", addr)
	if err != nil || !c.TLS {
		return l, err
	}
	return tls.NewListener(l, k.config()), nil
}

// listenUnix makes the socket, for root and a group: the one that was chosen,
// or docker where there is one. A stale socket of an agent that is gone is replaced; a live one is
// not.
func listenUnix(path, group string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("another engine listens there already: %w", unix.EADDRINUSE)
	}
	os.Remove(path)
	tmp := path + ".new" // never there with the wrong mode
	os.Remove(tmp)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(tmp, 0o660); err != nil {
		l.Close()
		return nil, err
	}
	gid, ok := findGroup(cmp.Or(group, "docker"))
	if !ok && group != "" {
		l.Close()
		os.Remove(tmp)
		return nil, fmt.Errorf("group %s of the socket %s does not exist", group, path)
	}
	if ok {
		os.Chown(tmp, 0, gid)
	}
	if err := os.Rename(tmp, path); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// findGroup finds a group by its name or number.
func findGroup(name string) (gid int, ok bool) {
	if n, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(n), true
	}
	b, err := os.ReadFile("/etc/group")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Split(line, ":"); len(f) > 2 && f[0] == name {
			_, err := fmt.Sscan(f[2], &gid)
			return gid, err == nil
		}
	}
	return 0, false
}

// inherited takes the socket that systemd opened, sd_listen_fds(3).
func inherited() (net.Listener, error) {
	if os.Getenv("LISTEN_FDS") == "" {
		return nil, errors.New("no socket was handed over")
	}
	f := os.NewFile(3, "listen")
	defer f.Close()
	return net.FileListener(f)
}

// serve answers on all listeners until ctx ends; requests in flight then
// have a moment to finish, streams are cut.
func serve(ctx context.Context, list []net.Listener, h http.Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: 1 << 20,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	var wg sync.WaitGroup
	errs := make(chan error, len(list))
	for _, l := range list {
		wg.Go(func() {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				errs <- err
			}
		})
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-errs:
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if srv.Shutdown(grace) != nil {
		srv.Close()
	}
	wg.Wait()
	return err
}
