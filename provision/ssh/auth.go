package ssh

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// defaultKeys are what ssh tries without -i, in its order.
var defaultKeys = []string{"id_rsa", "id_ecdsa", "id_ed25519"}

// authMethods returns the machine's own key only, or else what the SSH agent
// and the user's home hold. release closes the agent's socket.
func authMethods(c Config) (methods []ssh.AuthMethod, release func(), err error) {
	if c.Key != "" && !c.jump {
		signer, err := readKey(c.Key)
		if err != nil {
			return nil, nil, err
		}
		return []ssh.AuthMethod{ssh.PublicKeys(signer)}, func() {}, nil
	}
	var signers []ssh.Signer
	release = func() {}
	if sock := os.Getenv("SSH_AUTH_SOCK"); sock != "" {
		if conn, err := net.Dial("unix", sock); err == nil {
			release = func() { _ = conn.Close() }
			if s, err := agent.NewClient(conn).Signers(); err == nil {
				signers = append(signers, s...)
			}
		}
	}
	if home, err := os.UserHomeDir(); err == nil {
		for _, name := range defaultKeys {
			if s, err := readKey(filepath.Join(home, ".ssh", name)); err == nil {
				signers = append(signers, s)
			}
		}
	}
	if c.Key != "" {
		if s, err := readKey(c.Key); err == nil {
			signers = append(signers, s)
		}
	}
	if len(signers) == 0 {
		release()
		return nil, nil, &KeyError{"(none given)", fmt.Errorf("no key in the SSH agent and none in ~/.ssh without a passphrase")}
	}
	return []ssh.AuthMethod{ssh.PublicKeys(signers...)}, release, nil
}

// checkMode refuses a key that others may read, as ssh does.
func checkMode(path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	if runtime.GOOS != "windows" && fi.Mode().Perm()&(fs.FileMode(0o077)) != 0 {
		return fmt.Errorf("permissions %#o are too open, it must not be accessible by others: chmod 600", fi.Mode().Perm())
	}
	return nil
}
