package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"machine/cli/lifecycle"
)

func (p *program) scpCommand() *cli.Command {
	return &cli.Command{Name: "scp", Usage: "Copy files between machines and this computer", ArgsUsage: "SOURCE TARGET",
		Description: "SOURCE and TARGET are [[USER@]MACHINE:]PATH. Modes and times are kept, links are followed.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "recursive", Aliases: []string{"r"}, Usage: "Also folders, with all that is in them"},
			&cli.BoolFlag{Name: "delta", Aliases: []string{"d"}, Usage: "Send only what TARGET lacks, also within files that differ"},
			&cli.BoolFlag{Name: "direct", Usage: "From machine to machine without this computer between; SOURCE has to reach any port of TARGET"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "Show no progress"},
		},
		Action: p.scp}
}

func (p *program) scp(c *cli.Context) error {
	if c.NArg() != 2 {
		_ = cli.ShowCommandHelp(parent(c), "scp")
		return errors.New("Improper number of arguments") //nolint:staticcheck // docker-machine's words
	}
	o := lifecycle.CopyOptions{Recursive: c.Bool("recursive"), Delta: c.Bool("delta"), Direct: c.Bool("direct")}
	done := func() {}
	if f, ok := p.stderr.(*os.File); ok && !c.Bool("quiet") && term.IsTerminal(int(f.Fd())) {
		mt := &meter{w: f, start: time.Now()}
		o.Progress, done = mt.tell, mt.end
	}
	letters := runtime.GOOS == "windows"
	stats, err := p.m.Copy(c.Context, lifecycle.ParsePlace(c.Args().Get(0), letters), lifecycle.ParsePlace(c.Args().Get(1), letters), o)
	done()
	if err == nil && o.Delta && !o.Direct && !c.Bool("quiet") {
		fmt.Fprintf(p.stderr, "%s sent, %s kept, %d files the same\n", humanSize(stats.Sent), humanSize(stats.Kept), stats.Skipped)
	}
	return err
}

// A meter shows a copy's progress in one line of a terminal.
type meter struct {
	mu          sync.Mutex
	w           io.Writer
	start, last time.Time
	name        string
	files       int
	bytes       int64
}

func (m *meter) tell(name string, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if name != "" {
		m.name = name
		m.files++
	}
	m.bytes += n
	if time.Since(m.last) > 100*time.Millisecond {
		m.show()
	}
}

func (m *meter) show() {
	m.last = time.Now()
	rate := float64(m.bytes) / max(time.Since(m.start).Seconds(), 0.001)
	name := []rune(m.name)
	if len(name) > 40 {
		name = append([]rune("..."), name[len(name)-37:]...)
	}
	fmt.Fprintf(m.w, "\r%-40s %6d files %10s %10s/s\x1b[K", string(name), m.files, humanSize(m.bytes), humanSize(int64(rate)))
}

func (m *meter) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.show()
	fmt.Fprintln(m.w)
}

func humanSize(n int64) string {
	units := []string{"B", "KB", "MB", "GB", "TB"}
	f, i := float64(n), 0
	for f >= 1000 && i < len(units)-1 {
		f /= 1000
		i++
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}
