package agent

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"

	"machine/agent/registry"
)

// Config is how an agent is set up: dockerd's flags and daemon.json keys.
type Config struct {
	Hosts                     []string
	TLS, TLSVerify            bool
	CACert, Cert, Key         string
	DataRoot, ExecRoot        string
	PidFile                   string
	Debug                     bool
	LogLevel, LogFormat       string
	Labels                    []string
	StorageDriver             string
	LogDriver                 string
	LogOpts                   map[string]string
	CgroupParent              string
	Init, NoNewPrivileges     bool
	ShmSize                   int64
	PidsLimit                 int64
	Ulimits                   []*container.Ulimit
	UsernsRemap               string
	RegistryMirrors           []string
	SeccompProfile            string // as it was given; Seccomp is its content
	Seccomp                   string // empty for the built-in one
	IPCMode, CgroupnsMode     string
	SocketGroup               string
	InsecureRegistries        []string
	MaxDownloads, MaxUploads  int
	Bridge                    BridgeConfig
	DNS                       []netip.Addr
	DNSOpts, DNSSearch        []string
	HTTPProxy, HTTPSProxy     string
	NoProxy                   string
	LiveRestore, Experimental bool
	Validate                  bool // only look at the configuration

	args []string // that it was read from
}

// BridgeConfig is the default bridge and what goes for all bridges.
type BridgeConfig struct {
	Name, BIP, FixedCIDR   string
	FixedCIDRv6            string
	MTU                    int
	ICC, IPMasq, IPForward bool
	IPTables, IPv6         bool
	DefaultIP              string
	Pools                  []PoolConfig
	HostGateway            string
	DefaultGateway         string
}

// PoolConfig is one of default-address-pools.
type PoolConfig struct {
	Base netip.Prefix
	Size int
}

// Defaults is the configuration of an agent that was told nothing.
func Defaults() *Config {
	return &Config{
		DataRoot: "/var/lib/docker", ExecRoot: "/var/run/docker", PidFile: "/var/run/docker.pid", LogLevel: "info",
		LogDriver: "json-file", LogOpts: map[string]string{}, ShmSize: 64 << 20, PidsLimit: 4096, StorageDriver: "overlay2",
		MaxDownloads: 3, MaxUploads: 5, CgroupParent: "/docker",
		Bridge: BridgeConfig{Name: "docker0", MTU: 1500, ICC: true, IPMasq: true, IPForward: true, IPTables: true},
	}
}

// setting is one flag: its daemon.json key, and how a value is taken. A
// repeatable one takes each value of a JSON list.
type setting struct {
	flag, key string
	short     string
	boolean   bool
	usage     string
	set       func(string) error
}

func str(p *string) func(string) error { return func(s string) error { *p = s; return nil } }
func list(p *[]string) func(string) error {
	return func(s string) error { *p = append(*p, s); return nil }
}
func boolean(p *bool) func(string) error {
	return func(s string) (err error) { *p, err = strconv.ParseBool(s); return }
}
func integer(p *int) func(string) error {
	return func(s string) (err error) { *p, err = strconv.Atoi(s); return }
}
func ignore(string) error { return nil }

