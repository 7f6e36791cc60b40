package sshd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// drainTime is how long output of processes that outlive the command is still
// passed on; a daemon that keeps the pipes open must not hold the session.
const drainTime = 200 * time.Millisecond

// A session is one "session" channel: at most one command, shell or subsystem.
type session struct {
	*connection
	ch  ssh.Channel
	env []string

	mu      sync.Mutex
	term    *os.File // the pty's master, when one was asked for
	tty     *os.File
	name    string // TERM
	process *os.Process
	started bool
	done    chan struct{} // closed when the command has ended
}

func newSession(c *connection, ch ssh.Channel) *session {
	return &session{connection: c, ch: ch, done: make(chan struct{})}
}

// serve answers the channel's requests until the peer closes it, and returns
// when the command has ended, too.
func (s *session) serve(ctx context.Context, reqs <-chan *ssh.Request) {
	for req := range reqs {
		s.request(ctx, req)
	}
	// The peer is gone: hang up, as a terminal does.
	s.mu.Lock()
	started := s.started
	if s.process != nil {
		_ = syscall.Kill(-s.process.Pid, syscall.SIGHUP)
	}
	s.mu.Unlock()
	_ = s.ch.Close()
	if started {
		<-s.done
	}
	s.closeTerm()
}

func (s *session) request(ctx context.Context, req *ssh.Request) {
	ok := false
	switch req.Type {
	case "env":
		var m struct{ Name, Value string }
		if ssh.Unmarshal(req.Payload, &m) == nil && envAllowed(m.Name) && len(s.env) < 256 {
			s.env, ok = append(s.env, m.Name+"="+m.Value), true
		}
	case "pty-req":
		ok = s.openTerm(req.Payload)
	case "window-change":
		var m struct{ Cols, Rows, W, H uint32 }
		if ssh.Unmarshal(req.Payload, &m) == nil {
			ok = s.resize(m.Cols, m.Rows)
		}
	case "signal":
		var m struct{ Name string }
		if ssh.Unmarshal(req.Payload, &m) == nil {
			ok = s.signal(m.Name)
		}
	case "shell", "exec", "subsystem":
		// The reply goes out before anything runs: a command that ends at
		// once would else send its status before the answer to its start.
		run := s.prepare(req)
		if req.WantReply {
			_ = req.Reply(run != nil, nil)
		}
		if run != nil {
			s.wg.Go(func() { s.finish(run(ctx)) })
		}
		return
	}
	if req.WantReply {
		_ = req.Reply(ok, nil)
	}
}

// envAllowed keeps loader tricks out when a non-root user logs in.
func envAllowed(name string) bool {
	return name != "" && !strings.ContainsAny(name, "=\x00") && !strings.HasPrefix(name, "LD_")
}

// prepare returns what runs the request, or nil when it is refused.
func (s *session) prepare(req *ssh.Request) func(context.Context) (status uint32, sig string) {
	var m struct{ Text string }
	if req.Type != "shell" && ssh.Unmarshal(req.Payload, &m) != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started {
		return nil
	}
	switch {
	case req.Type == "subsystem" && m.Text != "sftp":
		return nil
	case req.Type == "subsystem":
		s.started = true
		return s.sftp
	}
	s.started = true
	return func(context.Context) (uint32, string) { return s.run(m.Text) }
}

// finish tells the status and closes the channel.
func (s *session) finish(status uint32, sig string) {
	if sig != "" {
		_, _ = s.ch.SendRequest("exit-signal", false, ssh.Marshal(struct {
			Name    string
			Core    bool
			Message string
			Lang    string
		}{sig, false, "", ""}))
	} else {
		_, _ = s.ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{status}))
	}
	_ = s.ch.Close()
	close(s.done)
}

