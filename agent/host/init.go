package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"machine/agent/host/sshd"
	"machine/agent/state"
)

const (
	// shutdownGrace is how long processes have after SIGTERM.
	shutdownGrace = 10 * time.Second
	// agentPath is where provisioning puts the agent on every host.
	agentPath = "/usr/local/bin/machine-agent"
	// confDir holds the SSH keys of a local machine.
	confDir = "/etc/machine"
)

// An initState is PID 1 at work.
type initState struct {
	sshPid   int
	listener *os.File
	lastSSH  time.Time
}

// runInit is PID 1 of a machine: fd 3 brings its configuration, fd 4 takes
// "ok" or the error.
func runInit() int {
	// Children must not keep the pipes open: their ends are waited for.
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	cfg, ready := os.NewFile(3, "config"), os.NewFile(4, "ready")
	var boot bootConfig
	if err := json.NewDecoder(cfg).Decode(&boot); err != nil {
		// The parent gave up; nobody is left to tell.
		return 1
	}
	_ = cfg.Close()
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, syscall.SIGCHLD, syscall.SIGTERM, syscall.SIGINT, syscall.SIGPWR)
	st, err := bringUp(boot)
	if err != nil {
		_, _ = ready.WriteString(err.Error())
		return 1
	}
	_, _ = ready.WriteString("ok")
	_ = ready.Close()
	return st.loop(signals)
}

func bringUp(boot bootConfig) (*initState, error) {
	unix.Umask(0o022)
	if err := enterRoot(boot); err != nil {
		return nil, err
	}
	if err := unix.Sethostname([]byte(boot.Name)); err != nil {
		return nil, fmt.Errorf("set host name: %w", err)
	}
	if err := configureNet(boot); err != nil {
		return nil, err
	}
	if err := writeEtc(boot); err != nil {
		return nil, err
	}
	if err := sshd.EnsureHostKey(filepath.Join(confDir, "ssh_host_ed25519_key")); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp4", ":22")
	if err != nil {
		return nil, fmt.Errorf("listen for SSH: %w", err)
	}
	f, err := l.(*net.TCPListener).File()
	_ = l.Close()
	if err != nil {
		return nil, fmt.Errorf("listen for SSH: %w", err)
	}
	st := &initState{listener: f}
	if err := st.startSSH(); err != nil {
		return nil, err
	}
	startAgent()
	return st, nil
}

func configureNet(boot bootConfig) error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("loopback up: %w", err)
	}
	eth, err := netlink.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("eth0: %w", err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(boot.IP), Mask: net.CIDRMask(boot.Prefix, 32)}}
	route := &netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.ParseIP(boot.Gateway)}
	if err := netlink.AddrReplace(eth, addr); err != nil {
		return fmt.Errorf("eth0: address %s: %w", addr, err)
	}
	if err := netlink.LinkSetUp(eth); err != nil {
		return fmt.Errorf("eth0 up: %w", err)
	}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("default route by %s: %w", boot.Gateway, err)
	}
	return nil
}

// writeEtc writes what is the machine's own in /etc. The key is written at
// every start, the rest as well: the address may be another one.
func writeEtc(boot bootConfig) error {
	if err := os.MkdirAll(confDir, 0o700); err != nil {
		return err
	}
	hosts := "127.0.0.1\tlocalhost\n127.0.1.1\t" + boot.Name + "\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	return errors.Join(
		state.WriteFile(filepath.Join(confDir, "authorized_keys"), []byte(boot.Keys), 0o600),
		state.WriteFile("/etc/hostname", []byte(boot.Name+"\n"), 0o644),
		state.WriteFile("/etc/hosts", []byte(hosts), 0o644),
	)
}

// spawn starts the agent's binary without waiting for it: PID 1 reaps all.
func spawn(args []string, files ...*os.File) (int, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = null.Close() }()
	p, err := os.StartProcess("/proc/self/exe", args, &os.ProcAttr{
		Dir:   "/",
		Env:   os.Environ(),
		Files: append([]*os.File{null, os.Stdout, os.Stderr}, files...),
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, err
	}
	return p.Pid, p.Release()
}

