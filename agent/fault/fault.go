// Package fault classes errors by what the caller can do about them. The API
// maps a kind to an HTTP status; nothing else looks at kinds but to decide
// whether to go on.
package fault

import (
	"errors"
	"fmt"
)

// A Kind says what a caller can do about an error.
type Kind int

// The kinds, each with what to do about it.
const (
	Internal       Kind = iota // our bug or the host's: report it
	Invalid                    // the request: change it
	NotFound                   // the name: create it first
	Conflict                   // the state: stop, remove or wait
	Unchanged                  // nothing to do: it is as asked already
	Unauthorized               // the credentials: log in
	Forbidden                  // never: policy refuses it
	NotImplemented             // not built
	Unavailable                // try again later
)

type fault struct {
	kind Kind
	error
}

func (f *fault) Unwrap() error { return f.error }

// Errorf formats an error of kind k; %w wraps as in [fmt.Errorf].
func (k Kind) Errorf(format string, args ...any) error {
	return &fault{k, fmt.Errorf(format, args...)}
}

// KindOf reports the outermost kind in err's chain, or Internal.
func KindOf(err error) Kind {
	var f *fault
	if errors.As(err, &f) {
		return f.kind
	}
	return Internal
}

// Is reports whether err is of kind k.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }
