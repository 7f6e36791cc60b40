package lifecycle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"

	"machine/provision/ssh"
)

// scriptFile is the custom install script's copy in a machine's folder: it may
// hold secrets, and the creation goes on with it later, or on another computer.
const scriptFile = "custom-install"

const maxScript = 1 << 20

// ReadScript reads a custom install script of the user's.
func ReadScript(file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("custom install script: %w", err)
	}
	if len(data) == 0 || len(data) > maxScript {
		return nil, fmt.Errorf("custom install script %s: it has %d bytes, 1 to %d may be", file, len(data), maxScript)
	}
	return data, nil
}

// checkHostname holds a wanted host name to RFC 1123 and the kernel's 64 bytes.
func (c Create) checkHostname() error {
	const label = `[0-9A-Za-z]([0-9A-Za-z-]{0,61}[0-9A-Za-z])?`
	good, _ := regexp.MatchString(`^`+label+`(\.`+label+`)*$`, c.Hostname)
	if c.Hostname != "" && (len(c.Hostname) > 64 || !good) {
		return fmt.Errorf("hostname %q: must be letters, digits, - and ., at most 64", c.Hostname)
	}
	return nil
}

// keepScript copies a custom install script into the machine's folder.
func (m *Manager) keepScript(mc *Machine, script []byte) error {
	file := m.Store.Path("machines", mc.Name, scriptFile)
	if script == nil {
		mc.HostOptions.CustomInstallScript = ""
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if err := os.WriteFile(file, script, 0o600); err != nil {
		return fmt.Errorf("keep the custom install script: %w", err)
	}
	mc.HostOptions.CustomInstallScript = file
	return nil
}

// script is what keepScript kept, nil when there is none.
func (m *Manager) script(mc *Machine) ([]byte, error) {
	if mc.HostOptions.CustomInstallScript == "" {
		return nil, nil
	}
	// By its place and not by the record's path: that is of the computer, and
	// of the name, that the machine was made with.
	data, err := os.ReadFile(m.Store.Path("machines", mc.Name, scriptFile))
	if errors.Is(err, fs.ErrNotExist) { // Rancher's own record names a file of the user's
		data, err = os.ReadFile(mc.HostOptions.CustomInstallScript)
	}
	if err != nil {
		return nil, fmt.Errorf("custom install script of machine %q: %w", mc.Name, err)
	}
	return data, nil
}

// scriptName tells one script from another without showing it.
func scriptName(script []byte) string {
	if script == nil {
		return "none"
	}
	return "sha256:" + ssh.Sum(script)[:12]
}