// settings is the table of all flags and keys.
func (c *Config) settings() []setting {
	b := &c.Bridge
	return append([]setting{
		{flag: "host", key: "hosts", short: "H", usage: "`ADDRESS` to listen on: unix:///path, tcp://ip:port, fd://", set: list(&c.Hosts)},
		{flag: "tls", key: "tls", boolean: true, usage: "use TLS", set: boolean(&c.TLS)},
		{flag: "tlsverify", key: "tlsverify", boolean: true, usage: "use TLS and verify clients", set: boolean(&c.TLSVerify)},
		{flag: "tlscacert", key: "tlscacert", usage: "`FILE` of the CA that signed clients", set: str(&c.CACert)},
		{flag: "tlscert", key: "tlscert", usage: "`FILE` of the server's certificate", set: str(&c.Cert)},
		{flag: "tlskey", key: "tlskey", usage: "`FILE` of the server's key", set: str(&c.Key)},
		{flag: "data-root", key: "data-root", usage: "`DIR` of images, containers and volumes", set: str(&c.DataRoot)},
		{flag: "exec-root", key: "exec-root", usage: "`DIR` of run-time files", set: str(&c.ExecRoot)},
		{flag: "pidfile", key: "pidfile", short: "p", usage: "`FILE` for the process id", set: str(&c.PidFile)},
		{flag: "debug", key: "debug", short: "D", boolean: true, usage: "log more", set: boolean(&c.Debug)},
		{flag: "log-level", key: "log-level", short: "l", usage: "`LEVEL`: debug, info, warn, error, fatal", set: c.setLogLevel},
		{flag: "log-format", key: "log-format", usage: "`FORMAT`: text or json", set: str(&c.LogFormat)},
		{flag: "label", key: "labels", usage: "`KEY=VALUE` of this engine", set: list(&c.Labels)},
		{flag: "storage-driver", key: "storage-driver", short: "s", usage: "`NAME`: overlay2", set: c.setStorage},
		{flag: "log-driver", key: "log-driver", usage: "default `DRIVER` of containers' logs", set: str(&c.LogDriver)},
		{flag: "log-opt", key: "log-opts", usage: "`KEY=VALUE` for the default log driver", set: c.setLogOpt},
		{flag: "cgroup-parent", key: "cgroup-parent", usage: "parent `CGROUP` of containers", set: str(&c.CgroupParent)},
		{flag: "init", key: "init", boolean: true, usage: "run an init in each container", set: boolean(&c.Init)},
		{flag: "no-new-privileges", key: "no-new-privileges", boolean: true, usage: "set no-new-privileges by default", set: boolean(&c.NoNewPrivileges)},
		{flag: "default-shm-size", key: "default-shm-size", usage: "`SIZE` of /dev/shm", set: c.setShm},
		{flag: "default-pids-limit", key: "default-pids-limit", usage: "`N` processes per container; 0 is unlimited", set: func(s string) (err error) { c.PidsLimit, err = strconv.ParseInt(s, 10, 64); return }},
		{flag: "default-ulimit", key: "default-ulimits", usage: "`NAME=SOFT[:HARD]` for containers", set: c.setUlimit},
		{flag: "seccomp-profile", key: "seccomp-profile", usage: "`FILE` of the default seccomp profile; builtin or unconfined", set: c.setSeccomp},
		{flag: "default-ipc-mode", key: "default-ipc-mode", usage: "`MODE` of containers' IPC: private or shareable", set: c.setIPC},
		{flag: "default-cgroupns-mode", key: "default-cgroupns-mode", usage: "`MODE` of containers' cgroup namespace: host or private", set: c.setCgroupns},
		{flag: "group", key: "group", short: "G", usage: "`GROUP` that may use the socket", set: str(&c.SocketGroup)},
		{flag: "userns-remap", key: "userns-remap", usage: "`USER[:GROUP]` whose subordinate ids containers get", set: str(&c.UsernsRemap)},
		{flag: "registry-mirror", key: "registry-mirrors", usage: "`URL` tried before Docker Hub", set: c.addMirror},
		{flag: "insecure-registry", key: "insecure-registries", usage: "`HOST` or CIDR that may be without TLS", set: c.addInsecure},
		{flag: "max-concurrent-downloads", key: "max-concurrent-downloads", usage: "`N` layers at once", set: integer(&c.MaxDownloads)},
		{flag: "max-concurrent-uploads", key: "max-concurrent-uploads", usage: "`N` layers at once", set: integer(&c.MaxUploads)},
		{flag: "bridge", key: "bridge", short: "b", usage: "`NAME` of the default bridge; none for no network", set: str(&b.Name)},
		{flag: "bip", key: "bip", usage: "`CIDR` of the default bridge", set: str(&b.BIP)},
		{flag: "fixed-cidr", key: "fixed-cidr", usage: "`CIDR` to give addresses from", set: str(&b.FixedCIDR)},
		{flag: "fixed-cidr-v6", key: "fixed-cidr-v6", usage: "`CIDR` of IPv6 addresses", set: str(&b.FixedCIDRv6)},
		{flag: "mtu", key: "mtu", usage: "`BYTES` of the default bridge", set: integer(&b.MTU)},
		{flag: "icc", key: "icc", boolean: true, usage: "containers may talk to each other", set: boolean(&b.ICC)},
		{flag: "ip", key: "ip", usage: "default `ADDRESS` of published ports", set: str(&b.DefaultIP)},
		{flag: "ip-masq", key: "ip-masq", boolean: true, usage: "hide containers behind the host", set: boolean(&b.IPMasq)},
		{flag: "ip-forward", key: "ip-forward", boolean: true, usage: "turn forwarding on", set: boolean(&b.IPForward)},
		{flag: "iptables", key: "iptables", boolean: true, usage: "set packet filter rules", set: boolean(&b.IPTables)},
		{flag: "ipv6", key: "ipv6", boolean: true, usage: "IPv6 on the default bridge", set: boolean(&b.IPv6)},
		{flag: "default-gateway", key: "default-gateway", usage: "`ADDRESS` of containers' gateway", set: str(&b.DefaultGateway)},
		{flag: "host-gateway-ip", key: "host-gateway-ip", usage: "`ADDRESS` of host-gateway", set: str(&b.HostGateway)},
		{flag: "default-address-pool", key: "default-address-pools", usage: "`base=CIDR,size=N` for networks", set: c.setPool},
		{flag: "dns", key: "dns", usage: "`ADDRESS` of a resolver", set: c.setDNS},
		{flag: "dns-opt", key: "dns-opts", usage: "`OPTION` of the resolver", set: list(&c.DNSOpts)},
		{flag: "dns-search", key: "dns-search", usage: "`DOMAIN` to search", set: list(&c.DNSSearch)},
		{flag: "http-proxy", key: "http-proxy", usage: "`URL` for registries", set: str(&c.HTTPProxy)},
		{flag: "https-proxy", key: "https-proxy", usage: "`URL` for registries", set: str(&c.HTTPSProxy)},
		{flag: "no-proxy", key: "no-proxy", usage: "`HOSTS` reached directly", set: str(&c.NoProxy)},
		{flag: "live-restore", key: "live-restore", boolean: true, usage: "accepted: containers always outlive the agent", set: boolean(&c.LiveRestore)},
		{flag: "experimental", key: "experimental", boolean: true, usage: "accepted", set: boolean(&c.Experimental)},
		{flag: "validate", key: "validate", boolean: true, usage: "check the configuration and end", set: boolean(&c.Validate)},
	}, accepted()...)
}

