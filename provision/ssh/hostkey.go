package ssh

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"
)

// A HostKeyError says that a host has another key than at first contact.
type HostKeyError struct {
	Host, File string
	Got, Want  string // fingerprints; Want is empty for a revoked key
}

func (e *HostKeyError) Error() string {
	if e.Want == "" {
		return fmt.Sprintf("ssh to %s: the host's key %s is revoked in %s", e.Host, e.Got, e.File)
	}
	return fmt.Sprintf("ssh to %s: THE HOST'S KEY HAS CHANGED from %s to %s: another host answers at this address, or it was installed anew. If that is expected, remove %s and try again", e.Host, e.Want, e.Got, e.File)
}

// hostKeys are the keys that may answer for one machine.
type hostKeys struct {
	Config
	known   []ssh.PublicKey
	revoked []ssh.PublicKey
}

func newHostKeys(c Config) (*hostKeys, error) {
	h := &hostKeys{Config: c}
	if c.KnownHosts == "" {
		return nil, errors.New("ssh: no known_hosts file named")
	}
	data, err := os.ReadFile(c.KnownHosts)
	if errors.Is(err, fs.ErrNotExist) {
		return h, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ssh: %w", err)
	}
	for len(data) > 0 {
		marker, hosts, key, _, rest, err := ssh.ParseKnownHosts(data)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			// A line that we cannot read must not turn into trust.
			return nil, fmt.Errorf("ssh: %s: %w", c.KnownHosts, err)
		}
		data = rest
		for _, host := range hosts {
			if host != h.name() && host != "*" {
				continue
			}
			if marker == "revoked" {
				h.revoked = append(h.revoked, key)
			} else if marker == "" {
				h.known = append(h.known, key)
			}
		}
	}
	return h, nil
}

func (h *hostKeys) name() string {
	if h.Alias != "" {
		return h.Alias
	}
	return h.Host
}

// algorithms asks the host for a key of the kind that we know; else a host
// with several keys might show another one.
func (h *hostKeys) algorithms() []string {
	var algos []string
	for _, k := range h.known {
		if k.Type() == ssh.KeyAlgoRSA {
			algos = append(algos, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
		} else {
			algos = append(algos, k.Type())
		}
	}
	if algos == nil {
		algos = []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521,
			ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	}
	return algos
}

// check is the ssh.HostKeyCallback.
func (h *hostKeys) check(_ string, _ net.Addr, key ssh.PublicKey) error {
	wire := key.Marshal()
	for _, k := range h.revoked {
		if bytes.Equal(k.Marshal(), wire) {
			return &HostKeyError{Host: h.Host, File: h.KnownHosts, Got: ssh.FingerprintSHA256(key)}
		}
	}
	for _, k := range h.known {
		if bytes.Equal(k.Marshal(), wire) {
			return nil
		}
	}
	if len(h.known) > 0 {
		return &HostKeyError{h.Host, h.KnownHosts, ssh.FingerprintSHA256(key), ssh.FingerprintSHA256(h.known[0])}
	}
	if err := h.record(key); err != nil {
		return fmt.Errorf("record host key: %w", err)
	}
	if h.Say != nil {
		h.Say("Host key of %s recorded: %s %s", h.name(), key.Type(), ssh.FingerprintSHA256(key))
	}
	return nil
}

func (h *hostKeys) record(key ssh.PublicKey) error {
	if err := os.MkdirAll(filepath.Dir(h.KnownHosts), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(h.KnownHosts, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	line := h.name() + " " + string(ssh.MarshalAuthorizedKey(key))
	_, err = f.WriteString(line)
	return errors.Join(err, f.Sync(), f.Close())
}
