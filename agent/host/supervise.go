package host

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"machine/agent/state"
)

const (
	argsFile  = "/etc/machine-agent/args"
	superPid  = "/run/machine-agent.pid"
	superLock = "/run/machine-agent.lock"
	superLog  = "/var/log/machine-agent.log"
	maxLog    = 8 << 20
)

// Supervise keeps the agent running on a host whose init system does not. It
// runs `supervise [--foreground] --args-file FILE` or `supervise -- ARGS`, and
// `supervise --stop|--restart|--reload|--status`. Restart renews the agent
// from the binary on disk, reload sends SIGHUP.
func Supervise(args []string) int {
	fs := flag.NewFlagSet("supervise", flag.ContinueOnError)
	foreground := fs.Bool("foreground", false, "do not go into the background")
	file := fs.String("args-file", "", "the agent's arguments, one a line")
	stop := fs.Bool("stop", false, "end supervisor and agent")
	restart := fs.Bool("restart", false, "start the agent anew")
	reload := fs.Bool("reload", false, "let the agent read its certificates again")
	status := fs.Bool("status", false, "print the supervisor's pid")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	switch {
	case *stop:
		return fail(stopSupervised(15 * time.Second))
	case *restart:
		return fail(restartSupervised(15 * time.Second))
	case *reload:
		return fail(signalSupervisor(syscall.SIGHUP))
	case *status:
		pid, ok := supervisor()
		if !ok {
			return fail(errors.New("not running"))
		}
		fmt.Println(pid)
		return 0
	}
	s := &supervised{argsFile: *file, args: fs.Args()}
	s.spawn = s.command
	if _, err := s.command(); err != nil {
		return fail(err)
	}
	if *foreground {
		return fail(s.run())
	}
	return fail(daemonize(args))
}

// daemonize starts the same again in a session of its own, and returns when
// its pid file is there.
func daemonize(args []string) error {
	if pid, ok := supervisor(); ok {
		return fmt.Errorf("the agent is supervised already, by process %d", pid)
	}
	cmd := exec.Command("/proc/self/exe", append([]string{"supervise", "--foreground"}, args...)...)
	cmd.Args[0] = "machine-agent"
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start supervisor: %w", err)
	}
	died := make(chan error, 1)
	go func() { died <- cmd.Wait() }()
	for range 500 {
		if pid, ok := supervisor(); ok && pid == cmd.Process.Pid {
			return nil
		}
		select {
		case err := <-died:
			return fmt.Errorf("supervisor ended at once: %w", errors.Join(err, errors.New("see "+superLog)))
		case <-time.After(5 * time.Millisecond):
		}
	}
	return errors.New("supervisor does not come up: see " + superLog)
}

// supervised is the agent as its supervisor sees it.
type supervised struct {
	argsFile string
	args     []string
	log      io.Writer
	child    *exec.Cmd
	spawn    func() (*exec.Cmd, error) // command, but in tests
}

// command reads the arguments anew each time, so that a restart takes changes.
func (s *supervised) command() (*exec.Cmd, error) {
	args := s.args
	if s.argsFile != "" {
		data, err := os.ReadFile(s.argsFile)
		if err != nil {
			return nil, fmt.Errorf("arguments of the agent: %w", err)
		}
		args = strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	}
	// The path, not /proc/self/exe: an upgrade replaces the file.
	bin := agentPath
	if _, err := os.Stat(bin); err != nil {
		bin = "/proc/self/exe"
	}
	cmd := exec.Command(bin, args...)
	cmd.Args[0] = "machine-agent"
	cmd.Env = envOf(os.Environ(), filepath.Join(filepath.Dir(argsFile), "env"))
	cmd.Stdout, cmd.Stderr = s.log, s.log
	return cmd, nil
}

// envOf adds the lines of file to env.
func envOf(env []string, file string) []string {
	data, err := os.ReadFile(file)
	if err != nil {
		return env
	}
	for _, line := range strings.Split(string(data), "\n") {
		if strings.Contains(line, "=") {
			env = append(env, line)
		}
	}
	return env
}

func (s *supervised) run() error {
	// Without a wait: who holds the lock supervises.
	f, err := os.OpenFile(superLock, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	// A lock of the process, which a child that is just being made has no part in.
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		return errors.New("the agent is supervised already")
	}
	log, err := openBounded(superLog)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	s.log = log
	start, err := startTime(os.Getpid())
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1)
	if err := state.WriteFile(superPid, fmt.Appendf(nil, "%d\n%d\n", os.Getpid(), start), 0o644); err != nil {
		return err
	}
	defer func() { _ = os.Remove(superPid) }()
	return s.keep(signals)
}