func (st *initState) startSSH() error {
	pid, err := spawn([]string{"machine-sshd", "host", "sshd"}, st.listener)
	if err != nil {
		return fmt.Errorf("start SSH server: %w", err)
	}
	st.sshPid, st.lastSSH = pid, time.Now()
	return nil
}

// startAgent starts the agent of a machine that is provisioned.
func startAgent() {
	if _, err := os.Stat(argsFile); err != nil {
		return
	}
	if _, err := spawn([]string{"machine-agent", "supervise", "--foreground", "--args-file", argsFile}); err != nil {
		fmt.Fprintln(os.Stderr, "start agent:", err)
	}
}

func (st *initState) loop(signals <-chan os.Signal) int {
	for sig := range signals {
		if sig == syscall.SIGCHLD {
			st.reap()
			continue
		}
		st.shutdown(signals)
		return 0
	}
	return 0
}

// reap takes in every dead child, ours and adopted; the SSH server is started
// again, at most once a second.
func (st *initState) reap() {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if err != nil || pid <= 0 {
			return
		}
		if pid != st.sshPid {
			continue
		}
		if wait := time.Second - time.Since(st.lastSSH); wait > 0 {
			time.Sleep(wait)
		}
		if err := st.startSSH(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

// shutdown ends the supervisor before all others: an agent that sees its
// containers die would start them anew.
func (st *initState) shutdown(signals <-chan os.Signal) {
	_ = stopSupervised(5 * time.Second)
	_ = unix.Kill(-1, unix.SIGTERM)
	_ = unix.Kill(-1, unix.SIGCONT)
	deadline := time.After(shutdownGrace)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		for {
			var ws unix.WaitStatus
			pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
			if errors.Is(err, unix.ECHILD) {
				unix.Sync()
				return
			}
			if err != nil || pid <= 0 {
				break
			}
		}
		if !anyoneListens() {
			_ = unix.Kill(-1, unix.SIGKILL)
			unix.Sync()
			return
		}
		select {
		case <-deadline:
			_ = unix.Kill(-1, unix.SIGKILL)
			unix.Sync()
			return
		case <-signals:
		case <-tick.C:
		}
	}
}

// anyoneListens reports whether a process is left that handles SIGTERM. The
// first process of a container that does not is deaf to it: to wait for it is
// to wait in vain. Shims do not count, they wait for their containers.
func anyoneListens() bool {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return true
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == 1 {
			continue
		}
		exe, err := os.Readlink("/proc/" + e.Name() + "/exe")
		if err != nil || strings.HasPrefix(exe, "/memfd:") {
			continue // dying, or a shim
		}
		if catches("/proc/"+e.Name()+"/status", unix.SIGTERM) {
			return true
		}
	}
	return false
}

// catches reads the mask of handled signals (proc(5), SigCgt).
func catches(status string, sig unix.Signal) bool {
	data, err := os.ReadFile(status)
	if err != nil {
		return false
	}
	_, rest, ok := strings.Cut(string(data), "SigCgt:")
	if !ok {
		return false
	}
	hex, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
	mask, err := strconv.ParseUint(hex, 16, 64)
	return err == nil && mask&(1<<(sig-1)) != 0
}

// resolvConf returns what the machine should have as /etc/resolv.conf: the
// computer's servers, without those that only answer on its loopback. The
// caller is still in the computer's root.
func resolvConf() []byte {
	for _, file := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		data, err := os.ReadFile(file)
		if err == nil && hasServer(string(data)) {
			return data
		}
	}
	return []byte("nameserver 1.1.1.1\nnameserver 8.8.8.8\n")
}

func hasServer(text string) bool {
	for _, line := range strings.Split(text, "\n") {
		f := strings.Fields(line)
		if len(f) >= 2 && f[0] == "nameserver" {
			if ip := net.ParseIP(f[1]); ip != nil && !ip.IsLoopback() {
				return true
			}
		}
	}
	return false
}
