package drivers

import (
	"path/filepath"
	"regexp"
)

func join(elem ...string) string { return filepath.Join(elem...) }

// validName is docker-machine's rule for machine names, which become host
// names and folders.
var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9\-\.]*$`)

// ValidName reports whether name may name a machine: letters, digits, "." and
// "-", the first a letter or digit, 128 characters at most.
func ValidName(name string) bool { return len(name) <= 128 && validName.MatchString(name) }
