package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
)

// dialStdio joins stdin and stdout to the engine's socket: the far end of
// DOCKER_HOST=ssh://. All else is for the host's docker client, if it has one
// that our link hides.
func dialStdio(argv []string) int {
	if !slices.Contains(argv, "dial-stdio") {
		if client := otherDocker(); client != "" {
			err := syscall.Exec(client, append([]string{"docker"}, argv[1:]...), os.Environ())
			fmt.Fprintln(os.Stderr, "docker:", client, err)
			return 1
		}
		fmt.Fprintln(os.Stderr, "docker: this host has no docker client; only \"docker system dial-stdio\" is here, for DOCKER_HOST=ssh://")
		return 1
	}
	c, err := net.Dial("unix", "/var/run/docker.sock")
	if errors.Is(err, fs.ErrPermission) && os.Getuid() != 0 {
		err = errors.Join(err, asRoot())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "docker:", err)
		return 1
	}
	conn := c.(*net.UnixConn)
	go func() {
		io.Copy(conn, os.Stdin)
		conn.CloseWrite()
	}()
	if _, err := io.Copy(os.Stdout, conn); err != nil {
		return 1
	}
	return 0
}

// asRoot starts this anew by sudo, for the user who provisioned the host: that
// one may become root without a password, and need not be in a group for the
// engine. It returns only when there is no sudo.
func asRoot() error {
	sudo, err := exec.LookPath("sudo")
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return syscall.Exec(sudo, []string{"sudo", "-n", self, "system", "dial-stdio"}, os.Environ())
}

// otherDocker is the first docker of the search path that is not this program.
func otherDocker() string {
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return ""
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		client, err := exec.LookPath(filepath.Join(dir, "docker"))
		if err != nil || !filepath.IsAbs(client) {
			continue
		}
		if fi, err := os.Stat(client); err == nil && !os.SameFile(fi, self) {
			return client
		}
	}
	return ""
}
