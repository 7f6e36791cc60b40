package lifecycle

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"machine/provision/ssh"
)

// JumpConfig writes a configuration of ssh's for a machine behind jump hosts,
// and returns its path and the name that the machine has in it. On the command
// line -J would not do: what is said there of keys and known hosts is not for
// the jump hosts (ssh(1)), and sshfs takes no list with commas. Without jump
// hosts the path is empty and the name is the machine's address.
func (mc *Machine) JumpConfig(conf ssh.Config) (file, host string, err error) {
	if len(conf.Jumps) == 0 {
		return "", conf.Host, nil
	}
	host = "machine-" + mc.Name
	text, dir := jumpText(host, conf), mc.m.Store.MachineDir(mc.Name)
	file = filepath.Join(dir, "ssh_config")
	if old, err := os.ReadFile(file); err == nil && string(old) == text {
		return file, host, nil
	}
	tmp, err := os.CreateTemp(dir, ".ssh_config-*")
	if err != nil {
		return "", "", err
	}
	_, err = tmp.WriteString(text)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return "", "", fmt.Errorf("write %s: %w", file, err)
	}
	return file, host, nil
}

// jumpText is in the form of ssh_config(5).
func jumpText(host string, conf ssh.Config) string {
	var b strings.Builder
	var names []string
	key := func(path string) { fmt.Fprintf(&b, "\tIdentityFile %s\n", SSHQuote(path)) }
	for _, j := range conf.Jumps {
		user, port := j.User, j.Port
		if user == "" {
			user = "root"
		}
		if port == 0 {
			port = 22
		}
		names = append(names, user+"@"+net.JoinHostPort(j.Host, strconv.Itoa(port)))
	}
	fmt.Fprintf(&b, "# Written by machine.\nHost %s\n\tHostName %s\n\tHostKeyAlias %s\n\tProxyJump %s\n", host, conf.Host, conf.Alias, strings.Join(names, ","))
	if conf.Key != "" {
		b.WriteString("\tIdentitiesOnly yes\n")
		key(conf.Key)
	}
	for _, j := range conf.Jumps {
		// A name of ssh's own for a key has the port; ours has not.
		fmt.Fprintf(&b, "Host %s\n\tHostKeyAlias %s\n", j.Host, j.Host)
		for _, name := range []string{"id_rsa", "id_ecdsa", "id_ed25519"} {
			key("~/.ssh/" + name)
		}
		if j.Key != "" {
			key(j.Key)
		}
	}
	fmt.Fprintf(&b, "Host *\n\tUserKnownHostsFile %s\n\tGlobalKnownHostsFile %s\n\tStrictHostKeyChecking accept-new\n\tPasswordAuthentication no\n\tServerAliveInterval 60\n",
		SSHQuote(conf.KnownHosts), os.DevNull)
	return b.String()
}

// SSHQuote makes s one word of ssh_config(5).
func SSHQuote(s string) string {
	if strings.ContainsAny(s, " \t") {
		return `"` + s + `"`
	}
	return s
}