// accepted are flags of dockerd that mean nothing here but do no harm.
func accepted() []setting {
	var out []setting
	for _, f := range []string{"containerd", "containerd-namespace", "containerd-plugins-namespace", "default-runtime", "exec-opt", "storage-opt", "userland-proxy-path", "shutdown-timeout", "oom-score-adjust", "metrics-addr", "network-control-plane-mtu", "max-download-attempts", "add-runtime", "init-path", "registry-token", "feature", "default-network-opt", "firewall-backend"} {
		key := f
		if p := map[string]string{"exec-opt": "exec-opts", "storage-opt": "storage-opts", "add-runtime": "runtimes", "feature": "features", "default-network-opt": "default-network-opts"}[f]; p != "" {
			key = p
		}
		out = append(out, setting{flag: f, key: key, usage: "accepted for compatibility", set: ignore})
	}
	for _, f := range []string{"userland-proxy", "ip6tables", "selinux-enabled", "raw-logs", "rootless", "allow-nondistributable-artifacts", "ip-forward-no-drop", "cri-containerd", "allow-direct-routing", "bridge-accept-fwmark"} {
		out = append(out, setting{flag: f, key: f, boolean: true, usage: "accepted for compatibility", set: ignore})
	}
	return out
}

func (c *Config) setLogLevel(s string) error {
	if !slices.Contains([]string{"debug", "info", "warn", "error", "fatal"}, s) {
		return fmt.Errorf("unknown level %q", s)
	}
	c.LogLevel = s
	return nil
}

func (c *Config) setStorage(s string) error {
	if s != "" && s != "overlay2" && s != "overlay" {
		return fmt.Errorf("storage driver %q is not supported: this engine has overlay2", s)
	}
	return nil
}

func (c *Config) setLogOpt(s string) error {
	k, v, ok := strings.Cut(s, "=")
	if !ok {
		return fmt.Errorf("want KEY=VALUE, got %q", s)
	}
	c.LogOpts[k] = v
	return nil
}

