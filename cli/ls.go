package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"
	"sort"
	"strings"
	"sync"
	"text/tabwriter"
	"text/template"
	"time"

	"github.com/urfave/cli/v2"

	"machine/cli/lifecycle"
	"machine/cli/store"
	"machine/drivers"
)

// A row is one machine in a listing; templates of -f see its fields.
type row struct {
	Name          string
	Active        string
	ActiveHost    bool
	ActiveSwarm   bool
	DriverName    string
	State         drivers.State
	URL           string
	SwarmOptions  *store.SwarmOptions
	Swarm         string
	EngineOptions *store.EngineOptions
	Error         string
	DockerVersion string
	ResponseTime  time.Duration
	CertEnds      time.Time // zero when the machine has no certificate of ours

	broken bool
}

func seconds(n int) time.Duration { return time.Duration(n) * time.Second }

const lsText = `Names may hold *, ? and [], in quotes; without any, all machines are listed. Fields of a template are
Name, Active, ActiveHost, ActiveSwarm, DriverName, State, URL, Swarm, SwarmOptions, EngineOptions, DockerVersion,
Error, ResponseTime and CertEnds.`

func (p *program) lsCommand() *cli.Command {
	return &cli.Command{Name: "ls", Usage: "List machines", ArgsUsage: "[NAME...]", Description: lsText,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "Print names only"},
			filterFlag(),
			&cli.IntFlag{Name: "timeout", Aliases: []string{"t"}, Value: 10, Usage: "Seconds to wait for each machine"},
			&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "json, or a Go template for each machine; one that begins with table has a header"},
		},
		Action: p.ls}
}

func (p *program) ls(c *cli.Context) error {
	f, err := parseFilters(c.StringSlice("filter"))
	if err != nil {
		return err
	}
	names, err := p.m.Store.Names()
	if err != nil {
		return err
	}
	if c.NArg() > 0 {
		if names, err = p.match(c.Args().Slice()); err != nil {
			return err
		}
		sort.Strings(names)
	}
	timeout := seconds(c.Int("timeout"))
	if c.Bool("quiet") {
		return p.lsQuiet(c.Context, names, f, timeout)
	}
	rows := p.listRows(c.Context, f.known(p, names), timeout)
	kept := rows[:0]
	for _, r := range rows {
		if r.broken || f.state(r.State) {
			kept = append(kept, r)
		}
	}
	sort.SliceStable(kept, func(i, j int) bool { return naturalLess(kept[i].Name, kept[j].Name) })
	return p.printRows(kept, c.String("format"))
}

// lsQuiet prints names; it asks no machine unless a state is filtered for, and
// reads no record unless anything is.
func (p *program) lsQuiet(ctx context.Context, names []string, f filters, timeout time.Duration) error {
	var out strings.Builder
	if len(f) > 0 {
		names = f.known(p, names)
	}
	var rows map[string]row
	if len(f["state"]) > 0 {
		rows = map[string]row{}
		for _, r := range p.listRows(ctx, names, timeout) {
			rows[r.Name] = r
		}
	}
	for _, n := range names {
		if rows != nil && !f.state(rows[n].State) {
			continue
		}
		if _, err := os.Stat(p.m.Store.Path("machines", n, "config.json")); err != nil {
			continue
		}
		out.WriteString(n + "\n")
	}
	_, err := fmt.Fprint(p.stdout, out.String())
	return err
}

// listRows asks all machines at once, each for at most timeout.
func (p *program) listRows(ctx context.Context, names []string, timeout time.Duration) []row {
	rows := make([]row, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		rec, err := p.m.Store.Load(name)
		if err != nil {
			rows[i] = row{Name: name, DriverName: "not found", State: drivers.Error, Error: oneLine(err), broken: true}
			continue
		}
		wg.Go(func() { rows[i] = p.oneRow(ctx, rec, timeout) })
	}
	wg.Wait()
	p.swarmNames(rows)
	return rows
}

// oneRow answers in time even when the driver does not.
func (p *program) oneRow(ctx context.Context, rec *store.Record, timeout time.Duration) row {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	late := row{Name: rec.Name, DriverName: rec.DriverName, State: drivers.Timeout}
	got := make(chan row, 1)
	start := time.Now()
	go func() { got <- p.askRow(ctx, rec, start) }()
	select {
	case r := <-got:
		if r.State != drivers.Running && ctx.Err() != nil {
			return late
		}
		return r
	case <-ctx.Done():
		select {
		case r := <-got:
			return r
		case <-time.After(50 * time.Millisecond):
			return late
		}
	}
}

