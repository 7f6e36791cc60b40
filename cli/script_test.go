package cli_test

import (
	"context"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"machine/cli"
)

// TestScripts runs the command lines of testdata/script.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("MACHINE_STORAGE_PATH", e.WorkDir+"/store")
			e.Setenv("SHELL", "/bin/bash")
			e.Setenv("USER", "tester")
			return nil
		},
	})
}

// commands are what scripts may call: this binary under other names.
func commands() map[string]func() {
	run := func() { os.Exit(cli.Run(context.Background(), os.Args, os.Stdin, os.Stdout, os.Stderr)) }
	return map[string]func(){"machine": run, "docker-machine": run, "docker-machine-driver-none": run}
}

func TestMain(m *testing.M) { testscript.Main(m, commands()) }
