// Package provision turns a bare host into one that runs the agent, and an old
// agent into a new one, over one SSH connection. Each run first looks what is
// there, and does only what is missing: on a host that is up to date it does
// nothing.
package provision

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"machine/provision/ssh"
	"machine/scripts"
)

const (
	engineTimeout = 30 * time.Second
	uploadTries   = 4
	// An agent that took another's place has less time: the old one is there.
	replacedTimeout = 15 * time.Second
)

// A Target is one host, and what it should be.
type Target struct {
	Machine string
	Driver  string
	SSH     ssh.Config
	CA      []byte // PEM
	Cert    []byte // the server's, PEM
	Key     []byte // the server's, PEM
	Engine  Engine
	// Endpoint is where the engine should answer, host:port, and TLS how to
	// ask it.
	Endpoint string
	TLS      *tls.Config
	// Script is run on the host as root before the agent comes, once. nil: none.
	Script []byte
	// Hostname is what the host is to be called; empty: as it is.
	Hostname string
	// Timeout bounds the wait for SSH; 3 minutes when 0.
	Timeout time.Duration
}

// A Result tells what was done.
type Result struct {
	Done    []string // one word for each change; empty: the host was up to date
	Version string   // the engine's
}

// A Provisioner provisions hosts. Its method is for use by many goroutines.
type Provisioner struct {
	Log *slog.Logger
	// Say tells the user one line of progress.
	Say func(format string, args ...any)
	// CertsOnly leaves the agent's binary as it is.
	CertsOnly bool
	// NeedAgent refuses a host that has no agent yet.
	NeedAgent bool
	// Version is that of the agent inside this program, "" when not known.
	Version string
	// Agents are unpacked once for all hosts; nil unpacks for each.
	Agents *Agents
	// Newer says what to do with a host whose agent is newer than ours.
	Newer Newer
}

// ErrNoAgentThere says that another engine may run on the host.
var ErrNoAgentThere = errors.New("the host has no agent: `provision` puts one there")

// Run provisions the host. It is safe to repeat, also after it was cut off
// anywhere; a host whose agent runs keeps its containers.
func (p *Provisioner) Run(ctx context.Context, t Target) (Result, error) {
	if err := t.Engine.check(); err != nil {
		return Result{}, err
	}
	p.Say("Waiting for SSH to be available...")
	cl, err := dial(ctx, t)
	if err != nil {
		return Result{}, err
	}
	defer func() { _ = cl.Close() }()
	f, err := probe(ctx, cl, t.port())
	if err != nil {
		return Result{}, err
	}
	if f["distro"] != "" {
		p.Say("Provisioning with %s on %s...", f["distro"], f["arch"])
	}
	if p.NeedAgent && f["sum:"+agentBin] == "" {
		return Result{}, ErrNoAgentThere
	}
	agent := func() (Unpacked, error) { return p.Agents.get(f.arch()) }
	if err := p.age(ctx, cl, f, agent); err != nil {
		return Result{}, err
	}
	plan, err := p.plan(t, f, agent)
	if err != nil {
		return Result{}, err
	}
	if len(plan.done) > 0 {
		if cl, err = p.apply(ctx, cl, t, f, plan); err != nil {
			return Result{}, err
		}
	}
	p.Say("Checking connection to Docker...")
	replaced := plan.agent != nil && f["sum:"+agentBin] != ""
	wctx, cancel := ctx, func() {}
	if replaced {
		wctx, cancel = context.WithTimeout(ctx, replacedTimeout)
	}
	version, err := WaitEngine(wctx, t.Endpoint, t.TLS, t.dial(cl))
	cancel()
	if err != nil {
		err = p.explain(ctx, cl, f, err)
		if replaced && ctx.Err() == nil {
			err = p.rollBack(ctx, cl, t, f, err)
		}
		return Result{}, err
	}
	if replaced {
		_, _ = cl.Output(ctx, f.root()+"rm -f "+agentBin+".machine-old", nil)
	}
	return Result{Done: plan.done, Version: version}, nil
}

// dial reaches the engine as SSH reaches the host: nil is straight, behind jump
// hosts it is through them.
func (t Target) dial(cl *ssh.Client) Dial {
	if len(t.SSH.Jumps) == 0 {
		return nil
	}
	return cl.DialContext
}

func (t Target) port() int {
	if t.Engine.Port == 0 {
		return 2376
	}
	return t.Engine.Port
}

