// Command machine makes container hosts out of anything and runs them as a
// fleet. Started under the name docker-machine it is docker-machine.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"machine/cli"
)

func main() {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel() // the command ends in order, and leaves what can be resumed
		<-signals
		fmt.Fprintln(os.Stderr, "interrupted twice: what was begun is in the machine's journal, see `machine ls`; `machine rm NAME` cleans up")
		os.Exit(130)
	}()
	os.Exit(cli.Run(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr))
}
