package container

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"machine/agent/fault"
	"machine/agent/model"
	"machine/agent/sysfile"
)

// makeFiles makes the files that are bind-mounted into the container, so that
// its mounts can be set up while its addresses are still being claimed.
func (m *Manager) makeFiles(r *Record) error {
	if err := os.MkdirAll(filepath.Dir(m.logPath(r)), 0o710); err != nil {
		return fmt.Errorf("container %s: %w", r.Name, err)
	}
	dir := m.dir(r.ID)
	err := rewrite(filepath.Join(dir, "hostname"), []byte(r.Config.Hostname+"\n"))
	for _, f := range []string{"hosts", "resolv.conf"} {
		if err == nil {
			err = sysfile.Touch(filepath.Join(dir, f), 0o644)
		}
	}
	if uid, gid := r.rootIDs(); uid != 0 || gid != 0 {
		for _, f := range []string{"hostname", "hosts", "resolv.conf"} {
			if err == nil {
				err = os.Chown(filepath.Join(dir, f), uid, gid)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("container %s: %w", r.Name, err)
	}
	return nil
}

// rewrite replaces a file's content in place: its inode is bind-mounted in
// the container and must stay.
func rewrite(name string, b []byte) error { return sysfile.Rewrite(name, b, 0o644) }

// writeNetFiles writes hosts and resolv.conf, once addresses are known.
func (m *Manager) writeNetFiles(ctx context.Context, r *Record, eps map[string]*model.Endpoint) error {
	if r.HostConfig.NetworkMode.IsContainer() {
		return m.copyNetFiles(r)
	}
	hosts, err := m.hosts(r, eps)
	if err != nil {
		return err
	}
	if err := rewrite(filepath.Join(m.dir(r.ID), "hosts"), hosts); err != nil {
		return fmt.Errorf("container %s: %w", r.Name, err)
	}
	embedded := false
	for name := range eps {
		embedded = embedded || name != "bridge"
	}
	hc := r.HostConfig
	d := model.DNSConfig{Servers: hc.DNS, Options: hc.DNSOptions, Search: hc.DNSSearch}
	if len(d.Servers) == 0 {
		d.Servers = m.o.Defaults.DNS.Servers
	}
	if len(d.Options) == 0 {
		d.Options = m.o.Defaults.DNS.Options
	}
	if len(d.Search) == 0 {
		d.Search = m.o.Defaults.DNS.Search
	}
	resolv, err := m.o.Networks.ResolvConf(ctx, r.SandboxKey, d, embedded)
	if err != nil {
		return fmt.Errorf("container %s: %w", r.Name, err)
	}
	return rewrite(filepath.Join(m.dir(r.ID), "resolv.conf"), resolv)
}

// copyNetFiles gives a container that joined another's network that one's
// files, as Docker does.
func (m *Manager) copyNetFiles(r *Record) error {
	other, err := m.find(strings.TrimPrefix(string(r.HostConfig.NetworkMode), "container:"))
	if err != nil {
		return err
	}
	for _, f := range []string{"hosts", "resolv.conf", "hostname"} {
		b, err := os.ReadFile(filepath.Join(m.dir(other.id), f))
		if err != nil {
			return fmt.Errorf("container %s: %w", r.Name, err)
		}
		if err := rewrite(filepath.Join(m.dir(r.ID), f), b); err != nil {
			return fmt.Errorf("container %s: %w", r.Name, err)
		}
	}
	return nil
}

// hosts is /etc/hosts: localhost, extra hosts, links, own addresses.
func (m *Manager) hosts(r *Record, eps map[string]*model.Endpoint) ([]byte, error) {
	hc := r.HostConfig
	var b bytes.Buffer
	if hc.NetworkMode.IsHost() {
		own, err := os.ReadFile("/etc/hosts")
		if err != nil {
			own = []byte("127.0.0.1\tlocalhost\n")
		}
		b.Write(own)
		if len(own) > 0 && own[len(own)-1] != '\n' {
			b.WriteByte('\n')
		}
	} else {
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	}
	for _, h := range hc.ExtraHosts {
		name, ip, ok := strings.Cut(h, ":")
		if !ok {
			name, ip, ok = strings.Cut(h, "=")
		}
		if !ok || name == "" {
			return nil, fault.Invalid.Errorf("invalid extra host %q: want name:ip", h)
		}
		if ip == "host-gateway" {
			ip = m.o.Networks.HostGateway()
		}
		if _, err := netip.ParseAddr(strings.Trim(ip, "[]")); err != nil {
			return nil, fault.Invalid.Errorf("invalid extra host %q: %w", h, err)
		}
		fmt.Fprintf(&b, "%s\t%s\n", strings.Trim(ip, "[]"), name)
	}
	m.linkHosts(&b, r, eps)
	names := r.Config.Hostname
	if r.Config.Domainname != "" {
		names = r.Config.Hostname + "." + r.Config.Domainname + " " + r.Config.Hostname
	}
	for _, ep := range eps {
		if ep.IPv4.IsValid() {
			fmt.Fprintf(&b, "%s\t%s\n", ep.IPv4.Addr(), names)
		}
		if ep.IPv6.IsValid() {
			fmt.Fprintf(&b, "%s\t%s\n", ep.IPv6.Addr(), names)
		}
	}
	return b.Bytes(), nil
}

// linkHosts adds the lines of --link on the default bridge.
func (m *Manager) linkHosts(b *bytes.Buffer, r *Record, eps map[string]*model.Endpoint) {
	if eps["bridge"] == nil {
		return
	}
	for _, l := range r.HostConfig.Links {
		ref, alias := splitLink(l)
		c, err := m.find(ref)
		if err != nil {
			continue
		}
		c.mu.Lock()
		ep := c.endpoints["bridge"]
		c.mu.Unlock()
		if ep == nil {
			continue
		}
		o := c.rec.Load()
		line := fmt.Sprintf("%s\t%s %s", ep.IPv4.Addr(), alias, o.Config.Hostname)
		if o.Name != alias {
			line += " " + o.Name
		}
		b.WriteString(line + "\n")
	}
}