func dial(ctx context.Context, t Target) (*ssh.Client, error) {
	timeout := t.Timeout
	if timeout == 0 {
		timeout = 3 * time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return ssh.Wait(ctx, t.SSH)
}

func probe(ctx context.Context, cl *ssh.Client, port int) (facts, error) {
	// Login shells may do long things first: some wait a minute for locks.
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	text := fmt.Sprintf("PORT=%d\n%s", port, scripts.Probe)
	out, err := cl.Output(ctx, "/bin/sh -s", strings.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("look at the host: %w", err)
	}
	return parseFacts(out)
}

// A plan is what has to be done.
type plan struct {
	agent    []byte // nil: it is there
	files    []file
	restart  bool
	reload   bool
	custom   bool // run the user's script
	hostname bool
	done     []string
}

func (p *Provisioner) plan(t Target, f facts, ours func() (Unpacked, error)) (plan, error) {
	var pl plan
	var agent Unpacked
	var err error
	if arch := f.arch(); arch != "" && f["os"] == "Linux" && !((p.CertsOnly || f["newer"] == yes(true)) && f["sum:"+agentBin] != "") {
		if agent, err = ours(); err != nil {
			return pl, err
		}
	}
	if err := f.check(t.port(), int64(len(agent.Data))); err != nil {
		return pl, err
	}
	if skew := f.skew(time.Now()); skew < -45*time.Minute || skew > 24*time.Hour {
		return pl, fmt.Errorf("the host's clock is %s off: certificates would not be valid there; set it right first (timedatectl, ntpd)", skew.Round(time.Minute))
	}
	if t.Script != nil && !p.CertsOnly && f["sum:"+customFile] != ssh.Sum(t.Script) {
		pl.custom = true
		pl.done = append(pl.done, "custom install script")
	}
	if t.Hostname != "" && !p.CertsOnly && f["hostname"] != t.Hostname {
		pl.hostname = true
		pl.done = append(pl.done, "hostname")
	}
	if agent.Data != nil && f["sum:"+agentBin] != agent.Sum {
		pl.agent, pl.restart = agent.Data, true
		pl.done = append(pl.done, "agent")
	}
	want := []file{
		{caFile, "644", t.CA, certsFile}, {certFile, "644", t.Cert, certsFile}, {keyFile, "600", t.Key, certsFile},
	}
	want = append(want, serviceFiles(f["init"], t.Engine.args(t.Driver), t.Engine.Env)...)
	for _, w := range want {
		if f["sum:"+w.path] == ssh.Sum(w.data) {
			continue
		}
		pl.files = append(pl.files, w)
		if w.kind == certsFile {
			pl.reload = true
		} else {
			pl.restart = true
		}
	}
	if pl.reload {
		pl.done = append(pl.done, "certificates")
	}
	if len(pl.files) > 0 && pl.restart && pl.agent == nil {
		pl.done = append(pl.done, "service")
	}
	if f["agent_runs"] == "" && len(pl.done) == 0 {
		pl.done = append(pl.done, "start")
	}
	if f["docker"] == "" && len(pl.done) == 0 { // for DOCKER_HOST=ssh://
		pl.done = append(pl.done, "docker command")
	}
	return pl, nil
}

// apply uploads and installs. It may dial again, and returns the connection
// that is in use then.
func (p *Provisioner) apply(ctx context.Context, cl *ssh.Client, t Target, f facts, pl plan) (*ssh.Client, error) {
	vars := map[string]string{"INIT": f["init"], "AGENT": agentBin, "SHIM": yes(f["docker"] == ""),
		"RESTART": yes(pl.restart && f["agent_runs"] != ""), "RELOAD": yes(pl.reload)}
	if pl.restart { // what it could not start with is refused before anything is changed
		vars["ARGS"] = words(t.Engine.args(t.Driver))
	}
	if pl.hostname {
		if err := p.setHostname(ctx, cl, t, f); err != nil {
			return cl, err
		}
	}
	if pl.custom {
		if err := p.runCustom(ctx, cl, t, f); err != nil {
			return cl, err
		}
	}
	if pl.agent != nil {
		tmp := agentTemp
		if f.root() != "" {
			tmp = "/tmp/.machine-agent-" + ssh.Sum(pl.agent)[:16]
		}
		vars["AGENT_TMP"], vars["WANT"] = tmp, ssh.Sum(pl.agent)
		p.Say("Copying agent to the host...")
		var err error
		if cl, err = p.upload(ctx, cl, t, tmp, pl.agent); err != nil {
			return cl, err
		}
	}
	if pl.reload {
		p.Say("Copying certs to the remote machine...")
	}
	if pl.restart || len(pl.files) > 0 {
		p.Say("Setting Docker configuration on the remote daemon...")
	}
	text := installText(vars, pl.files, scripts.Install)
	ctx2, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	out, err := cl.Output(ctx2, f.root()+"/bin/sh -s", strings.NewReader(text))
	if err != nil {
		return cl, fmt.Errorf("install the agent: %w", err)
	}
	if !strings.Contains(out, "installed=yes") {
		return cl, fmt.Errorf("install the agent: the host's shell stopped early: %.300q", out)
	}
	if f["init"] == "none" {
		p.Say("The host has no init system that could start the agent at boot: run `start` or `provision` for it then.")
	}
	return cl, nil
}

// words makes one line for a shell of arguments.
func words(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = ssh.Quote(a)
	}
	return strings.Join(quoted, " ")
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// upload copies the agent, and dials again when the connection breaks: the
// part that has arrived stays.
func (p *Provisioner) upload(ctx context.Context, cl *ssh.Client, t Target, name string, data []byte) (*ssh.Client, error) {
	for try := 1; ; try++ {
		err := cl.Upload(ctx, name, data, 0o700)
		if err == nil {
			return cl, nil
		}
		if try == uploadTries || ctx.Err() != nil || !broken(ctx, cl) {
			if strings.Contains(strings.ToLower(err.Error()), "no space") || strings.Contains(err.Error(), "Failure") {
				_, _ = cl.Output(ctx, "rm -f "+ssh.Quote(name), nil)
				err = fmt.Errorf("%w (is the host's disk full?)", err)
			}
			return cl, err
		}
		p.Log.Debug("connection broke while the agent was copied", "machine", t.Machine, "error", err)
		p.Say("The connection broke, trying again...")
		_ = cl.Close()
		next, err := dial(ctx, t)
		if err != nil {
			return cl, err
		}
		cl = next
	}
}

func broken(ctx context.Context, cl *ssh.Client) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := cl.Output(ctx, "true", nil)
	return err != nil
}

