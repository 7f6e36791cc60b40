package sshd

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// serve starts a server and returns its address and the key that may log in.
func serve(t *testing.T) (addr string, key ssh.Signer) {
	t.Helper()
	dir := t.TempDir()
	hostKey := filepath.Join(dir, "host")
	if err := errors.Join(EnsureHostKey(hostKey), EnsureHostKey(hostKey)); err != nil {
		t.Fatal(err)
	}
	host, err := readHostKey(hostKey)
	if err != nil {
		t.Fatal(err)
	}
	key = newKey(t)
	auth := filepath.Join(dir, "keys")
	if err := os.WriteFile(auth, ssh.MarshalAuthorizedKey(key.PublicKey()), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := &Server{HostKey: host, AuthorizedKeys: auth, Log: slog.New(slog.DiscardHandler)}
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("Serve does not end")
		}
	})
	return l.Addr().String(), key
}

func newKey(t *testing.T) ssh.Signer {
	t.Helper()
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func dial(t *testing.T, addr, user string, key ssh.Signer) (*ssh.Client, error) {
	t.Helper()
	return ssh.Dial("tcp", addr, &ssh.ClientConfig{User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(key)},
		HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: 10 * time.Second})
}

func login(t *testing.T) *ssh.Client {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: logs in as root")
	}
	addr, key := serve(t)
	c, err := dial(t, addr, "root", key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func open(t *testing.T, c *ssh.Client) *ssh.Session {
	t.Helper()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestOtherKeyIsRefused(t *testing.T) {
	addr, key := serve(t)
	if _, err := dial(t, addr, "root", newKey(t)); err == nil {
		t.Error("a strange key got in")
	}
	if c, err := dial(t, addr, "nobody-by-this-name", key); err == nil {
		if _, err := c.NewSession(); err == nil {
			t.Error("an unknown user got a session")
		}
	}
}

// TestFastCommands: the answer to a command's start comes before its end, also
// for one that ends at once.
func TestFastCommands(t *testing.T) {
	c := login(t)
	for i := range 100 {
		var out bytes.Buffer
		s := open(t, c)
		s.Stdout = &out
		if err := s.Run(fmt.Sprintf("echo %d", i)); err != nil {
			t.Fatalf("run %d: %v", i, err)
		}
		if out.String() != fmt.Sprintln(i) {
			t.Fatalf("run %d said %q", i, out.String())
		}
	}
}

func TestStatusSignalEnvStreams(t *testing.T) {
	c := login(t)
	var exit *ssh.ExitError
	if err := open(t, c).Run("exit 42"); !errors.As(err, &exit) || exit.ExitStatus() != 42 {
		t.Errorf("exit 42: %v", err)
	}
	if err := open(t, c).Run("kill -TERM $$"); !errors.As(err, &exit) || exit.Signal() != "TERM" {
		t.Errorf("killed: %v", err)
	}
	s := open(t, c)
	if err := s.Setenv("GREETING", "hello there"); err != nil {
		t.Error(err)
	}
	var out, errs bytes.Buffer
	s.Stdin, s.Stdout, s.Stderr = strings.NewReader("in"), &out, &errs
	if err := s.Run(`echo "$GREETING $(cat) $HOME"; echo oops >&2`); err != nil {
		t.Error(err)
	}
	if out.String() != "hello there in /root\n" || errs.String() != "oops\n" {
		t.Errorf("out %q, err %q", out.String(), errs.String())
	}
	s = open(t, c)
	r, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("echo ready; exec sleep 600"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	if err := s.Signal(ssh.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := s.Wait(); !errors.As(err, &exit) || exit.Signal() != "KILL" {
		t.Errorf("signal: %v", err)
	}
}

// TestDaemonAndSlowReader: a command that leaves a process behind ends at once, and
// large output gets through whole to a slow reader.
func TestDaemonAndSlowReader(t *testing.T) {
	c := login(t)
	start := time.Now()
	var out bytes.Buffer
	s := open(t, c)
	s.Stdout = &out
	if err := s.Run("sleep 5 & echo done"); err != nil || out.String() != "done\n" {
		t.Errorf("%v, %q", err, out.String())
	}
	if d := time.Since(start); d > 4*time.Second {
		t.Errorf("the daemon held the session for %v", d)
	}
	s = open(t, c)
	r, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("head -c 5000000 /dev/zero"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(700 * time.Millisecond) // longer than the server waits for silence
	n, err := io.Copy(io.Discard, r)
	if n != 5000000 || err != nil {
		t.Errorf("got %d bytes, %v", n, err)
	}
	if err := s.Wait(); err != nil {
		t.Error(err)
	}
}

func TestTerminal(t *testing.T) {
	c := login(t)
	s := open(t, c)
	if err := s.RequestPty("xterm-test", 33, 111, ssh.TerminalModes{}); err != nil {
		t.Fatal(err)
	}
	in, err := s.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("tty >/dev/null && echo is-a-$TERM; stty size; read x; stty size"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 256)
	got := ""
	for !strings.Contains(got, "33 111") {
		n, err := out.Read(buf)
		got += string(buf[:n])
		if err != nil {
			t.Fatalf("%q: %v", got, err)
		}
	}
	if err := s.WindowChange(44, 99); err != nil {
		t.Fatal(err)
	}
	_, _ = in.Write([]byte("\n"))
	rest, _ := io.ReadAll(out)
	got += string(rest)
	if !strings.Contains(got, "is-a-xterm-test") || !strings.Contains(got, "44 99") {
		t.Errorf("terminal said %q", got)
	}
	if err := s.Wait(); err != nil {
		t.Error(err)
	}
}

func TestFiles(t *testing.T) {
	c := login(t)
	f, err := sftp.NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "a $(touch x) b")
	w, err := f.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 100000)
	_, err = w.ReadFrom(bytes.NewReader(data))
	if err := errors.Join(err, w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(name); !bytes.Equal(got, data) {
		t.Errorf("file has %d bytes, want %d", len(got), len(data))
	}
}

func TestForwards(t *testing.T) {
	c := login(t)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("web")) }))
	defer srv.Close()
	conn, err := c.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n")
	if all, _ := io.ReadAll(conn); !strings.HasSuffix(string(all), "web") {
		t.Errorf("direct-tcpip: %q", all)
	}
	sock := filepath.Join(t.TempDir(), "s")
	ul, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ul.Close() }()
	go func() {
		if c, err := ul.Accept(); err == nil {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
	uc, err := c.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(uc, "echo")
	_ = uc.(interface{ CloseWrite() error }).CloseWrite()
	if all, _ := io.ReadAll(uc); string(all) != "echo" {
		t.Errorf("direct-streamlocal: %q", all)
	}
}

func TestForwardBack(t *testing.T) {
	c := login(t)
	back, err := c.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		if conn, err := back.Accept(); err == nil {
			_, _ = io.WriteString(conn, "hi")
			_ = conn.Close()
		}
	}()
	rc, err := net.Dial("tcp", back.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if all, _ := io.ReadAll(rc); string(all) != "hi" {
		t.Errorf("tcpip-forward: %q", all)
	}
	if err := back.Close(); err != nil {
		t.Error(err)
	}
	if c, err := net.Dial("tcp", back.Addr().String()); err == nil {
		_ = c.Close()
		t.Error("the forward still listens")
	}
}
