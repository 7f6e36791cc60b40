package generic

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kevinburke/ssh_config"
)

// readSSHConfig takes from ~/.ssh/config what the flags leave open, for a host
// that is named there. A plain IP address is left as it is, as in
// docker-machine, which reads no such file.
func (d *Driver) readSSHConfig() error {
	home, err := os.UserHomeDir()
	if err != nil || net.ParseIP(d.IPAddress) != nil {
		return nil
	}
	file := filepath.Join(home, ".ssh", "config")
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	conf, err := ssh_config.Decode(f)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	alias := d.IPAddress
	get := func(key string) string { v, _ := conf.Get(alias, key); return v }
	if v := get("HostName"); v != "" {
		d.IPAddress = strings.ReplaceAll(v, "%h", alias)
	}
	if v := get("User"); v != "" && (d.SSHUser == "" || d.SSHUser == "root") {
		d.SSHUser = v
	}
	if n, err := strconv.Atoi(get("Port")); err == nil && (d.SSHPort == 0 || d.SSHPort == 22) {
		d.SSHPort = n
	}
	if v := get("IdentityFile"); v != "" && d.SSHKey == "" {
		if rest, ok := strings.CutPrefix(v, "~/"); ok {
			v = filepath.Join(home, rest)
		}
		d.SSHKey = strings.NewReplacer("%d", home, "%h", d.IPAddress, "%r", d.SSHUser).Replace(v)
	}
	if v := get("ProxyJump"); v != "" && v != "none" && d.SSHJump == "" {
		d.SSHJump = resolveJumps(conf, v)
	}
	return nil
}

// resolveJumps replaces the names of jump hosts by their addresses.
func resolveJumps(conf *ssh_config.Config, list string) string {
	var out []string
	for _, s := range strings.Split(list, ",") {
		s = strings.TrimSpace(s)
		user, host, ok := strings.Cut(s, "@")
		if !ok {
			user, host = "", s
		}
		name, port, err := net.SplitHostPort(host)
		if err != nil {
			name, port = host, ""
		}
		get := func(key, is string) string {
			if v, _ := conf.Get(name, key); v != "" && is == "" {
				return v
			}
			return is
		}
		user, port = get("User", user), get("Port", port)
		if addr := get("HostName", ""); addr != "" {
			name = addr
		}
		if user != "" {
			user += "@"
		}
		if port == "" {
			port = "22"
		}
		out = append(out, user+net.JoinHostPort(name, port))
	}
	return strings.Join(out, ",")
}

// firstJump is where a connection by way of list begins.
func firstJump(list string) string {
	first, _, _ := strings.Cut(list, ",")
	if _, host, ok := strings.Cut(first, "@"); ok {
		first = host
	}
	if _, _, err := net.SplitHostPort(first); err == nil {
		return first
	}
	return net.JoinHostPort(strings.Trim(first, "[]"), "22")
}
