package wire

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"testing"
)

func sample() *Program {
	return &Program{ID: "id", Root: Root{Lower: []string{"a", "b"}, Upper: "u", Work: "w", Readonly: true},
		Mounts:  []Mount{{Kind: MountBind, Source: "/s", Dest: "/d", Data: []string{"x=y"}, Set: 1, Cgroup: []KV{{"k", "v"}}, FD: -1, FDs: []int{3, 4}}},
		Devices: []Device{{Path: "/dev/null", Type: 'c', Major: 1, Minor: 3, Mode: 0o666, FD: 7}}, Masked: []string{"/m"},
		Sysctls: []KV{{"a", "b"}}, Join: []Join{{1, "/p"}}, UIDMap: "0 1 2", CgroupProcs: []string{"/c"},
		Process: Process{Args: []string{"sh", "-c", ""}, Env: []string{"A=b"}, TTY: true, Caps: 1 << 40, Rlimits: []Rlimit{{7, 1, 2}},
			HasOOM: true, OOMScoreAdj: -500, Seccomp: []byte{1, 2, 0}, Tasks: []int{1}},
		Log: Log{Driver: "local", Path: "/l", MaxSize: 1, Attrs: []byte("{}")}}
}

func TestRoundTrip(t *testing.T) {
	want := sample()
	got := &Program{}
	if err := Unmarshal(Marshal(want), got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
}

// CVE-2021-43784: no length in a message reaches beyond it, and no message
// that is cut or longer than it says is taken.
func TestS14Lengths(t *testing.T) {
	b := Marshal(sample())
	for i := range b {
		if Unmarshal(b[:i], &Program{}) == nil {
			t.Errorf("a message cut at %d was taken", i)
		}
	}
	if Unmarshal(append(bytes.Clone(b), 0), &Program{}) == nil {
		t.Error("a message with a byte too many was taken")
	}
	for i := 0; i+4 <= len(b); i++ {
		for _, n := range []uint32{1 << 31, 1<<32 - 1, uint32(len(b))} {
			m := bytes.Clone(b)
			binary.LittleEndian.PutUint32(m[i:], n)
			_ = Unmarshal(m, &Program{}) // must neither panic nor eat memory
		}
	}
	p := sample()
	p.Process.Args[0] = "a\x00b"
	if Unmarshal(Marshal(p), &Program{}) == nil {
		t.Error("a NUL was taken")
	}
}

func FuzzProgram(f *testing.F) {
	f.Add(Marshal(sample()))
	f.Add(Marshal(&Message{Kind: MsgExec, Body: []byte("x")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, v := range []interface{ Code(*Codec) }{&Program{}, &Process{}, &Message{}, &ExitRecord{}} {
			if Unmarshal(b, v) == nil && !bytes.Equal(Marshal(v), b) {
				t.Errorf("%T: what was taken is not what is given", v)
			}
		}
	})
}
