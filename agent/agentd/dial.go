package main

import (
	"fmt"
	"io"
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
