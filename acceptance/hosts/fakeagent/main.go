// Command fakeagent stands in for the agent in tests of provisioning: it takes
// the same arguments and answers /_ping and /version, and no more. Its
// version comes from the file FAKEAGENT_VERSION was built with (-X).
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"machine/agent/host"
	"machine/agent/transfer"
)

// version is set by the linker.
var version = "fake-1"

func main() {
	if len(os.Args) > 1 && os.Args[1] == "host" {
		os.Exit(host.Main(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "supervise" {
		os.Exit(host.Supervise(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "copy" && version != "fake-old" {
		os.Exit(transfer.Main(os.Stdin, os.Stdout, os.Stderr))
	}
	if len(os.Args) > 1 && os.Args[1] == "version" {
		_ = json.NewEncoder(os.Stdout).Encode(map[string]string{"Version": version, "GitCommit": "fake", "Arch": runtime.GOARCH})
		return
	}
	if version == "fake-dead" {
		signals := make(chan os.Signal, 1) // starts, and answers nothing
		signal.Notify(signals, syscall.SIGTERM)
		<-signals
		return
	}
	if err := serve(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(args []string) error {
	hosts, opts := parse(args)
	conf, load, err := serverTLS(opts)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("OK")) })
	mux.HandleFunc("/version", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"Version": version, "ApiVersion": "1.51", "Pid": os.Getpid()})
	})
	for _, h := range hosts {
		network, addr, _ := strings.Cut(h, "://")
		if network == "unix" {
			_ = os.Remove(addr)
		}
		l, err := net.Listen(network, addr)
		if err != nil {
			return err
		}
		if network == "tcp" {
			l = tls.NewListener(l, conf)
		}
		go func() { _ = http.Serve(l, mux) }()
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGHUP)
	for s := range signals {
		if s == syscall.SIGTERM {
			return nil
		}
		if err := load(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	return nil
}

// parse reads dockerd's flags; all but --tlsverify have a value.
func parse(args []string) (hosts []string, opts map[string]string) {
	opts = map[string]string{}
	for i := 0; i < len(args); i++ {
		k, v, ok := strings.Cut(strings.TrimPrefix(args[i], "--"), "=")
		if k == "tlsverify" {
			continue
		}
		if !ok && i+1 < len(args) {
			i++
			v = args[i]
		}
		if k == "host" {
			hosts = append(hosts, v)
		}
		opts[k] = v
	}
	return hosts, opts
}

// serverTLS asks clients for a certificate; load reads the server's anew.
func serverTLS(opts map[string]string) (conf *tls.Config, load func() error, err error) {
	ca, err := os.ReadFile(opts["tlscacert"])
	if err != nil {
		return nil, nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	var mu sync.Mutex
	var cert tls.Certificate
	load = func() error {
		c, err := tls.LoadX509KeyPair(opts["tlscert"], opts["tlskey"])
		if err == nil {
			mu.Lock()
			cert = c
			mu.Unlock()
		}
		return err
	}
	conf = &tls.Config{ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			mu.Lock()
			defer mu.Unlock()
			c := cert
			return &c, nil
		}}
	return conf, load, load()
}