// explain adds to an engine that does not answer what its log says.
func (p *Provisioner) explain(ctx context.Context, cl *ssh.Client, f facts, err error) error {
	cmd := "tail -n 8 " + agentLog
	if f["init"] == "systemd" {
		cmd = "journalctl -u machine-agent -n 8 --no-pager -o cat"
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, logErr := cl.Output(ctx, f.root()+cmd+" 2>/dev/null", nil)
	if logErr != nil || strings.TrimSpace(out) == "" {
		return err
	}
	return fmt.Errorf("%w; the agent's log ends with:\n%s", err, strings.TrimSpace(out))
}

// Dial connects to the engine in another way than straight.
type Dial func(ctx context.Context, network, addr string) (net.Conn, error)

// Version asks an engine at host:port for its version. It needs no API
// version: engines refuse old ones. dial may be nil.
func Version(ctx context.Context, endpoint string, conf *tls.Config, dial Dial) (string, error) {
	tr := &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true, TLSHandshakeTimeout: 10 * time.Second, DialContext: dial}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+endpoint+"/version", nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	var v struct{ Version string }
	body := io.LimitReader(resp.Body, 1<<20)
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(body, 300))
		return "", fmt.Errorf("engine answers %s: %s", resp.Status, text)
	}
	if err := json.NewDecoder(body).Decode(&v); err != nil {
		return "", fmt.Errorf("engine's answer: %w", err)
	}
	return v.Version, nil
}

// WaitEngine waits until the engine answers, and returns its version. A
// certificate that does not fit ends the wait at once, but for the moment that
// an agent needs to read a new one.
func WaitEngine(ctx context.Context, endpoint string, conf *tls.Config, dial Dial) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	start := time.Now()
	pause := 10 * time.Millisecond
	for {
		v, err := Version(ctx, endpoint, conf, dial)
		if err == nil {
			return v, nil
		}
		var bad *tls.CertificateVerificationError
		if errors.As(err, &bad) && time.Since(start) > 5*time.Second {
			return "", fmt.Errorf("the engine at %s shows a wrong certificate: %w", endpoint, err)
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("the engine does not answer at %s: is the port open in the host's firewall? %w", endpoint, err)
		case <-time.After(pause):
		}
		pause = min(pause*3/2, 500*time.Millisecond)
	}
}
