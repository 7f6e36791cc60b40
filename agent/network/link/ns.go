// Package link holds the netlink work of the engine's networks: network
// namespaces, veth pairs, bridges, addresses and routes. All functions are
// safe for concurrent use, act on the kernel directly (no program is run) and
// can be repeated. Sources: rtnetlink(7), netns(7), netlink's linux/if_link.h.
package link

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/sysfile"
)

// A NS is an open network namespace. Close it after use: an open descriptor
// keeps a dead container's namespace, and its devices, alive.
type NS struct {
	f *os.File
	h *netlink.Handle
}

// MakeNS makes a network namespace with its loopback up; it ends with its
// descriptor, or with the name that BindNS gives it. IPv6 is off for devices
// that come later, until EnableIPv6 is called for one: a network without IPv6
// must show none. The caller closes f.
func MakeNS() (f *os.File, err error) {
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create network namespace: %w", err)
		}
		if err := setUp(); err != nil {
			return fmt.Errorf("create network namespace: loopback: %w", err)
		}
		var err error
		if f, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return fmt.Errorf("create network namespace: %w", err)
		}
		return nil
	})
	return f, err
}

// MakeUserNS makes a namespace as MakeNS does, owned by a new user namespace
// with the map m, whose root may rule it. The user namespace lives as long.
//
// A process cannot make a user namespace for another, and one with threads
// none for itself: it is made with a child that is stopped before it runs.
func MakeUserNS(m *model.IDMap) (f *os.File, err error) {
	ids := func(first uint32) []syscall.SysProcIDMap {
		return []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(first), Size: int(m.Size)}}
	}
	err = onThread(func() error {
		// Ptrace stops the child at its exec: none of the program's code runs.
		pid, err := syscall.ForkExec("/proc/self/exe", []string{"namespace"}, &syscall.ProcAttr{Env: []string{}, Sys: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNET, UidMappings: ids(m.UID), GidMappings: ids(m.GID),
			GidMappingsEnableSetgroups: true, Ptrace: true, Pdeathsig: syscall.SIGKILL,
		}})
		if err != nil {
			return fmt.Errorf("create user namespace: %w", err)
		}
		defer func() {
			unix.Kill(pid, unix.SIGKILL)
			var ws unix.WaitStatus
			for {
				if _, err := unix.Wait4(pid, &ws, 0, nil); err != unix.EINTR && (err != nil || ws.Exited() || ws.Signaled()) {
					return
				}
			}
		}()
		if f, err = os.Open("/proc/" + strconv.Itoa(pid) + "/ns/net"); err != nil {
			return fmt.Errorf("create network namespace: %w", err)
		}
		if err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err == nil {
			err = setUp()
		}
		if err != nil {
			f.Close()
			return fmt.Errorf("create network namespace: loopback: %w", err)
		}
		return nil
	})
	return f, err
}

// BindNS gives a namespace the name path, whose folder is made. What is there
// already is replaced. The caller closes ns.
func BindNS(ns *os.File, path string) (err error) {
	err = unix.Mknod(path, unix.S_IFREG|0o444, 0)
	if err != nil { // no such folder, or what a crash has left
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("create network namespace: %w", err)
		}
		if err := RemoveNS(path); err != nil {
			return err
		}
		if err := unix.Mknod(path, unix.S_IFREG|0o444, 0); err != nil {
			return fmt.Errorf("create network namespace %s: %w", path, err)
		}
	}
	defer func() {
		if err != nil {
			os.Remove(path)
		}
	}()
	err = unix.Mount("/proc/self/fd/"+strconv.Itoa(int(ns.Fd())), path, "", unix.MS_BIND, "")
	if err != nil {
		return fmt.Errorf("bind network namespace to %s: %w", path, err)
	}
	return nil
}

// setUp runs on a thread that is in the new namespace.
func setUp() error {
	// Best effort: a kernel without IPv6 has no such files.
	_ = sysfile.Put("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
	// As Docker: a container's user may bind every port and ping, whoever it
	// is; both are the namespace's own.
	_ = sysfile.Put("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")
	_ = sysfile.Put("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	return h.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo", Index: 1}})
}

// RemoveNS takes the namespace's name away; the kernel frees the namespace
// when its last process and descriptor are gone. Safe to repeat.
func RemoveNS(path string) error {
	// A name that was bound twice (a crash between mount and record) needs
	// two unmounts.
	for range 8 {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == unix.EINVAL || err == unix.ENOENT {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount network namespace %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}

// OpenNS opens the namespace bound to path. fault.NotFound when there is none.
func OpenNS(path string) (*NS, error) {
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fault.NotFound.Errorf("network namespace %s: %w", path, err)
		}
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || uint32(st.Type) != unix.NSFS_MAGIC {
		f.Close()
		return nil, fault.NotFound.Errorf("%s is not a network namespace: the host was restarted or somebody unmounted it", path)
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(f.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("netlink in network namespace %s: %w", path, err)
	}
	return &NS{f: f, h: h}, nil
}

// FD returns the descriptor, which Close closes.
func (n *NS) FD() int { return int(n.f.Fd()) }

// Close lets the namespace go. Safe to repeat.
func (n *NS) Close() {
	if n.f != nil {
		n.h.Close()
		n.f.Close()
		n.f = nil
	}
}

// Do runs f on a thread that is in the namespace. Sockets that f makes belong
// to the namespace for good; goroutines that f starts do not run in it.
func (n *NS) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", n.f.Name(), err)
		}
		return f()
	})
}

// onThread runs f on a locked thread and puts the thread back into the
// agent's network namespace. A thread that cannot be put back is given up:
// it ends with its goroutine.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}