func (p *program) askRow(ctx context.Context, rec *store.Record, start time.Time) row {
	r := row{Name: rec.Name, DriverName: rec.DriverName, SwarmOptions: &rec.HostOptions.SwarmOptions,
		EngineOptions: &rec.HostOptions.EngineOptions, Active: "-"}
	mc, err := p.m.Load(rec.Name)
	if err != nil {
		var de *lifecycle.DriverError
		if errors.As(err, &de) {
			r.DriverName = "not-found"
			err = fmt.Errorf("Driver %q not found. Do you have the plugin binary accessible in your PATH?", rec.DriverName) //nolint:staticcheck // docker-machine's words
		}
		return row{Name: rec.Name, DriverName: r.DriverName, State: drivers.Error, Error: oneLine(err), broken: true}
	}
	defer func() { _ = mc.Close() }()
	r.State, err = mc.Driver.State(ctx)
	if err == nil && r.State == drivers.Running {
		if r.URL, err = mc.URL(ctx); err == nil {
			r.DockerVersion = "Unknown"
			v, verr := p.m.Version(ctx, mc)
			if verr == nil {
				r.DockerVersion = "v" + strings.TrimPrefix(v, "v")
			} else {
				r.Error = oneLine(fmt.Errorf("Unable to query docker version: %w", verr)) //nolint:staticcheck // docker-machine's words
			}
		}
	}
	if err != nil && !errors.Is(err, drivers.ErrNotRunning) && err.Error() != drivers.ErrNotRunning.Error() {
		r.Error = oneLine(err)
	}
	if in := p.m.Store.Pending(rec.Name); in != nil && r.Error == "" {
		r.Error = fmt.Sprintf("%s was cut off at step %q", in.Op, in.Step)
	}
	if r.CertEnds, err = p.m.CertEnds(rec.Name); err == nil && r.Error == "" {
		r.Error = soon(r.CertEnds, time.Now())
	}
	r.ResponseTime = time.Since(start)
	p.markActive(&r)
	return r
}

// soon says that a certificate ends within a month, or has ended.
func soon(ends, now time.Time) string {
	days := int(ends.Sub(now).Hours() / 24)
	switch {
	case now.After(ends):
		return "certificate expired on " + ends.Format(time.DateOnly)
	case days <= 30:
		return fmt.Sprintf("certificate ends in %d days", days)
	}
	return ""
}

func (p *program) markActive(r *row) {
	host := os.Getenv("DOCKER_HOST")
	if host == "" || r.State != drivers.Running || r.URL == "" {
		return
	}
	if host == r.URL {
		r.ActiveHost, r.Active = true, "*"
		return
	}
	if r.SwarmOptions.Master {
		u, err1 := url.Parse(r.URL)
		s, err2 := url.Parse(r.SwarmOptions.Host)
		if err1 == nil && err2 == nil {
			u.Host = net.JoinHostPort(u.Hostname(), s.Port())
			if u.String() == host {
				r.ActiveSwarm, r.Active = true, "* (swarm)"
			}
		}
	}
}

