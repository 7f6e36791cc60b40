package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"machine/agent/fault"
	"machine/agent/state"
	"machine/agent/undo"
)

// bootTimeout bounds how long init may take until its SSH server listens.
const bootTimeout = 30 * time.Second

// Run starts a machine and returns when it can be logged in to. One that runs
// already is left alone. A failed Run leaves the machine's files only.
func Run(c Config) (st Status, err error) {
	if os.Geteuid() != 0 {
		return st, fault.Forbidden.Errorf("local machines need root: run the command with sudo")
	}
	// The folder is the caller's: one that is gone is a machine that is gone.
	release, err := lock(filepath.Join(c.Dir, "host.lock"))
	if err != nil {
		return st, fault.NotFound.Errorf("machine folder: %w", err)
	}
	defer release()
	if _, err := os.Stat(tombstone(c.Dir)); err == nil {
		return st, fault.NotFound.Errorf("machine %s has been removed", c.Name)
	}
	if st := Look(c.Dir); st.Running {
		return st, nil
	}
	if err := prepareDirs(c.Dir); err != nil {
		return st, err
	}
	var keys []byte
	if c.Key != "" {
		if keys, err = os.ReadFile(c.Key); err != nil {
			return st, fault.Invalid.Errorf("public key: %w", err)
		}
	}
	var u undo.Stack
	defer func() { u.Run(&err) }()
	net, err := attach(c, &u)
	if err != nil {
		return st, err
	}
	if err := enterCgroups(id(c.Dir)); err != nil {
		return st, err
	}
	u.Add(func() error { return removeCgroups(id(c.Dir)) })
	self, err := os.Executable()
	if err != nil {
		return st, err
	}
	boot := bootConfig{Config: c, Gateway: net.gateway.String(), Prefix: net.prefix, MAC: net.mac, Keys: string(keys), Agent: self}
	boot.IP = net.ip.String()
	pid, err := startInit(c.Dir, boot, &u)
	if err != nil {
		return st, err
	}
	u.Keep()
	return Status{Running: true, PID: pid, IP: boot.IP}, nil
}

func prepareDirs(dir string) error {
	if err := checkFS(dir); err != nil {
		return err
	}
	for _, d := range []string{"upper", "work", "data", "root", "tmp", "more"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return fault.Internal.Errorf("machine folder: %w", err)
		}
	}
	return errors.Join(os.Chmod(filepath.Join(dir, "data"), 0o710), os.Chmod(filepath.Join(dir, "tmp"), 0o1777|os.ModeSticky))
}

// startInit clones init into its namespaces, gives it its network card, and
// waits until it is ready.
func startInit(dir string, boot bootConfig, u *undo.Stack) (int, error) {
	cfgR, cfgW, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer func() { _ = cfgW.Close() }()
	readyR, readyW, err := os.Pipe()
	if err != nil {
		_ = cfgR.Close()
		return 0, err
	}
	defer func() { _ = readyR.Close() }()
	log, err := os.OpenFile(filepath.Join(dir, "host.log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, errors.Join(err, cfgR.Close(), readyW.Close())
	}
	cmd := exec.Command("/proc/self/exe", "host", "init")
	cmd.Args[0] = "machine-agent"
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "GOMAXPROCS=2", "GOGC=50"}
	cmd.ExtraFiles = []*os.File{cfgR, readyW}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP,
		Setsid:     true,
	}
	err = cmd.Start()
	_ = errors.Join(cfgR.Close(), readyW.Close(), log.Close())
	if err != nil {
		return 0, fault.Internal.Errorf("start machine %s: make namespaces: %w", boot.Name, err)
	}
	pid := cmd.Process.Pid
	u.Add(func() error { _ = cmd.Process.Kill(); _ = cmd.Wait(); return os.RemoveAll(pidFile(dir)) })
	// Out of the machine's groups again: a v2 group with a process in it
	// cannot hand controllers on, and init is about to.
	leaveCgroups(id(dir))
	if err := writePid(dir, pid, boot.IP); err != nil {
		return 0, fault.Internal.Errorf("start machine %s: %w", boot.Name, err)
	}
	if err := plug(dir, boot, pid); err != nil {
		return 0, err
	}
	if err := json.NewEncoder(cfgW).Encode(boot); err != nil {
		return 0, fault.Internal.Errorf("start machine %s: %w", boot.Name, err)
	}
	_ = cfgW.Close()
	return pid, waitReady(dir, boot.Name, readyR)
}

