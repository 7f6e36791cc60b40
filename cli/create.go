package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"machine/cli/lifecycle"
	"machine/cli/store"
	"machine/drivers"
	"machine/drivers/all"
)

const driverVar = "MACHINE_DRIVER"

func (p *program) createCommand() *cli.Command {
	return &cli.Command{Name: "create", Usage: "Create a machine, or several", ArgsUsage: "NAME...",
		Description: "The options of a driver are shown by '" + p.name + " create -d DRIVER --help'. Drivers are " + kindNames() + ", and\nany program docker-machine-driver-NAME on the search path.",
		Flags:       sharedFlags(), Action: p.create}
}

func sharedFlags() []cli.Flag {
	list := func(name, usage string) cli.Flag { return &cli.StringSliceFlag{Name: name, Usage: usage} }
	return []cli.Flag{
		&cli.StringFlag{Name: "driver", Aliases: []string{"d"}, Value: all.Default(), EnvVars: []string{driverVar}, Usage: "Driver that makes the machine"},
		&cli.StringFlag{Name: "engine-install-url", Value: "https://get.docker.com", EnvVars: []string{"MACHINE_DOCKER_INSTALL_URL"}, Usage: "Accepted and kept: the engine comes with this program"},
		list("engine-opt", "Option of the engine, as dockerd has them: KEY=VALUE"),
		list("engine-insecure-registry", "Registry that may be without TLS, or with a certificate that nobody signed"),
		list("engine-registry-mirror", "Registry mirror (several in ENGINE_REGISTRY_MIRROR, with commas between)"),
		list("engine-label", "Label of the engine: KEY=VALUE"),
		&cli.StringFlag{Name: "engine-storage-driver", Usage: "Storage driver of the engine"},
		list("engine-env", "Environment variable of the engine: KEY=VALUE"),
		list("tls-san", "Another name or address that the engine's certificate is to be good for"),
		&cli.BoolFlag{Name: "swarm", Usage: "Classic Swarm: is kept in the record and does nothing; 'docker swarm' makes clusters"},
		&cli.StringFlag{Name: "swarm-image", Value: "swarm:latest", EnvVars: []string{"MACHINE_SWARM_IMAGE"}, Usage: "As --swarm"},
		&cli.BoolFlag{Name: "swarm-master", Usage: "As --swarm"},
		&cli.StringFlag{Name: "swarm-discovery", Usage: "As --swarm"},
		&cli.StringFlag{Name: "swarm-strategy", Value: "spread", Usage: "As --swarm"},
		list("swarm-opt", "As --swarm"),
		list("swarm-join-opt", "As --swarm"),
		&cli.StringFlag{Name: "swarm-host", Value: "tcp://0.0.0.0:3376", Usage: "As --swarm"},
		&cli.StringFlag{Name: "swarm-addr", Usage: "As --swarm"},
		&cli.BoolFlag{Name: "swarm-experimental", Usage: "As --swarm"},
		&cli.StringFlag{Name: "custom-install-script", EnvVars: []string{"MACHINE_CUSTOM_INSTALL_SCRIPT"}, Usage: "Script that is run on the host, as root and once, before the engine comes"},
		&cli.StringFlag{Name: "hostname-override", EnvVars: []string{"MACHINE_HOSTNAME_OVERRIDE"}, Usage: "Name of the host (default: its own)"},
		&cli.IntFlag{Name: "count", Usage: "Make NAME-1 to NAME-COUNT at once; {n} in other options is the number"},
		&cli.BoolFlag{Name: "context", Usage: "Make a docker context of the machine's name, too; it goes with the machine"},
		&cli.BoolFlag{Name: "resume", Usage: "Go on with a machine whose creation was cut off"},
	}
}

