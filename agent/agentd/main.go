// Command agentd is the agent: the container engine of one host.
//
//	agent [flags]          serve, with dockerd's flags
//	agent version [--json] print what this is
//	agent check [flags]    look through the data root, and mend it
//	agent host ...         a local machine's own init (drivers/local)
//	agent supervise ...    keep an agent running where no init system does
//	agent copy             the far end of "machine scp"
//
// Started under the name docker, it is only what an SSH connection needs of
// the docker client: "docker system dial-stdio".
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"

	"machine/agent"
	"machine/agent/host"
	"machine/agent/transfer"
)

func main() { os.Exit(run(os.Args)) }

func run(argv []string) int {
	args := argv[1:]
	if filepath.Base(argv[0]) == "docker" {
		return dialStdio(argv)
	}
	if len(args) > 0 {
		switch args[0] {
		case "version":
			return version(args[1:])
		case "check":
			return agent.CheckMain(args[1:], os.Stdout, os.Stderr)
		case "host":
			return host.Main(args[1:])
		case "supervise":
			return host.Supervise(args[1:])
		case "copy":
			return transfer.Main(os.Stdin, os.Stdout, os.Stderr)
		case "system":
			return dialStdio(argv)
		}
	}
	if slices.Contains(args, "--version") || slices.Contains(args, "-v") {
		return version(nil)
	}
	c, err := agent.ParseArgs(args, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		return 1
	}
	if c.Validate {
		fmt.Fprintln(os.Stderr, "configuration OK") // dockerd's words
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := agent.Run(ctx, c, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		return 1
	}
	return 0
}

// version prints what this binary is; provisioning reads the JSON.
func version(args []string) int {
	if slices.Contains(args, "--json") {
		json.NewEncoder(os.Stdout).Encode(map[string]string{"Version": agent.Version, "GitCommit": agent.GitCommit, "Arch": runtime.GOARCH, "Flags": "validate"})
		return 0
	}
	fmt.Printf("Docker version %s, build %s\n", agent.Version, agent.GitCommit)
	return 0
}
