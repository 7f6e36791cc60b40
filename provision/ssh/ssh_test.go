package ssh

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// server is an SSH server that knows three commands: "fail" ends with 3 and
// says so, "hang" never ends, all others echo themselves.
func server(t *testing.T, authorized ssh.PublicKey) (addr string) {
	t.Helper()
	_, hostKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(hostKey)
	if err != nil {
		t.Fatal(err)
	}
	conf := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, k ssh.PublicKey) (*ssh.Permissions, error) {
		if string(k.Marshal()) == string(authorized.Marshal()) {
			return nil, nil
		}
		return nil, errors.New("no")
	}}
	conf.AddHostKey(signer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c, conf)
		}
	}()
	return l.Addr().String()
}

func serve(c net.Conn, conf *ssh.ServerConfig) {
	_, chans, reqs, err := ssh.NewServerConn(c, conf)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(reqs)
	for nc := range chans {
		ch, reqs, err := nc.Accept()
		if err != nil {
			return
		}
		go func() {
			for r := range reqs {
				var m struct{ Cmd string }
				_ = ssh.Unmarshal(r.Payload, &m)
				_ = r.Reply(true, nil)
				status := uint32(0)
				switch m.Cmd {
				case "hang":
					continue
				case "fail":
					_, _ = io.WriteString(ch.Stderr(), "it failed\n")
					status = 3
				default:
					_, _ = io.WriteString(ch, m.Cmd)
				}
				_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ S uint32 }{status}))
				_ = ch.Close()
			}
		}()
	}
}

// keyFile writes a new private key and returns its path and public half.
func keyFile(t *testing.T) (string, ssh.PublicKey) {
	t.Helper()
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(priv, "")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "id")
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, signer.PublicKey()
}

func config(t *testing.T, addr, key string) Config {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := net.LookupPort("tcp", port)
	if err != nil {
		t.Fatal(err)
	}
	return Config{Host: host, Port: n, Key: key, KnownHosts: filepath.Join(t.TempDir(), "known_hosts"), Alias: "m"}
}

func TestRun(t *testing.T) {
	key, pub := keyFile(t)
	ctx := context.Background()
	cl, err := Dial(ctx, config(t, server(t, pub), key))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := cl.Output(ctx, "echo me", nil); err != nil || out != "echo me" {
		t.Errorf("%q, %v", out, err)
	}
	var exit *ExitError
	if _, err := cl.Output(ctx, "fail", nil); !errors.As(err, &exit) || exit.Status != 3 || !strings.Contains(err.Error(), "it failed") {
		t.Errorf("fail: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := cl.Output(short, "hang", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hang: %v", err)
	}
	if err := errors.Join(cl.Close(), cl.Close()); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// TestF15BadCredentials fails at once, and not after sixty tries.
func TestF15BadCredentials(t *testing.T) {
	_, pub := keyFile(t)
	other, _ := keyFile(t)
	addr := server(t, pub)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if _, err := Wait(ctx, config(t, addr, other)); !errors.Is(err, ErrAuth) || ctx.Err() != nil {
		t.Errorf("wrong key: %v", err)
	}
	if _, err := Wait(ctx, config(t, addr, "/nonexistent/key")); err == nil || ctx.Err() != nil {
		t.Errorf("no key: %v", err)
	}
}

// between leads connections to target, and drops what comes on one while passes
// does not say that it passes. first is the first connection of all.
func between(t *testing.T, target string, passes func(first bool) bool) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for first := true; ; first = false {
			c, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", target)
			if err != nil {
				return
			}
			pass := func(dst io.Writer, src io.Reader) {
				buf := make([]byte, 4096)
				for {
					n, err := src.Read(buf)
					if err != nil {
						return
					}
					if passes(first) {
						_, _ = dst.Write(buf[:n])
					}
				}
			}
			go pass(up, c)
			go pass(c, up)
		}
	}()
	return l.Addr().String()
}

// TestF13SilentPeer: a host that falls silent is given up.
func TestF13SilentPeer(t *testing.T) {
	key, pub := keyFile(t)
	target := server(t, pub)
	var silent atomic.Bool
	conf := config(t, between(t, target, func(bool) bool { return !silent.Load() }), key)
	conf.KeepAlive = 100 * time.Millisecond
	cl, err := Dial(context.Background(), conf)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cl.Close() }()
	done := make(chan error, 1)
	go func() { _, err := cl.Output(context.Background(), "hang", nil); done <- err }()
	time.Sleep(300 * time.Millisecond)
	select {
	case err := <-done:
		t.Fatalf("a living host was given up: %v", err)
	default:
	}
	silent.Store(true)
	select {
	case err := <-done:
		if err == nil {
			t.Error("the command of a silent host succeeded")
		}
	case <-time.After(30 * time.Second):
		t.Error("a silent host was waited for")
	}
}

func TestQuote(t *testing.T) {
	for in, want := range map[string]string{"a b": `'a b'`, "it's $x": `'it'\''s $x'`, "": "''"} {
		if got := Quote(in); got != want {
			t.Errorf("%q: %s", in, got)
		}
	}
}