// kindNames are the drivers inside this program.
func kindNames() string {
	var names []string
	for _, k := range all.Kinds() {
		names = append(names, k.Name)
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " and " + names[last]
}

// addDriverFlags looks for the driver's name in args, and adds its flags.
func (p *program) addDriverFlags(cmd *cli.Command, args []string) error {
	name := driverIn(args)
	kind, err := p.kind(name)
	if err != nil {
		if hasHelp(args) {
			return nil
		}
		return err
	}
	flags := append([]drivers.Flag{}, kind.Flags...)
	sort.Slice(flags, func(i, j int) bool { return flags[i].Name < flags[j].Name })
	for _, f := range flags {
		var env []string
		if f.Env != "" {
			env = []string{f.Env}
		}
		switch v := f.Value.(type) {
		case bool:
			cmd.Flags = append(cmd.Flags, &cli.BoolFlag{Name: f.Name, Usage: f.Usage, EnvVars: env})
		case int:
			cmd.Flags = append(cmd.Flags, &cli.IntFlag{Name: f.Name, Usage: f.Usage, EnvVars: env, Value: v})
		case []string:
			cmd.Flags = append(cmd.Flags, &cli.StringSliceFlag{Name: f.Name, Usage: f.Usage})
		case string:
			cmd.Flags = append(cmd.Flags, &cli.StringFlag{Name: f.Name, Usage: f.Usage, EnvVars: env, Value: v})
		}
	}
	return nil
}

func hasHelp(args []string) bool {
	for _, a := range args {
		if a == "-h" || a == "--help" || a == "-help" {
			return true
		}
	}
	return false
}

// kind finds a driver before the store is open.
func (p *program) kind(name string) (drivers.Kind, error) {
	m := &lifecycle.Manager{Kinds: all.Kinds(), Find: p.findPlugin}
	return m.Kind(name)
}

// driverIn is the value of --driver in args, else the environment's, else the
// default.
func driverIn(args []string) string {
	for i, a := range args {
		if a == "--" {
			break
		}
		name, value, has := strings.Cut(strings.TrimLeft(a, "-"), "=")
		if !strings.HasPrefix(a, "-") || name != "driver" && name != "d" {
			continue
		}
		if has {
			return value
		}
		if i+1 < len(args) {
			return args[i+1]
		}
	}
	if v := os.Getenv(driverVar); v != "" {
		return v
	}
	return all.Default()
}

func (p *program) create(c *cli.Context) error {
	kind, err := p.m.Kind(c.String("driver"))
	if err != nil {
		return err
	}
	if c.NArg() > 1 && p.name == "docker-machine" {
		return fmt.Errorf("Invalid command line. Found extra arguments %v", c.Args().Slice()[1:]) //nolint:staticcheck // docker-machine's words
	}
	if c.NArg() == 0 {
		_ = cli.ShowCommandHelp(parent(c), "create")
		return errors.New("Error: No machine name specified") //nolint:staticcheck // docker-machine's words
	}
	name := c.Args().First()
	if d := c.String("swarm-discovery"); d != "" && !strings.Contains(d, "://") {
		return fmt.Errorf("Error parsing swarm discovery: %q has no ://", d) //nolint:staticcheck // docker-machine's words
	}
	spec := lifecycle.Create{
		Name: name, Driver: kind.Name, Options: options(c, kind), Engine: engineOptions(c), Swarm: swarmOptions(c),
		SANs: list(c, "tls-san"), Resume: c.Bool("resume"), Context: c.Bool("context"), Hostname: c.String("hostname-override"),
	}
	if file := c.String("custom-install-script"); file != "" {
		if spec.Script, err = lifecycle.ReadScript(file); err != nil {
			return err
		}
	}
	if c.IsSet("count") || c.NArg() > 1 {
		return p.createMany(c, spec)
	}
	if err := p.m.Create(c.Context, spec); err != nil {
		return err
	}
	p.say("To see how to connect your Docker Client to the Docker Engine running on this virtual machine, run: %s env %s", p.argv[0], name)
	return nil
}

// createMany makes all machines that the line names at once, count of each if
// that is given, and ends with a summary.
func (p *program) createMany(c *cli.Context, spec lifecycle.Create) error {
	names, err := manyNames(c)
	if err != nil {
		return err
	}
	for _, n := range names {
		if !drivers.ValidName(n) {
			return fmt.Errorf("%s: %w", n, lifecycle.ErrNameInvalid)
		}
		if p.m.Store.Exists(n) && !spec.Resume {
			return fmt.Errorf("Docker machine %q already exists", n) //nolint:staticcheck // docker-machine's words
		}
	}
	specs := map[string]lifecycle.Create{}
	for i, n := range names {
		one := spec
		one.Name = n
		one.Options = drivers.Options{}
		one.Hostname = strings.ReplaceAll(spec.Hostname, "{n}", strconv.Itoa(i+1))
		for k, v := range spec.Options {
			if s, ok := v.(string); ok {
				v = strings.ReplaceAll(s, "{n}", strconv.Itoa(i+1))
			}
			one.Options[k] = v
		}
		specs[n] = one
	}
	start := time.Now()
	var mu sync.Mutex
	var made, failed []string
	err = lifecycle.Each(c.Context, names, 16, func(ctx context.Context, name string) error {
		err := p.m.Named(name).Create(ctx, specs[name])
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			failed = append(failed, name)
			return fmt.Errorf("%s: %w", name, err)
		}
		made = append(made, name)
		return nil
	})
	p.summary(time.Since(start), made, failed)
	return err
}