func (p *program) swarmNames(rows []row) {
	masters := map[string]string{}
	for _, r := range rows {
		if r.SwarmOptions != nil && r.SwarmOptions.Master {
			masters[r.SwarmOptions.Discovery] = r.Name
		}
	}
	for i, r := range rows {
		if r.SwarmOptions == nil || r.SwarmOptions.Discovery == "" {
			continue
		}
		rows[i].Swarm = masters[r.SwarmOptions.Discovery]
		if r.SwarmOptions.Master {
			rows[i].Swarm = r.Name + " (master)"
		}
	}
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", " ") }

var headers = map[string]string{"Name": "NAME", "Active": "ACTIVE", "ActiveHost": "ACTIVE_HOST", "ActiveSwarm": "ACTIVE_SWARM",
	"DriverName": "DRIVER", "State": "STATE", "URL": "URL", "SwarmOptions": "SWARM_OPTIONS", "Swarm": "SWARM",
	"EngineOptions": "ENGINE_OPTIONS", "Error": "ERRORS", "DockerVersion": "DOCKER", "ResponseTime": "RESPONSE", "CertEnds": "CERT_ENDS"}

// printRows prints the common table without the template engine.
func (p *program) printRows(rows []row, format string) error {
	w := tabwriter.NewWriter(p.stdout, 0, 0, 3, ' ', 0)
	if format == "" {
		fmt.Fprintln(w, "NAME\tACTIVE\tDRIVER\tSTATE\tURL\tSWARM\tDOCKER\tERRORS")
		for _, r := range rows {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, r.Active, r.DriverName, r.State, r.URL, r.Swarm, r.DockerVersion, r.Error)
		}
		return w.Flush()
	}
	if format == "json" {
		return printJSON(p.stdout, jsonRows(rows))
	}
	table := strings.HasPrefix(format, "table")
	format = strings.TrimSpace(strings.TrimPrefix(format, "table"))
	format = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(format)
	t, err := template.New("").Parse(format)
	if err != nil {
		return fmt.Errorf("template parsing error: %w", err)
	}
	if !table {
		for _, r := range rows {
			if err := t.Execute(p.stdout, r); err != nil {
				return err
			}
			fmt.Fprintln(p.stdout)
		}
		return nil
	}
	if err := t.Execute(w, headers); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, r := range rows {
		if err := t.Execute(w, r); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// naturalLess orders m2 before m10, without regard to case.
func naturalLess(a, b string) bool {
	x, y := strings.ToLower(a), strings.ToLower(b)
	for x != "" && y != "" {
		dx, dy := digits(x), digits(y)
		if dx > 0 && dy > 0 {
			nx, ny := strings.TrimLeft(x[:dx], "0"), strings.TrimLeft(y[:dy], "0")
			if len(nx) != len(ny) {
				return len(nx) < len(ny)
			}
			if nx != ny {
				return nx < ny
			}
			x, y = x[dx:], y[dy:]
			continue
		}
		if x[0] != y[0] {
			return x[0] < y[0]
		}
		x, y = x[1:], y[1:]
	}
	if len(x) != len(y) {
		return len(x) < len(y)
	}
	return a < b
}

func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}

// filters are values by key: one of a key's must match, and every key.
type filters map[string][]string

func parseFilters(args []string) (filters, error) {
	f := filters{}
	for _, a := range args {
		k, v, ok := strings.Cut(a, "=")
		if !ok {
			return nil, errors.New("Unsupported filter syntax") //nolint:staticcheck // docker-machine's words
		}
		switch k = strings.ToLower(k); k {
		case "swarm", "driver", "state", "name", "label":
			f[k] = append(f[k], v)
		default:
			return nil, fmt.Errorf("Unsupported filter key '%s'", k) //nolint:staticcheck // docker-machine's words
		}
	}
	return f, nil
}

func (f filters) any(key string, match func(string) bool) bool {
	if len(f[key]) == 0 {
		return true
	}
	for _, v := range f[key] {
		if match(v) {
			return true
		}
	}
	return false
}

func (f filters) state(s drivers.State) bool {
	return f.any("state", func(v string) bool { return strings.EqualFold(v, s.String()) })
}

// known keeps the names whose records match all filters but that for state.
// What cannot be loaded is kept: its owner should see it.
func (f filters) known(p *program, names []string) []string {
	if len(f) == 0 {
		return names
	}
	swarms := map[string]string{}
	recs := map[string]*store.Record{}
	for _, n := range names {
		if rec, err := p.m.Store.Load(n); err == nil {
			recs[n] = rec
			if s := rec.HostOptions.SwarmOptions; s.Master {
				swarms[s.Discovery] = n
			}
		}
	}
	var kept []string
	for _, n := range names {
		rec := recs[n]
		if rec == nil || f.matches(rec, swarms[rec.HostOptions.SwarmOptions.Discovery]) {
			kept = append(kept, n)
		}
	}
	return kept
}

func (f filters) matches(rec *store.Record, swarm string) bool {
	return f.any("driver", func(v string) bool { return strings.EqualFold(v, rec.DriverName) }) &&
		f.any("swarm", func(v string) bool {
			return rec.HostOptions.SwarmOptions.Discovery != "" && strings.EqualFold(v, swarm)
		}) &&
		f.any("name", func(v string) bool { ok, err := regexp.MatchString(v, rec.Name); return err == nil && ok }) &&
		f.any("label", func(v string) bool {
			for _, l := range rec.HostOptions.EngineOptions.Labels {
				if l == v {
					return true
				}
			}
			return false
		})
}
