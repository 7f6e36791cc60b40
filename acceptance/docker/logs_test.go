package docker

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"machine/acceptance/engine"
)

// TestF42NoNewline: what has no newline goes into the log at full speed while
// a reader of it stands still, split at 16 KiB as Docker does it, and comes
// back in one piece. NO_NEWLINE_MIB changes its size; "make bench" takes a
// gigabyte.
func TestF42NoNewline(t *testing.T) {
	e := start(t)
	r := racer(t, e)
	mib := 256 // what a computer's memory takes in before the disk is what is measured
	if n, err := strconv.Atoi(os.Getenv("NO_NEWLINE_MIB")); err == nil && n > 0 {
		mib = n
	}
	id := e.Run("run", "-d", "--name", "long", "--network", "none", "-v", r+":/racer:ro", "busybox", "sh", "-c",
		"while [ ! -e /go ]; do sleep 0.05; done; /racer stream "+itoa(mib)+" 2>/said; sleep 1000")
	c, err := send(e, "GET /containers/"+id+"/logs?follow=1&stdout=1 HTTP/1.1\r\nHost: x\r\n\r\n")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.ReadFull(c, make([]byte, 12)); err != nil { // the answer has begun, and is not read on
		t.Fatal(err)
	}
	before := rss(t, e.AgentPid())
	e.Run("exec", "long", "touch", "/go")
	var took, worst int
	e.Eventually("all is written", func() bool {
		n, _ := fmt.Sscan(e.Try("exec", "long", "cat", "/said").Out, &took, &worst)
		return n == 2
	})
	if worst > 2000 {
		t.Errorf("the container stood still for %d ms", worst)
	}
	if grown := rss(t, e.AgentPid()) - before; grown > 64<<20 {
		t.Errorf("the agent grew by %d MiB", grown>>20)
	}
	out, _ := e.HostRun("awk", "/^VmHWM/ {print $2}", "/proc/"+shimOf(e, "long")+"/status")
	if kb := atoi(t, out); kb > 32<<10 {
		t.Errorf("the shim grew to %d KiB", kb)
	}
	lines, longest := lineLengths(t, filepath.Join(e.Dir, "data/containers", id, id+"-json.log"))
	if want := mib * 64; lines < want || lines > want+want/4 || longest > 16<<10+200 {
		t.Errorf("%d records, the longest of %d bytes; want some %d of 16 KiB", lines, longest, want)
	}
	began := time.Now()
	sameStream(t, e, id, mib)
	t.Logf("written with %.0f MB/s, slowest write %d ms; read with %.0f MB/s", float64(mib)*1.048576e3/float64(max(took, 1)), worst, float64(mib)*1.048576/time.Since(began).Seconds())
	e.Audit()
}

// lineLengths counts a file's lines and tells the length of the longest.
func lineLengths(t *testing.T, name string) (n, longest int) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(make([]byte, 1<<20), 1<<20)
	for s.Scan() {
		n, longest = n+1, max(longest, len(s.Bytes()))
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return n, longest
}

// sameStream reads a container's log and compares it with what the racer
// streams.
func sameStream(t *testing.T, e *engine.Engine, id string, mib int) {
	t.Helper()
	c := e.Client()
	defer c.CloseIdleConnections()
	resp, err := c.Get("http://engine/containers/" + id + "/logs?stdout=1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(unframe(pw, resp.Body)) }()
	defer pr.Close()
	got, want := make([]byte, 64<<10), []byte(strings.Repeat("x", 64<<10))
	in := bufio.NewReaderSize(pr, 1<<20)
	for i := range mib * 16 {
		copy(want, fmt.Sprintf("%016x", i))
		if _, err := io.ReadFull(in, got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("block %d of the log: %.40q, %v", i, got, err)
		}
	}
	if b, err := io.ReadAll(in); err != nil || len(b) != 0 {
		t.Errorf("after the end: %.40q, %v", b, err)
	}
}

// unframe takes the API's frames off: one byte for the stream, three of
// nothing, the length in four.
func unframe(w io.Writer, r io.Reader) error {
	in := bufio.NewReaderSize(r, 1<<20)
	var h [8]byte
	for {
		if _, err := io.ReadFull(in, h[:]); err != nil {
			return err
		}
		if _, err := io.CopyN(w, in, int64(binary.BigEndian.Uint32(h[4:]))); err != nil {
			return err
		}
	}
}
