package model

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"machine/agent/fault"
)

// ParseSignal reads "TERM", "SIGTERM", "15" or "RTMIN+3"; fault.Invalid for
// what is none.
func ParseSignal(s string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > 64 {
			return 0, fault.Invalid.Errorf("invalid signal: %s", s)
		}
		return syscall.Signal(n), nil
	}
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n := unix.SignalNum(name); n != 0 {
		return n, nil
	}
	if rest, ok := strings.CutPrefix(name, "SIGRTMIN"); ok {
		n, err := strconv.Atoi("0" + strings.TrimPrefix(rest, "+"))
		if err == nil && 34+n <= 64 {
			return syscall.Signal(34 + n), nil
		}
	}
	if rest, ok := strings.CutPrefix(name, "SIGRTMAX"); ok {
		n, err := strconv.Atoi("0" + strings.TrimPrefix(rest, "-"))
		if err == nil && 64-n >= 34 {
			return syscall.Signal(64 - n), nil
		}
	}
	return 0, fault.Invalid.Errorf("invalid signal: %s", s)
}
