// Package all lists the drivers that are built in.
package all

import (
	"runtime"

	"machine/drivers"
	"machine/drivers/generic"
	"machine/drivers/local"
	"machine/drivers/none"
)

// Kinds returns the drivers in the order of their names.
func Kinds() []drivers.Kind {
	return []drivers.Kind{generic.Kind(), local.Kind(), none.Kind()}
}

// Default names the driver that create takes when none is named.
func Default() string {
	if runtime.GOOS == "linux" {
		return local.Name
	}
	return "virtualbox"
}
