package plugin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/rpc"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"machine/drivers"
)

const (
	startLimit = 10 * time.Second
	beat       = 5 * time.Second
	callLimit  = 30 * time.Second // of calls that only ask
)

// Find looks for the program of a driver on the PATH. As with Rancher, the name
// may be that of the program with its whole path.
func Find(name string) (path string, ok bool) {
	if filepath.IsAbs(name) {
		path, err := exec.LookPath(name)
		return path, err == nil && Short(name) != name
	}
	if !drivers.ValidName(strings.ReplaceAll(name, "_", "-")) {
		return "", false
	}
	path, err := exec.LookPath(prefix + name)
	return path, err == nil
}

// Short returns the driver's name of one that may be a path.
func Short(name string) string {
	if filepath.IsAbs(name) {
		if short, ok := Name(strings.TrimSuffix(filepath.Base(name), ".exe")); ok && short != "" {
			return short
		}
	}
	return name
}

// Kind describes the driver in the program at path, without its flags.
func Kind(name, path string) drivers.Kind {
	return drivers.Kind{Name: name, New: func(env drivers.Env) drivers.Driver {
		return &Driver{name: name, path: path, env: env}
	}}
}

// Flags starts the program to ask for its flags.
func Flags(ctx context.Context, name, path string, log *slog.Logger) ([]drivers.Flag, error) {
	d := &Driver{name: name, path: path, env: drivers.Env{Machine: "flag-lookup", Log: log, Say: func(string, ...any) {}}}
	defer func() { _ = d.Close() }()
	var flags []any
	if err := d.call(ctx, callLimit, "GetCreateFlags", struct{}{}, &flags); err != nil {
		return nil, err
	}
	return fromWire(flags), nil
}

// Driver is a machine whose provider is another program. The program is
// started at the first call that needs it.
type Driver struct {
	name, path string
	env        drivers.Env

	mu     sync.Mutex
	raw    json.RawMessage // the configuration, while the program does not run
	run    *process
	failed error
}

// A process is the running program.
type process struct {
	cmd     *exec.Cmd
	client  *rpc.Client
	service string
	stop    chan struct{}
	wg      sync.WaitGroup
}

// UnmarshalJSON keeps the configuration for the program.
func (d *Driver) UnmarshalJSON(data []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.raw = append(json.RawMessage(nil), data...)
	return nil
}

// MarshalJSON asks the program for its configuration if it runs.
func (d *Driver) MarshalJSON() ([]byte, error) {
	d.mu.Lock()
	run, raw := d.run, d.raw
	d.mu.Unlock()
	if run == nil {
		if raw == nil {
			return []byte("{}"), nil
		}
		return raw, nil
	}
	var out []byte
	if err := d.call(context.Background(), callLimit, "GetConfigRaw", struct{}{}, &out); err != nil {
		return nil, err
	}
	return out, nil
}

// Configure hands the values of the flags over.
func (d *Driver) Configure(o drivers.Options) error {
	values := map[string]any{}
	for k, v := range o {
		values[k] = v
	}
	var arg any = &RPCFlags{Values: values}
	return d.call(context.Background(), callLimit, "SetConfigFromFlags", &arg, &struct{}{})
}

// PreCreateCheck asks the program.
func (d *Driver) PreCreateCheck(ctx context.Context) error { return d.do(ctx, "PreCreateCheck") }

// Create asks the program; what it has learnt is saved also if it fails.
func (d *Driver) Create(ctx context.Context) error { return d.do(ctx, "Create") }

// Remove asks the program.
func (d *Driver) Remove(ctx context.Context) error { return d.do(ctx, "Remove") }

// Start asks the program.
func (d *Driver) Start(ctx context.Context) error { return d.do(ctx, "Start") }

// Stop asks the program.
func (d *Driver) Stop(ctx context.Context) error { return d.do(ctx, "Stop") }

// Kill asks the program.
func (d *Driver) Kill(ctx context.Context) error { return d.do(ctx, "Kill") }

// Restart asks the program.
func (d *Driver) Restart(ctx context.Context) error { return d.do(ctx, "Restart") }

func (d *Driver) do(ctx context.Context, method string) error {
	return d.call(ctx, 0, method, struct{}{}, &struct{}{})
}

// State asks the program.
func (d *Driver) State(ctx context.Context) (drivers.State, error) {
	var st int
	err := d.call(ctx, callLimit, "GetState", struct{}{}, &st)
	return drivers.State(st), err
}

// Address asks the program for its parts.
func (d *Driver) Address(ctx context.Context) (drivers.Address, error) {
	var a drivers.Address
	ask := func(method string, reply any) error {
		return d.call(ctx, callLimit, method, struct{}{}, reply)
	}
	err := errors.Join(ask("GetSSHUsername", &a.SSH.User), ask("GetSSHKeyPath", &a.SSH.Key))
	if err != nil {
		return a, err
	}
	if err := ask("GetIP", &a.IP); err != nil {
		return a, notRunning(err)
	}
	if err := errors.Join(ask("GetSSHHostname", &a.SSH.Host), ask("GetSSHPort", &a.SSH.Port)); err != nil {
		return a, notRunning(err)
	}
	if err := ask("GetURL", &a.URL); err != nil {
		return a, notRunning(err)
	}
	if a.URL == "" {
		return a, drivers.ErrNotRunning
	}
	if u, err := url.Parse(a.URL); err == nil && a.SSH.Host == "" {
		a.SSH.Host = u.Hostname()
	}
	return a, nil
}

