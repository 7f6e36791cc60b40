package volume

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"machine/agent/fault"
)

// checkOptions refuses options that the local driver does not know. o and
// device need each other and type, as with Docker.
func checkOptions(o map[string]string) error {
	for k := range o {
		switch k {
		case "type", "device", "o":
		case "size":
			return fault.Invalid.Errorf("volume option size needs project quotas, which this engine does not set up")
		default:
			return fault.Invalid.Errorf("invalid option: %q", k)
		}
	}
	if len(o) == 0 {
		return nil
	}
	if o["device"] == "" {
		return fault.Invalid.Errorf("missing device in volume options")
	}
	if o["type"] == "" && !isBind(o["o"]) {
		return fault.Invalid.Errorf("missing type in volume options")
	}
	return nil
}

func isBind(o string) bool {
	for f := range strings.SplitSeq(o, ",") {
		if f == "bind" || f == "rbind" {
			return true
		}
	}
	return false
}

// flags of mount(8) that mount(2) takes as bits; false clears the bit.
var mountFlags = map[string]struct {
	bit uintptr
	set bool
}{
	"ro": {unix.MS_RDONLY, true}, "rw": {unix.MS_RDONLY, false},
	"nosuid": {unix.MS_NOSUID, true}, "suid": {unix.MS_NOSUID, false},
	"nodev": {unix.MS_NODEV, true}, "dev": {unix.MS_NODEV, false},
	"noexec": {unix.MS_NOEXEC, true}, "exec": {unix.MS_NOEXEC, false},
	"sync": {unix.MS_SYNCHRONOUS, true}, "async": {unix.MS_SYNCHRONOUS, false},
	"dirsync": {unix.MS_DIRSYNC, true}, "mand": {unix.MS_MANDLOCK, true}, "nomand": {unix.MS_MANDLOCK, false},
	"noatime": {unix.MS_NOATIME, true}, "atime": {unix.MS_NOATIME, false},
	"nodiratime": {unix.MS_NODIRATIME, true}, "diratime": {unix.MS_NODIRATIME, false},
	"relatime": {unix.MS_RELATIME, true}, "norelatime": {unix.MS_RELATIME, false},
	"strictatime": {unix.MS_STRICTATIME, true}, "nostrictatime": {unix.MS_STRICTATIME, false},
	"bind": {unix.MS_BIND, true}, "rbind": {unix.MS_BIND | unix.MS_REC, true},
	"defaults": {0, true},
}

// Propagation is set by a call of its own.
var propagation = map[string]uintptr{
	"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE | unix.MS_REC,
	"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED | unix.MS_REC,
	"slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC,
	"unbindable": unix.MS_UNBINDABLE, "runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

// parseMount splits mount(8)'s options into bits, propagation and the rest.
func parseMount(o string) (flags, prop uintptr, data string) {
	var rest []string
	for f := range strings.SplitSeq(o, ",") {
		if f == "" {
			continue
		}
		if m, ok := mountFlags[f]; ok {
			if m.set {
				flags |= m.bit
			} else {
				flags &^= m.bit
			}
		} else if p, ok := propagation[f]; ok {
			prop = p
		} else {
			rest = append(rest, f)
		}
	}
	return flags, prop, strings.Join(rest, ",")
}

// mount makes a volume's mount. Safe to repeat: the mount of a former agent is
// seen by its device number. The caller holds v.mu.
func (m *Manager) mount(v *volume) (err error) {
	if len(v.rec.Options) == 0 {
		return nil
	}
	dir := m.data(v.rec.Name)
	if mounted, err := isMounted(dir); mounted || err != nil {
		return err
	}
	flags, prop, data := parseMount(v.rec.Options["o"])
	device, fstype := v.rec.Options["device"], v.rec.Options["type"]
	if strings.HasPrefix(fstype, "nfs") || fstype == "cifs" {
		if data, err = resolveServer(data); err != nil {
			return fault.Unavailable.Errorf("mount volume %s: %w", v.rec.Name, err)
		}
	}
	// A bind mount takes its other flags in a second call: mount(2).
	first := flags
	if flags&unix.MS_BIND != 0 {
		first = flags & (unix.MS_BIND | unix.MS_REC)
	}
	if err := unix.Mount(device, dir, fstype, first, data); err != nil {
		kind := fault.Internal
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) {
			kind = fault.Invalid
		}
		return kind.Errorf("failed to mount local volume: mount %s:%s, flags: %#x, data: %s: %w", device, dir, flags, data, err)
	}
	if rest := flags &^ (unix.MS_BIND | unix.MS_REC); flags&unix.MS_BIND != 0 && rest != 0 {
		err = unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|rest, "")
	}
	if err == nil && prop != 0 {
		err = unix.Mount("", dir, "", prop, "")
	}
	if err != nil {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		return fmt.Errorf("mount volume %s: %w", v.rec.Name, err)
	}
	return nil
}

// resolveServer replaces the name in addr= by its address: the kernel knows no
// names.
func resolveServer(data string) (string, error) {
	fields := strings.Split(data, ",")
	for i, f := range fields {
		host, ok := strings.CutPrefix(f, "addr=")
		if !ok || net.ParseIP(host) != nil {
			continue
		}
		a, err := net.ResolveIPAddr("ip", host)
		if err != nil {
			return "", fmt.Errorf("resolve the server %s: %w", host, err)
		}
		fields[i] = "addr=" + a.String()
	}
	return strings.Join(fields, ","), nil
}

// unmount ends a volume's mount, if any. The caller holds v.mu.
func (m *Manager) unmount(v *volume) error {
	if len(v.rec.Options) == 0 {
		return nil
	}
	dir := m.data(v.rec.Name)
	mounted, err := isMounted(dir)
	if err != nil || !mounted {
		return err
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !notMounted(err) {
		return fmt.Errorf("unmount volume %s: %w", v.rec.Name, err)
	}
	return nil
}

// isMounted reports whether something is mounted at dir: the mount's own id
// differs from that of the folder above (statx, since Linux 5.8). A bind mount
// of the same file system is seen too.
func isMounted(dir string) (bool, error) {
	var at, above unix.Statx_t
	const mask = unix.STATX_MNT_ID
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, mask, &at); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		// A mount whose server is gone answers ESTALE or EIO: it is one.
		if errors.Is(err, unix.ESTALE) || errors.Is(err, unix.EIO) || errors.Is(err, unix.ENOTCONN) {
			return true, nil
		}
		return false, fmt.Errorf("look at %s: %w", dir, err)
	}
	if err := unix.Statx(unix.AT_FDCWD, dir+"/..", unix.AT_SYMLINK_NOFOLLOW, mask, &above); err != nil {
		return false, fmt.Errorf("look at %s: %w", dir, err)
	}
	return at.Mnt_id != above.Mnt_id, nil
}
