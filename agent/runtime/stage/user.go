//go:build linux

package stage

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"machine/agent/runtime/wire"
)

// A user is whom a process runs as.
type user struct {
	uid, gid int
	groups   []int
	home     string
}

const (
	maxID     = 1<<31 - 1
	maxDBSize = 4 << 20 // of /etc/passwd and /etc/group
)

// lookupUser resolves the user in the container's own files; it runs with the
// container's root as its root.
func lookupUser(p *wire.Process) (user, error) {
	return resolveUser(p.User, p.Groups, func(path string) ([]byte, error) { return readDB(path) })
}

func readDB(path string) ([]byte, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS})
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil, nil
	}
	if err != nil {
		return nil, wire.Fail("open "+path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.New(path + " is not a regular file")
	}
	if st.Size > maxDBSize {
		return nil, errors.New(path + " is larger than 4 MiB")
	}
	return ReadAll(fd)
}

// number parses an id. ok says that s is to be taken for a number at all.
func number(s string) (n int, ok bool, err error) {
	if s == "" {
		return 0, false, nil
	}
	digits := s
	if s[0] == '-' || s[0] == '+' {
		digits = s[1:]
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false, nil
		}
	}
	n, err = strconv.Atoi(s)
	if err != nil || n < 0 || n > maxID || len(digits) < len(s) || digits == "" {
		return 0, true, errors.New("uids and gids must be in range 0-2147483647: " + strconv.Quote(s))
	}
	return n, true, nil
}

func resolveUser(spec string, extra []string, db func(string) ([]byte, error)) (user, error) {
	name, group, hasGroup := strings.Cut(spec, ":")
	if name == "" {
		name = "0"
	}
	u := user{home: "/"}
	passwd, err := db("/etc/passwd")
	if err != nil {
		return u, err
	}
	groups, err := db("/etc/group")
	if err != nil {
		return u, err
	}
	login, err := u.passwd(name, string(passwd))
	if err != nil {
		return u, err
	}
	if hasGroup && group != "" {
		if u.gid, err = gid(group, string(groups)); err != nil {
			return u, err
		}
		u.groups = []int{u.gid}
	} else {
		u.groups = []int{u.gid}
		each(string(groups), func(f []string) {
			if len(f) < 4 || login == "" {
				return
			}
			for _, m := range strings.Split(f[3], ",") {
				if m == login {
					if n, ok, err := number(f[2]); ok && err == nil {
						u.add(n)
					}
				}
			}
		})
	}
	for _, g := range extra {
		n, err := gid(g, string(groups))
		if err != nil {
			return u, err
		}
		u.add(n)
	}
	return u, nil
}

func (u *user) add(g int) {
	for _, have := range u.groups {
		if have == g {
			return
		}
	}
	if len(u.groups) < 65536 {
		u.groups = append(u.groups, g)
	}
}

func each(db string, f func(fields []string)) {
	for len(db) > 0 {
		line, rest, _ := strings.Cut(db, "\n")
		db = rest
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			f(strings.Split(line, ":"))
		}
	}
}

// passwd fills in ids and home and returns the login name. A number is only
// ever compared with ids: a user whose name is a number must not lend its id
// to it.
func (u *user) passwd(name, db string) (login string, err error) {
	n, numeric, err := number(name)
	if err != nil {
		return "", err
	}
	found := false
	each(db, func(f []string) {
		if found || len(f) < 4 {
			return
		}
		id, ok, e := number(f[2])
		if !ok || e != nil || (numeric && id != n) || (!numeric && f[0] != name) {
			return
		}
		gid, ok, e := number(f[3])
		if !ok || e != nil {
			return
		}
		found, login, u.uid, u.gid = true, f[0], id, gid
		if len(f) > 5 && f[5] != "" {
			u.home = f[5]
		}
	})
	if found {
		return login, nil
	}
	if !numeric {
		return "", errors.New("unable to find user " + name + ": no matching entries in passwd file")
	}
	u.uid = n
	return "", nil
}

func gid(name, db string) (int, error) {
	n, numeric, err := number(name)
	if err != nil || numeric {
		return n, err
	}
	found := -1
	each(db, func(f []string) {
		if found >= 0 || len(f) < 3 || f[0] != name {
			return
		}
		if id, ok, e := number(f[2]); ok && e == nil {
			found = id
		}
	})
	if found < 0 {
		return 0, errors.New("unable to find group " + name + ": no matching entries in group file")
	}
	return found, nil
}