// notRunning finds our error again behind its text.
func notRunning(err error) error {
	if strings.Contains(err.Error(), drivers.ErrNotRunning.Error()) {
		return drivers.ErrNotRunning
	}
	return err
}

// call calls a method, starting the program if need be. limit 0 is ctx's.
func (d *Driver) call(ctx context.Context, limit time.Duration, method string, arg, reply any) error {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	run, err := d.start(ctx)
	if err != nil {
		return err
	}
	return run.call(ctx, method, arg, reply)
}

func (r *process) call(ctx context.Context, method string, arg, reply any) error {
	c := r.client.Go(r.service+"."+method, arg, reply, make(chan *rpc.Call, 1))
	select {
	case <-c.Done:
		return c.Error
	case <-ctx.Done():
		return fmt.Errorf("driver plugin: %s: %w", method, ctx.Err())
	}
}

// start runs the program, once.
func (d *Driver) start(ctx context.Context) (*process, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.run != nil || d.failed != nil {
		return d.run, d.failed
	}
	register()
	r, err := d.launch(ctx)
	if err != nil {
		d.failed = fmt.Errorf("driver plugin %s: %w", d.path, err)
		return nil, d.failed
	}
	if err := d.greet(ctx, r); err != nil {
		r.close()
		d.failed = fmt.Errorf("driver plugin %s: %w", d.path, err)
		return nil, d.failed
	}
	d.run = r
	return r, nil
}

func (d *Driver) launch(ctx context.Context) (*process, error) {
	cmd := exec.Command(d.path)
	cmd.Env = append(os.Environ(), tokenVar+"="+tokenValue, nameVar+"="+Short(d.name))
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r := &process{cmd: cmd, stop: make(chan struct{})}
	first := make(chan string, 1)
	r.wg.Go(func() { d.relay(stdout, first) })
	r.wg.Go(func() {
		sc := bufio.NewScanner(stderr)
		for sc.Scan() {
			d.env.Log.Debug(sc.Text(), "machine", d.env.Machine)
		}
	})
	var addr string
	select {
	case addr = <-first:
	case <-time.After(startLimit):
	case <-ctx.Done():
	}
	if addr == "" {
		r.close()
		return nil, errors.New("Failed to dial the plugin server in 10s") //nolint:staticcheck // docker-machine's words
	}
	if r.client, err = dialHTTP(ctx, addr); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

// relay takes the first line for the address and shows the others.
func (d *Driver) relay(out io.Reader, first chan<- string) {
	sc := bufio.NewScanner(out)
	told := false
	for sc.Scan() {
		if !told {
			told = true
			first <- strings.TrimSpace(sc.Text())
			continue
		}
		d.env.Say("%s", sc.Text())
	}
	if !told {
		first <- ""
	}
}

// dialHTTP is rpc.DialHTTP with a limit; only loopback is dialled.
func dialHTTP(ctx context.Context, addr string) (*rpc.Client, error) {
	host, _, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("it says that it listens on %q, which is not this computer's", addr)
	}
	conn, err := (&net.Dialer{Timeout: startLimit}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(startLimit))
	if _, err := io.WriteString(conn, "CONNECT "+rpc.DefaultRPCPath+" HTTP/1.0\n\n"); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect})
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("it answers %s", resp.Status), conn.Close())
	}
	_ = conn.SetDeadline(time.Time{})
	return rpc.NewClient(conn), nil
}

// greet checks the version, hands the configuration over, and starts the
// heartbeat without which the program ends itself.
func (d *Driver) greet(ctx context.Context, r *process) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	var version int
	r.service = service
	if err := r.call(ctx, "GetVersion", struct{}{}, &version); err != nil {
		r.service = legacyService
		if err := r.call(ctx, "GetVersion", struct{}{}, &version); err != nil {
			return err
		}
	}
	if version != apiVersion {
		return fmt.Errorf("Driver binary uses an incompatible API version (%d)", version) //nolint:staticcheck // docker-machine's words
	}
	raw := []byte(d.raw)
	if len(raw) == 0 {
		var err error
		raw, err = json.Marshal(drivers.Base{MachineName: d.env.Machine, StorePath: d.env.Store})
		if err != nil {
			return err
		}
	}
	if err := r.call(ctx, "SetConfigRaw", raw, &struct{}{}); err != nil {
		return err
	}
	var name string
	if err := r.call(ctx, "GetMachineName", struct{}{}, &name); err != nil {
		return err
	}
	r.wg.Go(func() {
		for {
			select {
			case <-r.stop:
				return
			case <-time.After(beat):
				r.client.Go(r.service+".Heartbeat", struct{}{}, &struct{}{}, nil)
			}
		}
	})
	return nil
}

// close ends the program: asked first, killed if it stays.
func (r *process) close() {
	close(r.stop)
	if r.client != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = r.call(ctx, "Close", struct{}{}, &struct{}{})
		cancel()
		_ = r.client.Close()
	}
	kill := time.AfterFunc(time.Second, func() { _ = r.cmd.Process.Kill() })
	if r.client == nil {
		_ = r.cmd.Process.Kill()
	}
	r.wg.Wait()
	_ = r.cmd.Wait()
	kill.Stop()
}

// Close ends the program. Safe to repeat.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.run != nil {
		d.run.close()
		d.run, d.failed = nil, errors.New("driver plugin is closed")
	}
	return nil
}
