package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"slices"
)

// dialStdio joins stdin and stdout to the engine's socket: the far end of
// DOCKER_HOST=ssh://.
func dialStdio(args []string) int {
	if !slices.Contains(args, "dial-stdio") {
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
