// Package host is a `local` machine seen from inside and from outside: a host
// without a virtual machine, made of namespaces of this computer.
//
//	run     (outside) address, bridge, cgroup, then init in new namespaces
//	init    (inside)  the root file system, then PID 1: SSH, agent, reaping
//	stop, kill, status, remove (outside)
//	sshd, sftp (inside) what init starts
//
// The machine's root is an overlay over the computer's own root, which stays
// as it is; what the machine writes is in DIR/upper, its engine's data in
// DIR/data. Nothing of the overlay shows in the computer's mount table.
//
// Beside it the package has the supervisor, for hosts without an init system
// that restarts services.
package host

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"machine/agent/host/sshd"
)

// Main runs `agent host ARGS` and returns the exit code.
func Main(args []string) int {
	if len(args) == 0 {
		return fail(fmt.Errorf("usage: host run|stop|kill|status|remove --dir DIR [--name NAME] [--ip IP] [--key FILE]"))
	}
	switch args[0] {
	case "init":
		return runInit()
	case "sshd":
		return fail(sshd.Main())
	case "sftp":
		return fail(sshd.SFTP(os.Stdin, os.Stdout))
	}
	var c Config
	fs := flag.NewFlagSet("host "+args[0], flag.ContinueOnError)
	fs.StringVar(&c.Dir, "dir", "", "the machine's folder")
	fs.StringVar(&c.Name, "name", "", "the machine's name")
	fs.StringVar(&c.IP, "ip", "", "the address wanted; another one is taken when it is in use")
	fs.StringVar(&c.Key, "key", "", "public key that may log in")
	fs.StringVar(&c.Store, "store", "", "folder that stays hidden inside")
	if err := fs.Parse(args[1:]); err != nil {
		return 2
	}
	if !filepath.IsAbs(c.Dir) {
		return fail(fmt.Errorf("host %s: --dir must be an absolute path, not %q", args[0], c.Dir))
	}
	var st Status
	var err error
	switch args[0] {
	case "run":
		st, err = Run(c)
	case "stop":
		err = Stop(c.Dir, true)
	case "kill":
		err = Stop(c.Dir, false)
	case "status":
		st = Look(c.Dir)
	case "remove":
		err = Remove(c.Dir)
	default:
		err = fmt.Errorf("host: unknown command %q", args[0])
	}
	if err != nil {
		return fail(err)
	}
	return fail(report(os.Stdout, st))
}

func report(w io.Writer, st Status) error { return json.NewEncoder(w).Encode(st) }

func fail(err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}
