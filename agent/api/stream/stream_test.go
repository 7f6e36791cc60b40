package stream

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestMux(t *testing.T) {
	var b bytes.Buffer
	m := NewMux(&b)
	m.Writer(Stdout).Write([]byte("out"))
	m.Writer(Stderr).Write([]byte("e"))
	m.Writer(Stdout).Write(nil)
	want := "\x01\x00\x00\x00\x00\x00\x00\x03out\x02\x00\x00\x00\x00\x00\x00\x01e"
	if b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

func TestDetach(t *testing.T) {
	for _, c := range []struct {
		in, out  string
		detached bool
	}{
		{"plain", "plain", false},
		{"a\x10\x11b", "a", true},
		{"a\x10b\x10\x11", "a\x10b", true},
		{"\x10\x10\x11", "\x10", true},
		{"x\x10", "x", false}, // the key is held back for ever: it may become a detach
	} {
		for _, wrap := range []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.OneByteReader} {
			got, err := io.ReadAll(NewDetachReader(wrap(strings.NewReader(c.in)), []byte{16, 17}))
			if string(got) != c.out || errors.Is(err, ErrDetached) != c.detached {
				t.Errorf("%q: got %q, %v", c.in, got, err)
			}
		}
	}
}

func TestParseKeys(t *testing.T) {
	for in, want := range map[string]string{"": "\x10\x11", "ctrl-a": "\x01", "a,ctrl-z": "a\x1a", "ctrl-@,ctrl-_": "\x00\x1f", "ctrl-[": "\x1b"} {
		if got, err := ParseKeys(in); err != nil || string(got) != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"ctrl-", "ctrl-AB", "xx", ",", "ctrl-1"} {
		if got, err := ParseKeys(in); err == nil {
			t.Errorf("%q was taken for %q", in, got)
		}
	}
}
