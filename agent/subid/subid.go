// Package subid finds the ids of the host that containers get with
// --userns-remap, and gives them to the user of that name where it has none.
package subid

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"machine/agent/fault"
	"machine/agent/model"
)

// remapUser is the user of --userns-remap=default, as dockerd names it.
const remapUser = "dockremap"

// Find turns --userns-remap into a map: "default", user, uid, each with :group
// or :gid; nil for "". The ranges are those of /etc/subuid and /etc/subgid
// (subuid(5)). A default user that has none is made, as dockerd does.
func Find(s string) (*model.IDMap, error) {
	if s == "" {
		return nil, nil
	}
	user, group, _ := strings.Cut(s, ":")
	if user == "default" {
		if err := makeUser(); err != nil {
			return nil, fmt.Errorf("userns-remap: make the user %s: %w", remapUser, err)
		}
		user = remapUser
	}
	name, uid, err := lookUp("/etc/passwd", user)
	if err != nil {
		return nil, fmt.Errorf("userns-remap: %w", err)
	}
	if group == "" { // the group of the same name, as dockerd has it
		group = name
	}
	gname, gid, err := lookUp("/etc/group", group)
	if err != nil {
		return nil, fmt.Errorf("userns-remap: %w", err)
	}
	first, size, err := subordinate("/etc/subuid", name, uid)
	if err != nil {
		return nil, err
	}
	gfirst, gsize, err := subordinate("/etc/subgid", gname, gid)
	if err != nil {
		return nil, err
	}
	return &model.IDMap{UID: first, GID: gfirst, Size: min(size, gsize)}, nil
}

// lookUp finds a name or a number in a file like passwd(5) or group(5).
func lookUp(file, ref string) (name, id string, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", "", err
	}
	_, err = strconv.ParseUint(ref, 10, 31)
	number := err == nil
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) >= 3 && (f[0] == ref || number && f[2] == ref) {
			return f[0], f[2], nil
		}
	}
	return "", "", fault.Invalid.Errorf("%s has no entry for %q", file, ref)
}

// subordinate finds the first range of a user or group, who is named or
// numbered there.
func subordinate(file, name, id string) (start, size uint32, err error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, 0, fmt.Errorf("userns-remap: %w", err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		f := strings.Split(strings.TrimSpace(lines.Text()), ":")
		if len(f) != 3 || f[0] != name && f[0] != id {
			continue
		}
		a, err1 := strconv.ParseUint(f[1], 10, 32)
		n, err2 := strconv.ParseUint(f[2], 10, 32)
		// The host's root is never among them, and -1 is no id.
		if err1 == nil && err2 == nil && a > 0 && n > 0 && a+n <= 1<<32-1 {
			return uint32(a), uint32(n), nil
		}
	}
	return 0, 0, fault.Invalid.Errorf("userns-remap: %s has no range for %s: add a line like %s:100000:65536", file, name, name)
}

// makeUser makes the user with the host's own tool, unless it is there,
// and gives it ranges behind all others, unless it has some. It is done once in
// a host's life.
func makeUser() error {
	if _, _, err := lookUp("/etc/passwd", remapUser); err != nil {
		args := []string{"useradd", "--system", "--user-group", "--no-create-home", "--shell", "/bin/false", remapUser}
		if _, err := exec.LookPath(args[0]); err != nil {
			args = []string{"adduser", "-S", "-D", "-H", "-s", "/bin/false", remapUser} // busybox's
			if out, err := exec.Command("addgroup", "-S", remapUser).CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			args = append(args[:len(args)-1], "-G", remapUser, remapUser)
		}
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		if err := addRange(file, remapUser); err != nil {
			return err
		}
	}
	return nil
}

// addRange gives a user 65536 ids that no other has, from 100000 on.
func addRange(file, name string) error {
	b, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	next := uint64(100000)
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 3 {
			continue
		}
		if f[0] == name {
			return nil
		}
		a, err1 := strconv.ParseUint(f[1], 10, 32)
		n, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 == nil && err2 == nil {
			next = max(next, a+n)
		}
	}
	if next+1<<16 > 1<<32-1 {
		return fault.Unavailable.Errorf("%s has no room for 65536 more ids", file)
	}
	line := fmt.Sprintf("%s:%d:65536\n", name, next)
	if len(b) > 0 && b[len(b)-1] != '\n' {
		line = "\n" + line
	}
	// Added behind the others', which no crash may cost.
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line)
	return errors.Join(err, f.Close())
}