// addMirror takes a mirror as dockerd shows it, with one slash at its end.
func (c *Config) addMirror(s string) error {
	c.RegistryMirrors = append(c.RegistryMirrors, strings.TrimRight(s, "/")+"/")
	return nil
}

// addInsecure takes a registry, also as the URL that many write, as dockerd does.
func (c *Config) addInsecure(s string) error {
	c.InsecureRegistries = append(c.InsecureRegistries, strings.TrimPrefix(strings.TrimPrefix(s, "http://"), "https://"))
	return nil
}

// setSeccomp reads the profile that containers get unless they bring one.
func (c *Config) setSeccomp(s string) error {
	c.SeccompProfile, c.Seccomp = s, ""
	switch s {
	case "", "builtin":
		return nil
	case "unconfined":
		c.Seccomp = s
		return nil
	}
	b, err := os.ReadFile(s)
	if err != nil {
		return fmt.Errorf("seccomp profile: %w", err)
	}
	if !json.Valid(b) {
		return fmt.Errorf("seccomp profile %s is not JSON", s)
	}
	c.Seccomp = string(b)
	return nil
}

func (c *Config) setIPC(s string) error {
	if s != "private" && s != "shareable" {
		return fmt.Errorf("IPC setting %q: want private or shareable", s)
	}
	c.IPCMode = s
	return nil
}

func (c *Config) setCgroupns(s string) error {
	if s != "private" && s != "host" {
		return fmt.Errorf("cgroup namespace mode %q: want private or host", s)
	}
	c.CgroupnsMode = s
	return nil
}

func (c *Config) setShm(s string) error {
	n, err := parseBytes(s)
	c.ShmSize = n
	return err
}

// parseBytes reads 64M, 1g or a number.
func parseBytes(s string) (int64, error) {
	t := strings.TrimSuffix(strings.ToLower(s), "b")
	mul := int64(1)
	if i := len(t) - 1; i > 0 {
		if m, ok := map[byte]int64{'k': 1 << 10, 'm': 1 << 20, 'g': 1 << 30}[t[i]]; ok {
			mul, t = m, t[:i]
		}
	}
	n, err := strconv.ParseInt(t, 10, 64)
	if err != nil || n < 0 || n > 1<<62/mul {
		return 0, fmt.Errorf("%q is no size", s)
	}
	return n * mul, nil
}

func (c *Config) setUlimit(s string) error {
	name, v, ok := strings.Cut(s, "=")
	if !ok {
		return fmt.Errorf("want NAME=SOFT[:HARD], got %q", s)
	}
	soft, hard, two := strings.Cut(v, ":")
	if !two {
		hard = soft
	}
	a, err := strconv.ParseInt(soft, 10, 64)
	if err != nil {
		return err
	}
	b, err := strconv.ParseInt(hard, 10, 64)
	if err != nil {
		return err
	}
	c.Ulimits = append(c.Ulimits, &container.Ulimit{Name: name, Soft: a, Hard: b})
	return nil
}

func (c *Config) setPool(s string) error {
	var p PoolConfig
	for kv := range strings.SplitSeq(s, ",") {
		k, v, _ := strings.Cut(kv, "=")
		var err error
		switch k {
		case "base":
			p.Base, err = netip.ParsePrefix(v)
		case "size":
			p.Size, err = strconv.Atoi(v)
		default:
			err = fmt.Errorf("unknown field %q", k)
		}
		if err != nil {
			return err
		}
	}
	if !p.Base.IsValid() || p.Size < p.Base.Bits() || p.Size > p.Base.Addr().BitLen() {
		return fmt.Errorf("pool %q: size must lie between the base's bits and the address's", s)
	}
	c.Bridge.Pools = append(c.Bridge.Pools, p)
	return nil
}

func (c *Config) setDNS(s string) error {
	a, err := netip.ParseAddr(s)
	if err == nil {
		c.DNS = append(c.DNS, a)
	}
	return err
}

