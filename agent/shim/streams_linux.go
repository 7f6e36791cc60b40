package shim

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"machine/agent/model"
	"machine/agent/runtime/wire"
)

// An output is the reading end of a process's output.
type output struct{ f *os.File }

// Read implements [io.Reader]. A pipe that something else still holds open
// after the process has ended is at its end when it is empty.
func (o *output) Read(b []byte) (int, error) {
	n, err := o.f.Read(b)
	switch {
	case errors.Is(err, unix.EIO) || errors.Is(err, os.ErrClosed):
		return n, io.EOF // a terminal whose other side is closed
	case errors.Is(err, os.ErrDeadlineExceeded):
		return o.drain(b)
	}
	return n, err
}

// drain reads what is there without waiting.
func (o *output) drain(b []byte) (n int, err error) {
	c, err := o.f.SyscallConn()
	if err != nil {
		return 0, io.EOF
	}
	cerr := c.Control(func(fd uintptr) {
		for {
			if n, err = unix.Read(int(fd), b); err != unix.EINTR {
				return
			}
		}
	})
	if cerr != nil || err != nil || n <= 0 {
		return 0, io.EOF
	}
	return n, nil
}

// end makes readers stop when they have read what is there.
func (o *output) end() { _ = o.f.SetReadDeadline(time.Unix(1, 0)) }

// pipes makes the pipes of an attach: streams for the caller, fds for the
// other side, which the caller closes.
func pipes(in, out, errs bool) (st *model.Streams, fds []int, outs []*output, err error) {
	st = &model.Streams{}
	var ours []*os.File
	defer func() {
		if err != nil {
			for _, f := range ours {
				f.Close()
			}
			wire.CloseAll(fds)
		}
	}()
	for i, want := range [3]bool{in, out, errs} {
		if !want {
			continue
		}
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			return nil, fds, nil, err
		}
		our, their := p[0], p[1]
		if i == 0 {
			our, their = p[1], p[0]
		}
		_ = unix.SetNonblock(our, true)
		f := os.NewFile(uintptr(our), "stream")
		ours, fds = append(ours, f), append(fds, their)
		if i == 0 {
			st.Stdin = f
			continue
		}
		o := &output{f: f}
		outs = append(outs, o)
		if i == 1 {
			st.Stdout = o
		} else {
			st.Stderr = o
		}
	}
	var once sync.Once
	st.Close = func() error {
		once.Do(func() {
			for _, f := range ours {
				f.Close()
			}
		})
		return nil
	}
	return st, fds, outs, nil
}

func flags(in, out, errs bool) (n uint32) {
	for i, f := range [3]bool{in, out, errs} {
		if f {
			n |= 1 << i
		}
	}
	return n
}

// Attach implements [model.Task]. A task that has ended gives streams that are
// at their end.
func (t *task) Attach(o model.AttachOptions) (*model.Streams, error) {
	wantErr := o.Stderr && !t.meta.TTY
	wantOut := o.Stdout || o.Stderr && t.meta.TTY
	st, fds, _, err := pipes(o.Stdin, wantOut, wantErr)
	if err != nil {
		return nil, err
	}
	defer wire.CloseAll(fds)
	if t.client == nil {
		return st, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r, err := t.client.call(ctx, &wire.Message{Kind: wire.MsgAttach, Flags: flags(o.Stdin, wantOut, wantErr)}, fds...)
	wire.CloseAll(r.fds)
	if err != nil && !errors.Is(err, errLost) {
		st.Close()
		return nil, err
	}
	return st, nil
}
