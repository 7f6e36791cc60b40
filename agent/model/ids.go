package model

import (
	"crypto/rand"
	"encoding/hex"
	"strings"
)

// NewID makes an id of 64 hexadecimal digits. The first 12, its short form, are
// never all decimal: a resolver would take such a host's name for a number.
func NewID() string {
	var b [32]byte
	for {
		_, _ = rand.Read(b[:]) // never fails
		id := hex.EncodeToString(b[:])
		if strings.Trim(id[:12], "0123456789") != "" {
			return id
		}
	}
}

// IsHex reports whether s has no other than the digits of ids.
func IsHex(s string) bool { return strings.Trim(s, "0123456789abcdef") == "" }

// An IDMap is the range of ids that --userns-remap gives to containers: 0 in a
// container is UID, GID on the host, and so on. Source: user_namespaces(7).
type IDMap struct{ UID, GID, Size uint32 }

// OverflowID stands for ids that a map does not have; it is the kernel's.
const OverflowID = 65534

// Host gives the host's ids for a container's. ok is false when the map does
// not have them.
func (m *IDMap) Host(uid, gid int) (huid, hgid int, ok bool) {
	if uid < 0 || gid < 0 || uint64(uid) >= uint64(m.Size) || uint64(gid) >= uint64(m.Size) {
		return 0, 0, false
	}
	return uid + int(m.UID), gid + int(m.GID), true
}

// Inside gives a container's ids for the host's, OverflowID for what it does
// not have, as the container itself sees them.
func (m *IDMap) Inside(uid, gid int) (int, int) {
	in := func(id int, first uint32) int {
		if id < int(first) || uint64(id-int(first)) >= uint64(m.Size) {
			return OverflowID
		}
		return id - int(first)
	}
	return in(uid, m.UID), in(gid, m.GID)
}