// ParseArgs reads dockerd's flags and the configuration file that they name
// (by default /etc/docker/daemon.json, which may be absent). Unknown flags
// and keys are errors, and so are a setting given in both places and one that
// the engine could not start with. Help goes to stderr.
func ParseArgs(args []string, stderr io.Writer) (*Config, error) {
	c := Defaults()
	c.args = args
	fset := flag.NewFlagSet("agent", flag.ContinueOnError)
	fset.SetOutput(io.Discard) // a mistake is one line, not a page of all flags
	file := fset.String("config-file", "/etc/docker/daemon.json", "`FILE` with the daemon's settings")
	given := map[string]bool{}
	for _, s := range c.settings() {
		v := flagValue{s: s, given: given}
		fset.Var(v, s.flag, s.usage)
		if s.short != "" {
			fset.Var(v, s.short, "short for --"+s.flag)
		}
	}
	err := fset.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fset.SetOutput(stderr)
		fset.PrintDefaults()
	}
	if err != nil {
		return nil, err
	}
	if fset.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", fset.Arg(0))
	}
	named := false
	fset.Visit(func(f *flag.Flag) { named = named || f.Name == "config-file" })
	if err := c.load(*file, named, given); err != nil {
		return nil, fmt.Errorf("unable to configure the agent with file %s: %w", *file, err)
	}
	return c, c.check()
}

type flagValue struct {
	s     setting
	given map[string]bool
}

func (v flagValue) String() string   { return "" }
func (v flagValue) IsBoolFlag() bool { return v.s.boolean }
func (v flagValue) Set(s string) error {
	if v.given != nil {
		v.given[v.s.key] = true
	}
	return v.s.set(s)
}

// load reads daemon.json.
func (c *Config) load(file string, must bool, given map[string]bool) error {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) && !must {
		return nil
	}
	if err != nil {
		return err
	}
	var raw map[string]any
	if len(strings.TrimSpace(string(b))) == 0 {
		return nil
	}
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	table := map[string]setting{}
	for _, s := range c.settings() {
		table[s.key] = s
	}
	if p, ok := raw["proxies"].(map[string]any); ok { // as dockerd has them in the file
		delete(raw, "proxies")
		for k, v := range p {
			if !slices.Contains([]string{"http-proxy", "https-proxy", "no-proxy"}, k) {
				return fmt.Errorf("the following directives don't match any configuration option: proxies.%s", k)
			}
			raw[k] = v
		}
	}
	for _, k := range slices.Sorted(maps.Keys(raw)) {
		s, ok := table[k]
		if !ok {
			return fmt.Errorf("the following directives don't match any configuration option: %s", k)
		}
		if given[k] {
			return fmt.Errorf("the following directives are specified both as a flag and in the configuration file: %s", k)
		}
		if err := apply(s, raw[k]); err != nil {
			return fmt.Errorf("%s: %w", k, err)
		}
	}
	return nil
}

// apply gives a JSON value to a setting, element by element.
func apply(s setting, v any) error {
	switch v := v.(type) {
	case nil:
		return nil
	case bool:
		return s.set(strconv.FormatBool(v))
	case string:
		return s.set(v)
	case float64:
		return s.set(strconv.FormatFloat(v, 'f', -1, 64))
	case []any:
		for _, e := range v {
			if m, ok := e.(map[string]any); ok { // default-address-pools
				e = fmt.Sprintf("base=%v,size=%v", m["base"], m["size"])
			}
			if err := apply(s, e); err != nil {
				return err
			}
		}
		return nil
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			e := v[k]
			if m, ok := e.(map[string]any); ok && s.key == "default-ulimits" {
				e = fmt.Sprintf("%.0f:%.0f", m["Soft"], m["Hard"])
			}
			if err := s.set(fmt.Sprintf("%s=%v", k, e)); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("unexpected value %v", v)
}

// check refuses what cannot work.
func (c *Config) check() error {
	if len(c.Hosts) == 0 {
		c.Hosts = []string{"unix:///var/run/docker.sock"}
	}
	for _, l := range c.Labels {
		if !strings.Contains(l, "=") {
			return fmt.Errorf("bad attribute format: %s: want KEY=VALUE", l)
		}
	}
	if c.TLSVerify {
		c.TLS = true
		if c.CACert == "" {
			return errors.New("--tlsverify needs --tlscacert")
		}
	}
	if c.TLS && (c.Cert == "" || c.Key == "") {
		return errors.New("--tls needs --tlscert and --tlskey")
	}
	return registry.Check(c.RegistryMirrors, c.InsecureRegistries)
}
