package provision

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"machine/provision/ssh"
)

const (
	customFile    = "/etc/machine-agent/custom-install"
	customTimeout = 30 * time.Minute
)

// runCustom puts the user's install script on the host and runs it there as
// root, with nothing on its standard input. It keeps its name only once it has
// succeeded: so a failed one is run again, and a good one never twice.
func (p *Provisioner) runCustom(ctx context.Context, cl *ssh.Client, t Target, f facts) error {
	p.Say("Running the custom install script...")
	ctx, cancel := context.WithTimeout(ctx, customTimeout)
	defer cancel()
	const text = `umask 077; f=` + customFile + `; mkdir -p ${f%/*} && cat >$f.new && chmod 700 $f.new && $f.new </dev/null && mv -f $f.new $f`
	out := &lineWriter{say: func(line string) { p.Say("(%s) %s", t.Machine, line) }}
	errs := &lineWriter{say: func(line string) { p.Log.Debug(line, "machine", t.Machine) }}
	err := cl.Run(ctx, f.root()+"/bin/sh -c "+ssh.Quote(text), bytes.NewReader(t.Script), out, errs)
	out.flush()
	errs.flush()
	if err != nil {
		return fmt.Errorf("custom install script: %w%s", err, said(errs.last))
	}
	return nil
}

func said(line string) string {
	if line == "" {
		return ""
	}
	return fmt.Sprintf("; it said: %.300s", line)
}

// A lineWriter passes on what is written to it by lines.
type lineWriter struct {
	say  func(line string)
	rest []byte
	last string // the last line that was not empty
}

func (w *lineWriter) Write(b []byte) (int, error) {
	w.rest = append(w.rest, b...)
	for {
		i := bytes.IndexByte(w.rest, '\n')
		if i < 0 && len(w.rest) < 4096 {
			return len(b), nil
		}
		if i < 0 {
			i = len(w.rest) - 1
		}
		w.tell(string(w.rest[:i+1]))
		w.rest = w.rest[i+1:]
	}
}

func (w *lineWriter) tell(line string) {
	line = strings.TrimRight(line, "\r\n")
	if line != "" {
		w.last = line
	}
	// Escapes would act on the user's terminal.
	w.say(strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0x7f {
			return '?'
		}
		return r
	}, line))
}

func (w *lineWriter) flush() {
	if len(w.rest) > 0 {
		w.tell(string(w.rest))
		w.rest = nil
	}
}

// setHostname gives the host its name, now and after the next boot, as
// docker-machine does: hostname(5), hosts(5).
func (p *Provisioner) setHostname(ctx context.Context, cl *ssh.Client, t Target, f facts) error {
	p.Say("Setting the hostname to %s...", t.Hostname)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	text := "H=" + ssh.Quote(t.Hostname) + `
set -eu
PATH=$PATH:/usr/sbin:/sbin
echo "$H" >/etc/hostname
hostname "$H" 2>/dev/null || echo "$H" >/proc/sys/kernel/hostname
# cloud-init would set the old one again at boot.
if [ -d /etc/cloud/cloud.cfg.d ]; then echo 'preserve_hostname: true' >/etc/cloud/cloud.cfg.d/99-machine.cfg; fi
if ! grep -Eq "[[:space:]]$H([[:space:]]|\$)" /etc/hosts 2>/dev/null; then
	# Not by sed -i: it renames, and that fails where /etc/hosts is mounted.
	{ grep -v '^127\.0\.1\.1[[:space:]]' /etc/hosts || :; echo "127.0.1.1 $H"; } >/etc/.hosts.machine
	cat /etc/.hosts.machine >/etc/hosts
	rm -f /etc/.hosts.machine
fi
echo set=yes
`
	out, err := cl.Output(ctx, f.root()+"/bin/sh -s", strings.NewReader(text))
	if err == nil && !strings.Contains(out, "set=yes") {
		err = fmt.Errorf("the host's shell stopped early: %.300q", out)
	}
	if err != nil {
		return fmt.Errorf("set the hostname: %w", err)
	}
	return nil
}