// command builds the process of a command line, or of a login shell for "".
func (s *session) command(line string) *exec.Cmd {
	cmd := exec.Command(s.user.shell)
	cmd.Args = []string{filepath.Base(s.user.shell), "-c", line}
	var level []string
	if line == "" {
		cmd.Args = []string{"-" + filepath.Base(s.user.shell)}
	} else {
		// Debian's bash reads ~/.bashrc for a command that comes by SSH,
		// unless it is not the first shell. Here that file is the one of the
		// computer's own root: slow at best, with effects at worst.
		level = []string{"SHLVL=1"}
	}
	cmd.Dir = s.user.home
	if fi, err := os.Stat(cmd.Dir); err != nil || !fi.IsDir() {
		cmd.Dir = "/"
	}
	cmd.Env = append(append(s.user.env(), level...), s.env...)
	remote, local := split(s.conn.RemoteAddr()), split(s.conn.LocalAddr())
	cmd.Env = append(cmd.Env, "SSH_CONNECTION="+remote+" "+local, "SSH_CLIENT="+remote+" "+strings.TrimPrefix(local, strings.Fields(local + " ")[0]+" "))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: s.user.credential()}
	return cmd
}

func split(a net.Addr) string {
	host, port, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return host + " " + port
}

func (s *session) run(line string) (uint32, string) {
	cmd := s.command(line)
	s.mu.Lock()
	tty := s.tty
	s.mu.Unlock()
	var drained func()
	var err error
	if tty != nil {
		drained, err = s.startTTY(cmd)
	} else {
		drained, err = s.startPipes(cmd)
	}
	if err != nil {
		fmt.Fprintf(s.ch.Stderr(), "%s: %v\r\n", cmd.Path, err)
		return 255, ""
	}
	err = cmd.Wait()
	s.mu.Lock()
	s.process = nil
	s.mu.Unlock()
	drained()
	return exitStatus(err)
}

// startTTY runs cmd on the session's terminal. The function waits until all
// its output is on its way.
func (s *session) startTTY(cmd *exec.Cmd) (func(), error) {
	cmd.Env = append(cmd.Env, "TERM="+s.name, "SSH_TTY="+s.tty.Name())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.tty, s.tty, s.tty
	cmd.SysProcAttr.Setctty = true
	if err := s.start(cmd); err != nil {
		return nil, err
	}
	s.mu.Lock()
	_ = s.tty.Close()
	master := s.term
	s.mu.Unlock()
	out := make(chan struct{})
	s.wg.Go(func() { _, _ = io.Copy(master, s.ch) })
	s.wg.Go(func() { defer close(out); _, _ = io.Copy(s.ch, master) })
	return func() { wait(out, 10*drainTime) }, nil
}

// startPipes runs cmd on pipes of our own: exec's copying would make Wait hang
// on daemons that the command leaves behind.
func (s *session) startPipes(cmd *exec.Cmd) (func(), error) {
	var files [3][2]*os.File
	for i := range files {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		files[i] = [2]*os.File{r, w}
	}
	in, out, errs := files[0], files[1], files[2]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in[0], out[1], errs[1]
	err := s.start(cmd)
	_ = errors.Join(in[0].Close(), out[1].Close(), errs[1].Close())
	if err != nil {
		_ = errors.Join(in[1].Close(), out[0].Close(), errs[0].Close())
		return nil, err
	}
	s.wg.Go(func() { _, _ = io.Copy(in[1], s.ch); _ = in[1].Close() })
	exited := make(chan struct{})
	var both sync.WaitGroup
	both.Go(func() { copyUntil(s.ch, out[0], exited) })
	both.Go(func() { copyUntil(s.ch.Stderr(), errs[0], exited) })
	return func() {
		// Wake the readers before they are told why: see copyUntil.
		_ = errors.Join(out[0].SetReadDeadline(time.Now()), errs[0].SetReadDeadline(time.Now()))
		close(exited)
		both.Wait()
		_ = errors.Join(out[0].Close(), errs[0].Close())
	}, nil
}

