package provision

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"machine/provision/ssh"
	"machine/scripts"
)

// Newer says what to do with a host whose agent is newer than this program's.
type Newer int

// The ways.
const (
	KeepNewer   Newer = iota // leave that agent, do the rest
	RefuseNewer              // an error
	Downgrade                // put ours there
)

// ErrNewer is under the refusal to put an older agent on a host.
var ErrNewer = errors.New("the host's agent is newer than this program's")

// age finds out whether the host's agent is newer than ours, if it is another.
func (p *Provisioner) age(ctx context.Context, cl *ssh.Client, f facts, agent func() (Unpacked, error)) error {
	if p.CertsOnly || p.Newer == Downgrade || f["sum:"+agentBin] == "" {
		return nil
	}
	if a, err := agent(); err == nil && f["sum:"+agentBin] == a.Sum {
		return nil // the same one: no need to ask it
	}
	ours := p.Version
	if path := os.Getenv(AgentVar); path != "" {
		ours = ""
		if runtime.GOOS == "linux" {
			out, err := exec.CommandContext(ctx, path, "version", "--json").Output()
			if err == nil {
				ours = versionIn(string(out))
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	out, err := cl.Output(ctx, agentBin+" version --json", nil)
	if err != nil {
		return nil // it does not run: any other is better
	}
	theirs := versionIn(out)
	if !less(ours, theirs) {
		return nil
	}
	if p.Newer == RefuseNewer {
		return fmt.Errorf("%w: it is %s, ours is %s; --downgrade puts ours there", ErrNewer, theirs, ours)
	}
	f["newer"] = yes(true)
	p.Say("The host's agent is %s, newer than ours (%s): it stays.", theirs, ours)
	return nil
}

func versionIn(text string) string {
	var v struct{ Version string }
	_ = json.Unmarshal([]byte(text), &v)
	return v.Version
}

// less compares versions a.b.c; what is none is neither less nor more.
func less(a, b string) bool {
	x, ok1 := numbers(a)
	y, ok2 := numbers(b)
	if !ok1 || !ok2 {
		return false
	}
	for i := range x {
		if x[i] != y[i] {
			return x[i] < y[i]
		}
	}
	return false
}

func numbers(v string) (n [3]int, ok bool) {
	core, _, _ := strings.Cut(strings.TrimPrefix(v, "v"), "-")
	parts := strings.Split(core, ".")
	if len(parts) != 3 {
		return n, false
	}
	for i, s := range parts {
		var err error
		if n[i], err = strconv.Atoi(s); err != nil {
			return n, false
		}
	}
	return n, true
}

// rollBack puts the agent that ran before in its place again, and says how
// that went. The files of its service stay: they are the same for all agents.
func (p *Provisioner) rollBack(ctx context.Context, cl *ssh.Client, t Target, f facts, cause error) error {
	p.Say("The new agent does not answer: going back to the old one...")
	put := fmt.Sprintf("[ -e %[1]s.machine-old ] || exit 73\nmv -f %[1]s.machine-old %[1]s\n", agentBin)
	vars := map[string]string{"INIT": f["init"], "AGENT": agentBin, "SHIM": yes(false), "RESTART": yes(true), "RELOAD": yes(false)}
	rctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	_, err := cl.Output(rctx, f.root()+"/bin/sh -s", strings.NewReader(put+installText(vars, nil, scripts.Install)))
	if err == nil {
		var version string
		version, err = WaitEngine(ctx, t.Endpoint, t.TLS, t.dial(cl))
		if err == nil {
			return fmt.Errorf("the new agent did not answer, %s runs again: %w", version, cause)
		}
	}
	return fmt.Errorf("%w; and the old agent does not come back: %w", cause, err)
}