func (p *program) summary(took time.Duration, made, failed []string) {
	natural := func(list []string) string {
		sort.Slice(list, func(i, j int) bool { return naturalLess(list[i], list[j]) })
		return strings.Join(list, " ")
	}
	if len(made) > 0 {
		p.say("%d created in %v: %s", len(made), took.Round(100*time.Millisecond), natural(made))
	}
	if len(failed) > 0 {
		p.say("%d failed: %s (`%s create --resume NAME` goes on, `%s rm NAME` cleans up)", len(failed), natural(failed), p.name, p.name)
	}
}

// manyNames are the names on the line, numbered when there is a count.
func manyNames(c *cli.Context) ([]string, error) {
	var names []string
	seen := map[string]bool{}
	count := c.Int("count")
	if c.IsSet("count") && (count < 1 || count > 1000) {
		return nil, fmt.Errorf("--count %d: must be 1 to 1000", count)
	}
	for _, n := range c.Args().Slice() {
		if seen[n] {
			return nil, fmt.Errorf("machine %q is named twice", n)
		}
		seen[n] = true
		if count == 0 {
			names = append(names, n)
		}
		for i := 1; i <= count; i++ {
			names = append(names, fmt.Sprintf("%s-%d", n, i))
		}
	}
	return names, nil
}

// options are the driver's flags and the shared ones.
func options(c *cli.Context, kind drivers.Kind) drivers.Options {
	o := drivers.Options{}
	for _, f := range sharedFlags() {
		n := f.Names()[0]
		switch f.(type) {
		case *cli.BoolFlag:
			o[n] = c.Bool(n)
		case *cli.StringFlag:
			o[n] = c.String(n)
		case *cli.StringSliceFlag:
			o[n] = c.StringSlice(n)
		}
	}
	for _, f := range kind.Flags {
		switch v := f.Value.(type) {
		case bool:
			o[f.Name] = c.Bool(f.Name)
		case int:
			o[f.Name] = c.Int(f.Name)
		case string:
			o[f.Name] = c.String(f.Name)
		case []string:
			o[f.Name] = v
			if c.IsSet(f.Name) {
				o[f.Name] = c.StringSlice(f.Name)
			}
		}
	}
	return o
}

func engineOptions(c *cli.Context) store.EngineOptions {
	mirrors := list(c, "engine-registry-mirror")
	if v := os.Getenv("ENGINE_REGISTRY_MIRROR"); v != "" && len(mirrors) == 0 {
		mirrors = strings.Split(v, ",")
	}
	return store.EngineOptions{
		ArbitraryFlags: list(c, "engine-opt"), Env: list(c, "engine-env"),
		InsecureRegistry: list(c, "engine-insecure-registry"), Labels: list(c, "engine-label"),
		RegistryMirror: mirrors, StorageDriver: c.String("engine-storage-driver"), TlsVerify: true,
		InstallURL: c.String("engine-install-url"),
	}
}

func swarmOptions(c *cli.Context) store.SwarmOptions {
	return store.SwarmOptions{
		IsSwarm: c.Bool("swarm") || c.Bool("swarm-master"), Image: c.String("swarm-image"), Agent: c.Bool("swarm"),
		Master: c.Bool("swarm-master"), Discovery: c.String("swarm-discovery"), Address: c.String("swarm-addr"),
		Host: c.String("swarm-host"), Strategy: c.String("swarm-strategy"), ArbitraryFlags: list(c, "swarm-opt"),
		ArbitraryJoinFlags: list(c, "swarm-join-opt"), IsExperimental: c.Bool("swarm-experimental"),
	}
}

// list is never nil: docker-machine writes [] and not null.
func list(c *cli.Context, name string) []string { return append([]string{}, c.StringSlice(name)...) }
