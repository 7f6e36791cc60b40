package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"machine/agent/transfer"
	"machine/provision"
	"machine/provision/ssh"
)

// errNoAgent says that a host has no agent that copies.
var errNoAgent = errors.New("the host has no agent that copies")

// An end is one side of a copy.
type end struct {
	Place
	cl   *ssh.Client // nil: this computer
	host string      // where other machines find it
}

func (m *Manager) end(ctx context.Context, p Place) (*end, error) {
	if p.Machine == "" {
		return &end{Place: p}, nil
	}
	mc, err := m.Load(p.Machine)
	if err != nil {
		return nil, err
	}
	defer func() { _ = mc.Close() }()
	m.KeepFresh(ctx, mc)
	conf, err := mc.SSH(ctx)
	if err != nil {
		return nil, fmt.Errorf("scp: machine %q: %w", p.Machine, err)
	}
	if p.User != "" {
		conf.User = p.User
	}
	cl, err := ssh.Dial(ctx, conf)
	if err != nil {
		return nil, err
	}
	return &end{p, cl, conf.Host}, nil
}

func (e *end) close() {
	if e.cl != nil {
		_ = e.cl.Close()
	}
}

// tree opens the end's files without an agent.
func (e *end) tree(ctx context.Context) (t tree, join func(...string) string, release func(), err error) {
	if e.cl == nil {
		return localTree{}, filepath.Join, func() {}, nil
	}
	files, err := e.cl.Files()
	if err != nil {
		return nil, nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = e.cl.Client.Close() })
	return ssh.Tree{Client: files}, path.Join, func() { stop(); _ = files.Close() }, nil
}

// A stream is the transfer's protocol with one end.
type stream struct {
	r    io.Reader
	w    io.WriteCloser
	wait func() error // for the far end's program; nil here
}

// far starts the agent's copy on a host.
func (e *end) far(ctx context.Context, o transfer.Order) (*stream, error) {
	p, err := e.cl.Start(ctx, provision.AgentPath+" copy")
	if err != nil {
		return nil, err
	}
	r, err := transfer.Greet(p.Stdout, p.Stdin, o)
	if err != nil {
		_ = p.Stdin.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, errors.Join(errNoAgent, err, p.Wait())
	}
	return &stream{r, p.Stdin, p.Wait}, nil
}

// fastCopy lets the transfer's protocol run between the ends; what comes from
// one host for the other only passes through here.
func fastCopy(ctx context.Context, from, to *end, o CopyOptions) (stats transfer.Stats, err error) {
	send := transfer.Order{Send: true, Path: from.Path, Recursive: o.Recursive, Delta: o.Delta}
	recv := transfer.Order{Path: to.Path, Recursive: o.Recursive, Delta: o.Delta}
	if o.Direct {
		return stats, directCopy(ctx, from, to, send, recv)
	}
	var a, b *stream
	if from.cl != nil {
		if a, err = from.far(ctx, send); err != nil {
			return stats, err
		}
	}
	if to.cl != nil {
		if b, err = to.far(ctx, recv); err != nil {
			if a != nil {
				_ = a.w.Close()
				_ = a.wait()
			}
			return stats, err
		}
	}
	var nearErr error
	switch {
	case a == nil && b == nil:
		stats, nearErr = nearCopy(send, recv, o.Progress)
	case a == nil:
		stats, nearErr = transfer.Send(b.r, b.w, send, o.Progress)
		_ = b.w.Close()
	case b == nil:
		stats, nearErr = transfer.Receive(a.r, a.w, recv, o.Progress)
		_ = a.w.Close()
	default:
		stats = relay(a, b, o.Progress)
	}
	return stats, copyError(ctx, nearErr, a, b)
}

// directCopy lets the receiver wait on a port of its own and the sender go
// there; only the word that lets it in passes here.
func directCopy(ctx context.Context, from, to *end, send, recv transfer.Order) error {
	if from.cl == nil || to.cl == nil {
		return errors.New("scp: --direct is for two machines")
	}
	recv.Listen = true
	b, err := to.far(ctx, recv)
	if err != nil {
		return err
	}
	meeting, err := transfer.Meet(b.r)
	if err != nil {
		_ = b.w.Close()
		return copyError(ctx, err, b)
	}
	meeting.Addr = net.JoinHostPort(to.host, meeting.Addr)
	send.Direct = &meeting
	a, err := from.far(ctx, send)
	if err != nil {
		_ = b.w.Close()
		_ = to.cl.Client.Close()
		_ = b.wait()
		return err
	}
	return copyError(ctx, nil, a, b)
}

// copyError is the first cause of what the ends say: that the other one went
// away is none.
func copyError(ctx context.Context, near error, far ...*stream) error {
	errs := []error{near}
	for _, s := range far {
		if s != nil {
			errs = append(errs, s.wait())
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var any error
	for _, err := range errs {
		if err == nil {
			continue
		}
		if any == nil {
			any = err
		}
		if errors.Is(err, transfer.ErrPeer) || strings.Contains(err.Error(), transfer.ErrPeer.Error()) {
			continue
		}
		return fmt.Errorf("scp: %w", err)
	}
	if any != nil {
		return fmt.Errorf("scp: %w", any)
	}
	return nil
}

// nearCopy copies on this computer.
func nearCopy(send, recv transfer.Order, p transfer.Progress) (transfer.Stats, error) {
	r1, w1 := io.Pipe()
	r2, w2 := io.Pipe()
	var wg sync.WaitGroup
	var sendErr error
	wg.Go(func() {
		_, sendErr = transfer.Send(r2, w1, send, p)
		_ = w1.Close()
		_ = r2.Close()
	})
	stats, err := transfer.Receive(r1, w2, recv, nil)
	_ = r1.Close()
	_ = w2.Close()
	wg.Wait()
	if sendErr != nil && !errors.Is(sendErr, transfer.ErrPeer) {
		return stats, sendErr
	}
	return stats, err
}

// relay passes what two hosts say to each other.
func relay(a, b *stream, p transfer.Progress) (stats transfer.Stats) {
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(a.w, b.r)
		_ = a.w.Close()
	})
	w := io.Writer(b.w)
	n := &counter{w: w, tell: p}
	_, _ = io.Copy(n, a.r)
	_ = b.w.Close()
	wg.Wait()
	stats.Sent = n.n
	return stats
}

type counter struct {
	w    io.Writer
	n    int64
	tell transfer.Progress
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	if c.tell != nil {
		c.tell("", int64(n))
	}
	return n, err
}
