// Package plugin hosts foreign docker-machine-driver-NAME programs, and serves
// our own drivers to docker-machine and its kin in the same way.
//
// The protocol is docker-machine's: the program prints the address that it
// listens on as its first line, and speaks Go's net/rpc with gob over HTTP on
// it. Nothing in it authenticates the two; when we serve, callers of another
// user are turned away.
package plugin

import (
	"encoding/gob"
	"sync"

	"machine/drivers"
)

const (
	prefix     = "docker-machine-driver-"
	tokenVar   = "MACHINE_PLUGIN_TOKEN"
	tokenValue = "42"
	nameVar    = "MACHINE_PLUGIN_DRIVER_NAME"
	apiVersion = 1
	// The two names under which a driver may be registered.
	service       = "RPCServerDriver"
	legacyService = "RpcServerDriver"
)

// RPCFlags carries the values of flags.
type RPCFlags struct{ Values map[string]any }

// StringFlag is a flag with a text.
type StringFlag struct{ Name, Usage, EnvVar, Value string }

// StringSliceFlag is a flag that may be repeated.
type StringSliceFlag struct {
	Name, Usage, EnvVar string
	Value               []string
}

// IntFlag is a flag with a number.
type IntFlag struct {
	Name, Usage, EnvVar string
	Value               int
}

// BoolFlag is a switch.
type BoolFlag struct{ Name, Usage, EnvVar string }

// register gives our types the names that they have on the wire.
var register = sync.OnceFunc(func() {
	gob.RegisterName("*rpcdriver.RPCFlags", &RPCFlags{})
	gob.RegisterName("*mcnflag.StringFlag", &StringFlag{})
	gob.RegisterName("*mcnflag.StringSliceFlag", &StringSliceFlag{})
	gob.RegisterName("*mcnflag.IntFlag", &IntFlag{})
	gob.RegisterName("*mcnflag.BoolFlag", &BoolFlag{})
})

// toWire turns our flags into those of the protocol.
func toWire(flags []drivers.Flag) []any {
	out := make([]any, 0, len(flags))
	for _, f := range flags {
		switch v := f.Value.(type) {
		case string:
			out = append(out, &StringFlag{f.Name, f.Usage, f.Env, v})
		case []string:
			out = append(out, &StringSliceFlag{f.Name, f.Usage, f.Env, v})
		case int:
			out = append(out, &IntFlag{f.Name, f.Usage, f.Env, v})
		case bool:
			out = append(out, &BoolFlag{f.Name, f.Usage, f.Env})
		}
	}
	return out
}

// fromWire is the way back; what is not known is left out.
func fromWire(flags []any) []drivers.Flag {
	var out []drivers.Flag
	for _, f := range flags {
		switch v := f.(type) {
		case *StringFlag:
			out = append(out, drivers.Flag{Name: v.Name, Usage: v.Usage, Env: v.EnvVar, Value: v.Value})
		case *StringSliceFlag:
			out = append(out, drivers.Flag{Name: v.Name, Usage: v.Usage, Env: v.EnvVar, Value: v.Value})
		case *IntFlag:
			out = append(out, drivers.Flag{Name: v.Name, Usage: v.Usage, Env: v.EnvVar, Value: v.Value})
		case *BoolFlag:
			out = append(out, drivers.Flag{Name: v.Name, Usage: v.Usage, Env: v.EnvVar, Value: false})
		}
	}
	return out
}
