package agent

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A socket that a dying process still has is waited for, one that stays in use
// is an error, and a stale one is no hindrance.
func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	c := &Config{Hosts: []string{"unix://" + path}}
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	if l, err := listen(c, nil); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("in use: %v, %v", l, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		time.Sleep(100 * time.Millisecond)
		old.Close()
	}()
	for _, what := range []string{"freed", "stale"} {
		l, err := listen(c, nil)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if st, _ := os.Stat(path); st.Mode().Perm() != 0o660 {
			t.Errorf("mode %v", st.Mode())
		}
		l[0].Close()
	}
	<-done
	c.SocketGroup = "no-such-group"
	if _, err := listen(c, nil); err == nil {
		t.Error("a group that is not there was taken")
	}
	if list, _ := os.ReadDir(filepath.Dir(path)); len(list) != 0 {
		t.Errorf("left: %v", list)
	}
}
