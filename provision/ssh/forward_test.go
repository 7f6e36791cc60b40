package ssh

import (
	"context"
	"sync/atomic"
	"testing"
	"time"
)

// TestF27Sleep: a connection over which a laptop slept is given up, and the
// next one goes through.
func TestF27Sleep(t *testing.T) {
	key, pub := keyFile(t)
	target := server(t, pub)
	var asleep atomic.Bool // what was connected before passes nothing
	conf := config(t, between(t, target, func(first bool) bool { return !first || !asleep.Load() }), key)
	conf.KeepAlive = 300 * time.Millisecond
	cl, err := Dial(context.Background(), conf)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cl.Close() }()
	asleep.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if _, err := cl.Output(ctx, "hang", nil); err == nil || ctx.Err() != nil {
		t.Fatalf("the dead connection was not given up: %v", err)
	}
	again, err := Wait(ctx, conf)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	if _, err := again.Output(ctx, "echo", nil); err != nil {
		t.Error(err)
	}
}

func TestForwardSpecs(t *testing.T) {
	for _, c := range []struct{ spec, from, to string }{
		{"8080:web:80", "127.0.0.1:8080", "web:80"},
		{"*:8080:web:80", ":8080", "web:80"},
		{"[::1]:8080:[fe80::1]:80", "[::1]:8080", "[fe80::1]:80"},
		{"8080:/run/x.sock", "127.0.0.1:8080", "/run/x.sock"},
		{"/tmp/a:/run/x.sock", "/tmp/a", "/run/x.sock"},
		{"/tmp/a:web:80", "/tmp/a", "web:80"},
	} {
		from, to, err := splitForward(c.spec)
		if err != nil || from != c.from || to != c.to {
			t.Errorf("%s: %s %s %v", c.spec, from, to, err)
		}
	}
	for _, bad := range []string{"", "x", "1:2", "a:b:c", "1:h:99999", "1:2:3:4:5"} {
		if _, _, err := splitForward(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestVia(t *testing.T) {
	c, err := Config{Host: "inner"}.Via("bob@a:2222, [::1],c")
	if err != nil || len(c.Jumps) != 3 {
		t.Fatal(c, err)
	}
	if j := c.Jumps[0]; j.User != "bob" || j.addr() != "a:2222" {
		t.Errorf("%+v", j)
	}
	if got := c.Jumps[1].addr(); got != "[::1]:22" {
		t.Error(got)
	}
	for _, bad := range []string{"a:x", "a:0", "bob@", ","} {
		if _, err := (Config{}).Via(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
