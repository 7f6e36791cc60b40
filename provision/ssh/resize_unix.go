//go:build !windows

package ssh

import (
	"os"
	"os/signal"
	"syscall"
)

// resizes tells when the terminal may have another size (tty_ioctl(4)). One
// word is there at once: the size may have changed since it was asked for.
// forget ends it.
func resizes() (c <-chan os.Signal, forget func()) {
	signals := make(chan os.Signal, 1)
	signals <- syscall.SIGWINCH
	signal.Notify(signals, syscall.SIGWINCH)
	return signals, func() { signal.Stop(signals) }
}