// keep starts the agent whenever it ends, more slowly the faster it dies.
func (s *supervised) keep(signals <-chan os.Signal) error {
	pause := 100 * time.Millisecond
	for {
		began := time.Now()
		ended := s.start()
		stop, again := s.watch(ended, signals)
		if stop {
			return nil
		}
		if again || time.Since(began) > 30*time.Second {
			pause = 100 * time.Millisecond
			continue
		}
		select {
		case <-time.After(pause):
		case sig := <-signals:
			if sig == syscall.SIGTERM || sig == syscall.SIGINT {
				return nil
			}
		}
		pause = min(2*pause, 10*time.Second)
	}
}

// start returns a channel that gets the agent's end.
func (s *supervised) start() <-chan error {
	ended := make(chan error, 1)
	cmd, err := s.spawn()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(s.log, "start agent:", err)
		s.child = nil
		ended <- err
		return ended
	}
	s.child = cmd
	go func() { ended <- cmd.Wait() }()
	return ended
}

// watch passes signals on until the agent ends. again means that it was asked
// to: it is to start at once.
func (s *supervised) watch(ended <-chan error, signals <-chan os.Signal) (stop, again bool) {
	var kill <-chan time.Time
	for {
		select {
		case err := <-ended:
			if err != nil && !stop && !again {
				fmt.Fprintln(s.log, "agent ended:", err)
			}
			return stop, again
		case <-kill:
			_ = s.child.Process.Kill()
		case sig := <-signals:
			if s.child == nil {
				continue
			}
			switch sig {
			case syscall.SIGHUP:
				_ = s.child.Process.Signal(syscall.SIGHUP)
			default:
				stop = stop || sig != syscall.SIGUSR1
				again = again || sig == syscall.SIGUSR1
				_ = s.child.Process.Signal(syscall.SIGTERM)
				if kill == nil {
					kill = time.After(10 * time.Second)
				}
			}
		}
	}
}

// supervisor returns the pid of the supervisor that runs.
func supervisor() (int, bool) {
	data, err := os.ReadFile(superPid)
	if err != nil {
		return 0, false
	}
	var pid int
	var start uint64
	if n, _ := fmt.Sscan(string(data), &pid, &start); n != 2 || pid <= 0 {
		return 0, false
	}
	now, err := startTime(pid)
	return pid, err == nil && now == start
}

func signalSupervisor(sig syscall.Signal) error {
	pid, ok := supervisor()
	if !ok {
		return errors.New("the agent is not supervised: start it with machine-agent supervise --args-file " + argsFile)
	}
	return unix.Kill(pid, sig)
}

// restartSupervised has the agent start anew, and returns when the old one has
// ended: who asks next must not be answered by it.
func restartSupervised(timeout time.Duration) error {
	pid, ok := supervisor()
	if !ok {
		return signalSupervisor(syscall.SIGUSR1) // it says what to do
	}
	var old []int
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, name := range lists {
		data, _ := os.ReadFile(name)
		for _, f := range strings.Fields(string(data)) {
			child, err := strconv.Atoi(f)
			if err != nil {
				continue
			}
			if fd, err := unix.PidfdOpen(child, 0); err == nil {
				defer unix.Close(fd)
				old = append(old, fd)
			}
		}
	}
	if err := signalSupervisor(syscall.SIGUSR1); err != nil {
		return err
	}
	for deadline := time.Now().Add(timeout); len(old) > 0; {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("the agent of supervisor %d does not end", pid)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(old[0]), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for the agent's end: %w", err)
		}
		if n == 1 {
			old = old[1:]
		}
	}
	return nil
}

// stopSupervised ends supervisor and agent. None is no error.
func stopSupervised(timeout time.Duration) error {
	pid, ok := supervisor()
	if !ok {
		return nil
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("stop supervisor %d: %w", pid, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	for {
		if _, ok := supervisor(); !ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("supervisor %d does not end", pid)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// A bounded log keeps the newest maxLog bytes in path, as many older ones in
// path.1.
type bounded struct {
	path string
	f    *os.File
	n    int64
}

func openBounded(path string) (*bounded, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	b := &bounded{path: path}
	return b, b.open()
}

func (b *bounded) open() error {
	f, err := os.OpenFile(b.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_CLOEXEC, 0o640)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	b.f, b.n = f, fi.Size()
	return nil
}

// Write never fails on a full disk: the agent must not die of its log.
func (b *bounded) Write(p []byte) (int, error) {
	if b.n+int64(len(p)) > maxLog {
		_ = b.f.Close()
		_ = os.Rename(b.path, b.path+".1")
		if err := b.open(); err != nil {
			return len(p), nil
		}
	}
	n, _ := b.f.Write(p)
	b.n += int64(n)
	return len(p), nil
}

func (b *bounded) Close() error { return b.f.Close() }
