package ssh

import "time"

// resizes tells when the terminal may have another size: Windows has no signal
// for that, so it is asked now and then. forget ends it.
func resizes() (c <-chan time.Time, forget func()) {
	t := time.NewTicker(250 * time.Millisecond)
	return t.C, t.Stop
}
