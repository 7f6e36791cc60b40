package stage

import (
	"fmt"
	"testing"
)

const (
	passwdFile = "root:x:0:0:root:/root:/bin/sh\n# a comment\n\nuser:x:1000:100::/home/user:/bin/sh\n7:x:0:0::/:\nbig:x:4294967296:0::/:\nshort:x\n"
	groupFile  = "root:x:0:\nusers:x:100:\nwheel:x:10:root,user\n55:x:0:\nextra:x:2000:user\nbig:x:2147483648:user\n"
)

func TestResolveUser(t *testing.T) {
	db := func(path string) ([]byte, error) {
		if path == "/etc/passwd" {
			return []byte(passwdFile), nil
		}
		return []byte(groupFile), nil
	}
	for _, c := range []struct {
		user  string
		extra []string
		want  string
	}{
		{"", nil, "{0 0 [0 10] /root}"},
		{"root", nil, "{0 0 [0 10] /root}"},
		{"user", nil, "{1000 100 [100 10 2000] /home/user}"},
		{"1000", []string{"wheel", "5"}, "{1000 100 [100 10 2000 5] /home/user}"},
		{"user:wheel", nil, "{1000 10 [10] /home/user}"},
		{"7", nil, "{7 0 [0] /}"},
		{"7:55", nil, "{7 55 [55] /}"},
		{"2147483647", nil, "{2147483647 0 [0] /}"},
		{":users", nil, "{0 100 [100] /root}"},
	} {
		u, err := resolveUser(c.user, c.extra, db)
		if got := fmt.Sprint(u); err != nil || got != c.want {
			t.Errorf("%q: got %s %v, want %s", c.user, got, err, c.want)
		}
	}
	for _, bad := range []string{"nobody", "2147483648", "-1", "+1", "0x0", "big", "short", "user:nobody", "user:-1", "99999999999999999999", "user:big"} {
		if u, err := resolveUser(bad, nil, db); err == nil {
			t.Errorf("%q: got %v", bad, u)
		}
	}
}

func FuzzUsers(f *testing.F) {
	f.Add("user:wheel", passwdFile, groupFile)
	f.Fuzz(func(t *testing.T, user, passwd, group string) {
		u, err := resolveUser(user, nil, func(path string) ([]byte, error) {
			if path == "/etc/passwd" {
				return []byte(passwd), nil
			}
			return []byte(group), nil
		})
		if err == nil && (u.uid < 0 || u.gid < 0 || u.uid > maxID || u.gid > maxID) {
			t.Errorf("%q: got %v", user, u)
		}
	})
}
