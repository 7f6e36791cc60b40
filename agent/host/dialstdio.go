package host

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
)

// dockerShim is what the agent does when it is called as docker on a host that
// has no docker client: the one command that DOCKER_HOST=ssh://… needs.
func dockerShim(args []string) int {
	if i := indexOf(args, "system"); i >= 0 && i+1 < len(args) && args[i+1] == "dial-stdio" {
		return fail(dialStdio())
	}
	if len(args) == 1 && (args[0] == "--version" || args[0] == "-v") {
		fmt.Println("docker (machine agent: only `docker system dial-stdio`)")
		return 0
	}
	return fail(errors.New("this host has no docker client, only the engine: use a client on your computer"))
}

func indexOf(list []string, s string) int {
	for i, v := range list {
		if v == s {
			return i
		}
	}
	return -1
}

// dialStdio joins standard input and output with the engine's socket.
func dialStdio() error {
	path := "/var/run/docker.sock"
	if h := os.Getenv("DOCKER_HOST"); strings.HasPrefix(h, "unix://") {
		path = strings.TrimPrefix(h, "unix://")
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	defer func() { _ = conn.Close() }()
	// The engine's end ends us; the client's is passed on as a half-close.
	go func() {
		_, _ = io.Copy(conn, os.Stdin)
		_ = conn.CloseWrite()
	}()
	_, err = io.Copy(os.Stdout, conn)
	return err
}
