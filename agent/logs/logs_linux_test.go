package logs

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"machine/agent/logs/sink"
	"machine/agent/model"
)

func open(t testing.TB, c model.LogConfig) *sink.Log {
	t.Helper()
	l, err := sink.Open(sink.Config{JSON: c.Driver == "json-file", Path: c.Path, MaxSize: c.MaxSize, MaxFiles: c.MaxFiles, Attrs: c.Attrs})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func all(t testing.TB, c model.LogConfig, o model.LogOptions) (out []string) {
	t.Helper()
	err := Read(context.Background(), c, o, nil, func(r *model.LogRecord) error {
		out = append(out, r.Stream+":"+string(r.Line))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func config(t testing.TB, driver string) model.LogConfig {
	return model.LogConfig{Driver: driver, Path: filepath.Join(t.TempDir(), "log"), MaxFiles: 1}
}

var drivers = []string{"json-file", "local"}

func TestReadBack(t *testing.T) {
	for _, d := range drivers {
		c := config(t, d)
		l := open(t, c)
		texts := []string{"plain\n", "\"quoted\" \\ <tag> & \x01\x7f\ttab\r\n", "ünïcode \u2028 €\n", "\n"}
		now := time.Date(2026, 11, 21, 12, 0, 0, 123456789, time.UTC).UnixNano()
		for i, s := range texts {
			l.Write(i%2, []byte(s), now)
		}
		l.Write(0, []byte("no newline"), now)
		l.End(0, now)
		l.Close()
		got := all(t, c, model.LogOptions{Tail: -1})
		want := []string{"stdout:" + texts[0], "stderr:" + texts[1], "stdout:" + texts[2], "stderr:" + texts[3], "stdout:no newline"}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: got %q, want %q", d, got, want)
		}
		err := Read(context.Background(), c, model.LogOptions{Tail: 1}, nil, func(r *model.LogRecord) error {
			if !r.Partial || r.Time.UnixNano() != now {
				t.Errorf("%s: got %v", d, r)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// The quoting is Docker's: what encoding/json writes, but for the control
// characters that it has short forms for and that Docker's writer has not.
func TestJSONQuoting(t *testing.T) {
	var in []byte
	for c := range 256 {
		in = append(in, byte(c))
	}
	in = append(in, "\u2028\u2029\ufffd\xe2\x80"...)
	var got string
	if err := json.Unmarshal(append(sink.AppendJSON([]byte{'"'}, in), '"'), &got); err != nil {
		t.Fatal(err)
	}
	if want := strings.ToValidUTF8(string(in), "\ufffd"); len(got) < len(want) || !strings.HasPrefix(got, string(in[:0x80])) {
		t.Errorf("got %q, want %q", got, want)
	}
	if s := string(sink.AppendJSON(nil, []byte("\t\b<\u2029\xff"))); s != `\u0009\u0008\u003c\u2029\ufffd` {
		t.Errorf("got %s", s)
	}
}

func TestSplitLongLines(t *testing.T) {
	for _, d := range drivers {
		c := config(t, d)
		l := open(t, c)
		line := strings.Repeat("x", 40000)
		for _, part := range []string{line[:100], line[100:], "\nnext\n"} {
			l.Write(0, []byte(part), 1)
		}
		l.Close()
		var lens []int
		Read(context.Background(), c, model.LogOptions{Tail: -1}, nil, func(r *model.LogRecord) error {
			lens = append(lens, len(r.Line))
			return nil
		})
		if fmt.Sprint(lens) != "[16384 16384 7233 5]" {
			t.Errorf("%s: got %v", d, lens)
		}
	}
}

func fill(l *sink.Log, from, to int) {
	for i := from; i < to; i++ {
		l.Write(0, []byte(fmt.Sprintf("line %d\n", i)), int64(i)*1e9)
	}
}

func TestTailSinceUntil(t *testing.T) {
	for _, d := range drivers {
		c := config(t, d)
		c.MaxSize, c.MaxFiles = 2000, 4
		l := open(t, c)
		fill(l, 0, 60)
		l.Close()
		everything := all(t, c, model.LogOptions{Tail: -1})
		if len(everything) == 0 || everything[len(everything)-1] != "stdout:line 59\n" {
			t.Fatalf("%s: got %v", d, everything)
		}
		for _, n := range []int{0, 1, 5, len(everything) - 1, len(everything), 1000} {
			got := all(t, c, model.LogOptions{Tail: n})
			want := everything[max(0, len(everything)-n):]
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s tail %d: got %q, want %q", d, n, got, want)
			}
		}
		got := all(t, c, model.LogOptions{Tail: -1, Since: time.Unix(50, 0), Until: time.Unix(52, 0)})
		if fmt.Sprint(got) != fmt.Sprint([]string{"stdout:line 50\n", "stdout:line 51\n", "stdout:line 52\n"}) {
			t.Errorf("%s: since and until: got %q", d, got)
		}
	}
}

func TestTornRecords(t *testing.T) {
	c := config(t, "json-file")
	l := open(t, c)
	fill(l, 0, 3)
	l.Close()
	f, _ := os.OpenFile(c.Path, os.O_APPEND|os.O_WRONLY, 0)
	f.WriteString(`{"log":"torn`)
	f.Close()
	if got := all(t, c, model.LogOptions{Tail: -1}); len(got) != 3 {
		t.Errorf("got %q", got)
	}
	l = open(t, c)
	fill(l, 3, 5)
	l.Close()
	if got := all(t, c, model.LogOptions{Tail: -1}); len(got) != 5 {
		t.Errorf("after a new start: got %q", got)
	}
}

func TestFollowAcrossRotation(t *testing.T) {
	for _, d := range drivers {
		c := config(t, d)
		c.MaxSize, c.MaxFiles = 100000, 5
		l := open(t, c)
		fill(l, 0, 10)
		done := make(chan struct{})
		started := make(chan struct{})
		const n = 5000
		go func() {
			<-started
			for i := 10; i < n; i += 100 {
				fill(l, i, min(i+100, n))
				time.Sleep(time.Millisecond)
			}
			l.Close()
			close(done)
		}()
		next := 0
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		err := Read(ctx, c, model.LogOptions{Tail: -1, Follow: true}, done, func(r *model.LogRecord) error {
			if want := fmt.Sprintf("line %d\n", next); string(r.Line) != want {
				return fmt.Errorf("got %q, want %q", r.Line, want)
			}
			if next++; next == 10 {
				close(started)
			}
			return nil
		})
		cancel()
		if err != nil || next != n {
			t.Errorf("%s: %d records, %v", d, next, err)
		}
	}
}

func TestFollowTruncated(t *testing.T) {
	c := config(t, "json-file")
	c.MaxSize = 3000
	l := open(t, c)
	fill(l, 0, 5)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	last := ""
	err := Read(ctx, c, model.LogOptions{Tail: -1, Follow: true}, nil, func(r *model.LogRecord) error {
		last = string(r.Line)
		if last == "line 4\n" {
			go func() { fill(l, 5, 200); l.Close() }()
		}
		if last == "line 199\n" {
			return errStop
		}
		return nil
	})
	if err != nil || last != "line 199\n" {
		t.Errorf("got %q, %v", last, err)
	}
}

func TestReadCompressed(t *testing.T) {
	c := config(t, "json-file")
	c.MaxSize, c.MaxFiles = 1000, 5
	l := open(t, c)
	l.Rotated = func(ino uint64) {
		data, err := os.ReadFile(c.Path + ".1")
		if err != nil {
			t.Fatal(err)
		}
		tmp := c.Path + ".tmp"
		if err := os.WriteFile(tmp, gzipped(data), 0o600); err != nil {
			t.Fatal(err)
		}
		l.Compressed(ino, tmp)
	}
	fill(l, 0, 40)
	l.Close()
	if _, err := os.Stat(c.Path + ".1.gz"); err != nil {
		t.Fatal(err)
	}
	got := all(t, c, model.LogOptions{Tail: 20})
	if len(got) != 20 || got[0] != "stdout:line 20\n" {
		t.Errorf("got %q", got)
	}
}

func TestAttrs(t *testing.T) {
	c := config(t, "json-file")
	c.Attrs = []byte(`{"a":"b,}","c":"d"}`)
	l := open(t, c)
	fill(l, 0, 2)
	l.Close()
	n := 0
	Read(context.Background(), c, model.LogOptions{Tail: -1}, nil, func(r *model.LogRecord) error {
		n++
		if r.Attrs["a"] != "b,}" || r.Attrs["c"] != "d" {
			t.Errorf("got %v", r.Attrs)
		}
		return nil
	})
	if n != 2 {
		t.Errorf("%d records", n)
	}
}

func TestReadErrors(t *testing.T) {
	c := config(t, "json-file")
	if got := all(t, c, model.LogOptions{Tail: -1}); len(got) != 0 {
		t.Errorf("got %q of no file", got)
	}
	l := open(t, c)
	fill(l, 0, 2)
	l.Close()
	boom := errors.New("boom")
	if err := Read(context.Background(), c, model.LogOptions{Tail: -1}, nil, func(*model.LogRecord) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
	c.Driver = "none"
	if err := Read(context.Background(), c, model.LogOptions{}, nil, nil); err == nil {
		t.Error("none can be read")
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"log":"a\n","stream":"stdout","attrs":{"a":"b"},"time":"2026-11-21T12:00:00.1Z"}` + "\n"))
	f.Add([]byte("\x03\x00\x00\x00\x01aaaaaaaaabc\x03\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, d := range []decoder{&jsonDecoder{}, localDecoder{}} {
			var rec model.LogRecord
			in := bytes.Clone(b)
			for len(in) > 0 {
				n, _ := d.record(in, &rec)
				if n == 0 {
					break
				}
				in = in[n:]
			}
		}
	})
}

func benchLog(b *testing.B, driver string) (model.LogConfig, int64) {
	c := config(b, driver)
	l := open(b, c)
	line := []byte(strings.Repeat("2026-11-21 INFO some ordinary line of a log, as they come ", 2) + "\n")
	chunk := bytes.Repeat(line, 64<<10/len(line))
	for range 1000 {
		l.Write(0, chunk, time.Now().UnixNano())
	}
	l.Close()
	return c, int64(1000 * len(chunk))
}

func BenchmarkRead(b *testing.B) {
	for _, d := range drivers {
		b.Run(d, func(b *testing.B) {
			c, n := benchLog(b, d)
			b.SetBytes(n)
			for b.Loop() {
				got := int64(0)
				Read(context.Background(), c, model.LogOptions{Tail: -1}, nil, func(r *model.LogRecord) error {
					got += int64(len(r.Line))
					return nil
				})
				if got != n {
					b.Fatalf("%d bytes, want %d", got, n)
				}
			}
		})
	}
}

func BenchmarkWrite(b *testing.B) {
	for _, d := range drivers {
		b.Run(d, func(b *testing.B) {
			c := config(b, d)
			l := open(b, c)
			line := []byte(strings.Repeat("2026-11-21 INFO some ordinary line of a log, as they come ", 2) + "\n")
			chunk := bytes.Repeat(line, 64<<10/len(line))
			b.SetBytes(int64(len(chunk)))
			n := 0
			for b.Loop() {
				if n++; n%2000 == 0 {
					unix.Truncate(c.Path, 0)
				}
				l.Write(0, chunk, time.Now().UnixNano())
			}
			l.Close()
		})
	}
}

func gzipped(b []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	z.Write(b)
	z.Close()
	return out.Bytes()
}