// waitReady reads init's only word: "ok", or why it cannot go on.
func waitReady(dir, name string, r *os.File) error {
	_ = r.SetReadDeadline(time.Now().Add(bootTimeout))
	msg, err := io.ReadAll(io.LimitReader(r, 64<<10))
	switch text := strings.TrimSpace(string(msg)); {
	case text == "ok":
		return nil
	case text != "":
		return fault.Internal.Errorf("start machine %s: %s", name, text)
	case err != nil:
		return fault.Internal.Errorf("start machine %s: init is silent: %w", name, err)
	}
	log, _ := os.ReadFile(filepath.Join(dir, "host.log"))
	if len(log) > 2000 {
		log = log[:2000]
	}
	return fault.Internal.Errorf("start machine %s: init died: %s", name, strings.TrimSpace(string(log)))
}

// Look observes a machine; it trusts no record whose process is another one.
func Look(dir string) Status {
	rec, alive := readPid(dir)
	if !alive {
		return Status{IP: rec.IP}
	}
	return Status{Running: true, PID: rec.PID, IP: rec.IP}
}

// Stop ends a machine: gently first when asked to, and with all of its
// processes in any case. One that does not run is cleaned up after. Safe to
// repeat.
func Stop(dir string, gently bool) error {
	release, err := lock(filepath.Join(dir, "host.lock"))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	defer release()
	return stopLocked(dir, gently)
}

func stopLocked(dir string, gently bool) error {
	if rec, alive := readPid(dir); alive {
		if err := endProcess(rec, gently); err != nil {
			return err
		}
	}
	return errors.Join(unplug(dir), removeCgroups(id(dir)))
}

// endProcess signals through a pidfd, so that no other process is hit.
func endProcess(rec pidRecord, gently bool) error {
	fd, err := unix.PidfdOpen(rec.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop machine: pidfd_open %d: %w", rec.PID, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if start, err := startTime(rec.PID); err != nil || start != rec.Start {
		return nil
	}
	if gently {
		if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err == nil && waitPidfd(fd, shutdownGrace+10*time.Second) {
			return nil
		}
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("stop machine: kill %d: %w", rec.PID, err)
	}
	if !waitPidfd(fd, 30*time.Second) {
		return fault.Unavailable.Errorf("stop machine: process %d does not die; a process inside hangs in the kernel", rec.PID)
	}
	return nil
}

func waitPidfd(fd int, timeout time.Duration) bool {
	deadline := time.Now().Add(timeout)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return false
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if n > 0 {
			return true
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false
		}
	}
}

// Remove kills the machine, gives its address back, and takes bridge and
// firewall rules away with the last one. Its files are deleted but for those
// of the machine's record, which are the store's. Safe to repeat.
func Remove(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return detach(dir)
	}
	release, err := lock(filepath.Join(dir, "host.lock"))
	if err != nil {
		return err
	}
	defer release()
	if err := state.WriteFile(tombstone(dir), nil, 0o600); err != nil {
		return err
	}
	if err := errors.Join(stopLocked(dir, false), detach(dir)); err != nil {
		return err
	}
	var errs []error
	for _, d := range []string{"upper", "work", "data", "root", "tmp", "more", "host.pid", "host.log"} {
		errs = append(errs, removeAll(filepath.Join(dir, d)))
	}
	return errors.Join(errs...)
}

// removeAll waits a little for what the dying mount namespace still holds.
func removeAll(path string) error {
	var err error
	for range 50 {
		if err = os.RemoveAll(path); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}
