package provision

import (
	"fmt"
	"strings"

	"machine/provision/ssh"
)

// AgentPath is where the agent is on a host.
const AgentPath = agentBin

// Paths on the host.
const (
	agentBin  = "/usr/local/bin/machine-agent"
	caFile    = "/etc/docker/ca.pem"
	certFile  = "/etc/docker/server.pem"
	keyFile   = "/etc/docker/server-key.pem"
	unitFile  = "/etc/systemd/system/machine-agent.service"
	rcFile    = "/etc/init.d/machine-agent"
	argsFile  = "/etc/machine-agent/args"
	envFile   = "/etc/machine-agent/env"
	agentLog  = "/var/log/machine-agent.log"
	agentTemp = agentBin + ".machine-new"
)

// Engine says how the engine is to be configured.
type Engine struct {
	Port             int
	IPv6             bool     // it is asked by an IPv6 address
	Labels           []string // key=value
	Options          []string // dockerd flags without dashes: key=value or key
	InsecureRegistry []string
	RegistryMirror   []string
	StorageDriver    string
	Env              []string // KEY=value
}

// args are the agent's arguments, with dockerd's names.
func (e Engine) args(driver string) []string {
	port := e.Port
	if port == 0 {
		port = 2376
	}
	all := "0.0.0.0"
	if e.IPv6 {
		all = "[::]" // both families
	}
	args := []string{
		"--host", fmt.Sprintf("tcp://%s:%d", all, port),
		"--host", "unix:///var/run/docker.sock",
		"--tlsverify", "--tlscacert", caFile, "--tlscert", certFile, "--tlskey", keyFile,
		"--label", "provider=" + driver,
	}
	for _, l := range e.Labels {
		args = append(args, "--label", l)
	}
	for _, r := range e.InsecureRegistry {
		args = append(args, "--insecure-registry", r)
	}
	for _, m := range e.RegistryMirror {
		args = append(args, "--registry-mirror", m)
	}
	if e.StorageDriver != "" {
		args = append(args, "--storage-driver", e.StorageDriver)
	}
	dataRoot, execRoot := true, true
	for _, o := range e.Options {
		o = strings.TrimLeft(o, "-")
		k, v, ok := strings.Cut(o, "=")
		if !ok {
			k, v, ok = strings.Cut(o, " ")
		}
		dataRoot = dataRoot && k != "data-root" && k != "graph"
		execRoot = execRoot && k != "exec-root"
		if ok {
			args = append(args, "--"+k+"="+v)
		} else {
			args = append(args, "--"+k)
		}
	}
	if dataRoot {
		args = append(args, "--data-root", "/var/lib/docker")
	}
	if execRoot {
		args = append(args, "--exec-root", "/var/run/docker")
	}
	return args
}

// check refuses what would break out of a line of a unit file.
func (e Engine) check() error {
	for _, list := range [][]string{e.Labels, e.Options, e.InsecureRegistry, e.RegistryMirror, {e.StorageDriver}, e.Env} {
		for _, s := range list {
			if strings.ContainsAny(s, "\n\r\x00") {
				return fmt.Errorf("engine option %q holds a line break", s)
			}
		}
	}
	for _, s := range e.Env {
		if !strings.Contains(s, "=") {
			return fmt.Errorf("engine environment %q is not KEY=value", s)
		}
	}
	return nil
}

// systemdQuote makes s one word of ExecStart= or Environment= (systemd.syntax(7)).
func systemdQuote(s string, dollars bool) string {
	s = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%").Replace(s)
	if dollars {
		s = strings.ReplaceAll(s, "$", "$$")
	}
	return `"` + s + `"`
}

func systemdUnit(args, env []string) string {
	var b strings.Builder
	b.WriteString(`# Written by machine; changes are lost when the machine is provisioned again.
[Unit]
Description=Container engine (machine agent)
Documentation=https://docs.docker.com
After=network-online.target local-fs.target firewalld.service
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart=` + agentBin)
	for _, a := range args {
		b.WriteString(" " + systemdQuote(a, true))
	}
	b.WriteString("\n")
	for _, e := range env {
		b.WriteString("Environment=" + systemdQuote(e, false) + "\n")
	}
	b.WriteString(`ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=1
KillMode=process
Delegate=yes
OOMScoreAdjust=-500
TasksMax=infinity
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity

[Install]
WantedBy=multi-user.target
`)
	return b.String()
}