// copyUntil copies all of src. After exited is closed it goes on as long as
// something comes within drainTime: what is in the pipe gets through also to a
// slow client, and a silent daemon that holds the pipe is let go.
func copyUntil(dst io.Writer, src *os.File, exited <-chan struct{}) {
	buf := make([]byte, 32<<10)
	for {
		over := false
		select {
		case <-exited:
			over = true
			_ = src.SetReadDeadline(time.Now().Add(drainTime))
		default:
		}
		n, err := src.Read(buf)
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil && (over || !errors.Is(err, os.ErrDeadlineExceeded)) {
			return
		}
	}
}

func wait(done <-chan struct{}, d time.Duration) bool {
	select {
	case <-done:
		return true
	case <-time.After(d):
		return false
	}
}

func (s *session) start(cmd *exec.Cmd) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	s.process = cmd.Process
	return nil
}

// sftp serves files in this process for root, in one of the user's otherwise.
func (s *session) sftp(context.Context) (uint32, string) {
	if s.user.credential() == nil {
		if err := SFTP(s.ch, s.ch); err != nil {
			return 1, ""
		}
		return 0, ""
	}
	cmd := s.command("")
	cmd.Path, cmd.Args = "/proc/self/exe", []string{"machine-sftp", "host", "sftp"}
	drained, err := s.startPipes(cmd)
	if err != nil {
		return 255, ""
	}
	err = cmd.Wait()
	drained()
	return exitStatus(err)
}

// SFTP serves the files that this process may touch on r and w.
func SFTP(r io.Reader, w io.WriteCloser) error {
	srv, err := sftp.NewServer(struct {
		io.Reader
		io.WriteCloser
	}{r, w})
	if err != nil {
		return err
	}
	err = srv.Serve()
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, srv.Close())
}

var signals = map[string]syscall.Signal{
	"ABRT": syscall.SIGABRT, "ALRM": syscall.SIGALRM, "FPE": syscall.SIGFPE, "HUP": syscall.SIGHUP,
	"ILL": syscall.SIGILL, "INT": syscall.SIGINT, "KILL": syscall.SIGKILL, "PIPE": syscall.SIGPIPE,
	"QUIT": syscall.SIGQUIT, "SEGV": syscall.SIGSEGV, "TERM": syscall.SIGTERM,
	"USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2,
}

func (s *session) signal(name string) bool {
	sig, ok := signals[name]
	s.mu.Lock()
	defer s.mu.Unlock()
	if !ok || s.process == nil {
		return false
	}
	return syscall.Kill(-s.process.Pid, sig) == nil
}

// exitStatus tells the status, or RFC 4254's name of the signal.
func exitStatus(err error) (uint32, string) {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, ""
	case !errors.As(err, &exit):
		return 255, ""
	}
	ws, ok := exit.Sys().(syscall.WaitStatus)
	if ok && ws.Signaled() {
		for name, sig := range signals {
			if sig == ws.Signal() {
				return 0, name
			}
		}
		return uint32(128 + int(ws.Signal())), ""
	}
	return uint32(exit.ExitCode()), ""
}

func (s *session) openTerm(payload []byte) bool {
	var m struct {
		Term             string
		Cols, Rows, W, H uint32
		Modes            string
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if ssh.Unmarshal(payload, &m) != nil || s.term != nil || s.started {
		return false
	}
	master, tty, err := pty.Open()
	if err != nil {
		s.Log.Warn("open terminal", "error", err)
		return false
	}
	_ = tty.Chown(int(s.user.uid), -1)
	s.term, s.tty, s.name = master, tty, m.Term
	_ = pty.Setsize(master, &pty.Winsize{Rows: uint16(m.Rows), Cols: uint16(m.Cols)})
	return true
}

func (s *session) resize(cols, rows uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.term != nil && pty.Setsize(s.term, &pty.Winsize{Rows: uint16(rows), Cols: uint16(cols)}) == nil
}

func (s *session) closeTerm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.term != nil {
		_ = errors.Join(s.term.Close(), s.tty.Close())
	}
}
