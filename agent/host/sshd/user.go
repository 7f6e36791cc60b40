package sshd

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// An account is a line of /etc/passwd (passwd(5)), with its groups.
type account struct {
	name, home, shell string
	uid, gid          uint32
	groups            []uint32
}

// lookup reads the user's line. It reads the files itself: os/user caches and
// knows no shells.
func lookup(name string) (account, error) {
	a := account{name: name, shell: "/bin/sh", home: "/"}
	found, err := eachLine("/etc/passwd", func(f []string) bool {
		if len(f) < 7 || f[0] != name {
			return false
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 != nil || err2 != nil {
			return false
		}
		a.uid, a.gid, a.home = uint32(uid), uint32(gid), f[5]
		if f[6] != "" {
			a.shell = f[6]
		}
		return true
	})
	if err != nil {
		return a, err
	}
	if !found {
		return a, fmt.Errorf("no user %q in /etc/passwd", name)
	}
	_, err = eachLine("/etc/group", func(f []string) bool {
		if len(f) < 4 {
			return false
		}
		for _, member := range strings.Split(f[3], ",") {
			if gid, err := strconv.ParseUint(f[2], 10, 32); err == nil && member == name {
				a.groups = append(a.groups, uint32(gid))
			}
		}
		return false
	})
	if err != nil {
		a.groups = nil
	}
	return a, nil
}

// eachLine calls f with the fields of each line until it returns true.
func eachLine(path string, f func(fields []string) bool) (bool, error) {
	file, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer func() { _ = file.Close() }()
	sc := bufio.NewScanner(file)
	for sc.Scan() {
		if f(strings.Split(sc.Text(), ":")) {
			return true, nil
		}
	}
	return false, sc.Err()
}

// credential is nil when the process is the user already.
func (a account) credential() *syscall.Credential {
	if int(a.uid) == os.Geteuid() {
		return nil
	}
	return &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: a.groups}
}

func (a account) env() []string {
	path := "/usr/local/bin:/usr/bin:/bin"
	if a.uid == 0 {
		path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	return []string{"USER=" + a.name, "LOGNAME=" + a.name, "HOME=" + a.home, "SHELL=" + a.shell, "PATH=" + path}
}