const openrcScript = `#!/sbin/openrc-run
# Written by machine.
name="machine agent"
description="Container engine (machine agent)"
extra_started_commands="reload"
depend() { need net localmount; use dns; after firewall cgroups; }
start() { ebegin "Starting $name"; ` + agentBin + ` supervise --args-file ` + argsFile + `; eend $?; }
stop() { ebegin "Stopping $name"; ` + agentBin + ` supervise --stop; eend $?; }
reload() { ebegin "Reloading $name"; ` + agentBin + ` supervise --reload; eend $?; }
status() {
	if ` + agentBin + ` supervise --status >/dev/null 2>&1; then einfo "status: started"; return 0; fi
	if service_started; then eerror "status: crashed"; return 32; fi
	einfo "status: stopped"
	return 3
}
`

const sysvScript = `#!/bin/sh
# Written by machine.
# chkconfig: 2345 90 10
### BEGIN INIT INFO
# Provides:          machine-agent docker
# Required-Start:    $remote_fs $network
# Required-Stop:     $remote_fs $network
# Default-Start:     2 3 4 5
# Default-Stop:      0 1 6
# Short-Description: Container engine (machine agent)
### END INIT INFO
# Exit codes are those of the Linux Standard Base.
runs() { ` + agentBin + ` supervise --status >/dev/null 2>&1; }
start() { runs || ` + agentBin + ` supervise --args-file ` + argsFile + ` </dev/null; }
case "$1" in
start) start ;;
stop) ` + agentBin + ` supervise --stop ;;
restart) ` + agentBin + ` supervise --stop && start ;;
try-restart|condrestart) if runs; then ` + agentBin + ` supervise --stop && start; fi ;;
reload|force-reload) runs || exit 7; ` + agentBin + ` supervise --reload ;;
status) if runs; then echo "machine-agent is running"; else echo "machine-agent is not running"; exit 3; fi ;;
*) echo "usage: $0 start|stop|restart|try-restart|reload|status" >&2; exit 2 ;;
esac
`

// A file is one that provisioning writes.
type file struct {
	path, mode string
	data       []byte
	kind       fileKind
}

type fileKind int

const (
	serviceFile fileKind = iota // a change needs a restart
	certsFile                   // a change needs a reload
)

// serviceFiles are those that start the agent under the init system.
func serviceFiles(init string, args, env []string) []file {
	if init == "systemd" {
		return []file{{unitFile, "644", []byte(systemdUnit(args, env)), serviceFile}}
	}
	files := []file{
		{argsFile, "600", []byte(strings.Join(args, "\n") + "\n"), serviceFile},
		{envFile, "600", []byte(strings.Join(append(env, ""), "\n")), serviceFile},
	}
	switch init {
	case "openrc":
		files = append(files, file{rcFile, "755", []byte(openrcScript), serviceFile})
	case "sysvinit":
		files = append(files, file{rcFile, "755", []byte(sysvScript), serviceFile})
	}
	return files
}

// installText is the program that puts files in place: all of it goes over
// standard input, so that no key shows in an argument.
func installText(vars map[string]string, files []file, program string) string {
	var b strings.Builder
	for _, k := range []string{"INIT", "AGENT_TMP", "AGENT", "RESTART", "RELOAD", "SHIM", "WANT", "ARGS"} {
		fmt.Fprintf(&b, "%s=%s\n", k, ssh.Quote(vars[k]))
	}
	b.WriteString("files() {\n:\n")
	for i, f := range files {
		// The mark is unlike any line of the files: they are ours, PEM or
		// escaped single lines.
		mark := fmt.Sprintf("MACHINE_END_OF_FILE_%d", i)
		data := string(f.data)
		if data != "" && !strings.HasSuffix(data, "\n") {
			data += "\n"
		}
		fmt.Fprintf(&b, "put %s %s <<'%s'\n%s%s\n", ssh.Quote(f.path), f.mode, mark, data, mark)
	}
	b.WriteString("}\n")
	b.WriteString(program)
	return b.String()
}
