package registry

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"machine/agent/fault"
)

// client gives the HTTP client of an endpoint: another one when the host's
// certificates have changed since, so that who adds an authority need not
// restart the agent.
func (c *Client) client(e endpoint) (*http.Client, error) {
	key := fmt.Sprint(e.base.Host, e.insecure)
	certs := c.certsState(e.base.Host)
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.hosts[key]; h != nil {
		if c.certs[key] == certs {
			return h, nil
		}
		h.CloseIdleConnections()
	}
	conf, err := c.tlsConfig(e.base.Host)
	if err != nil {
		return nil, err
	}
	conf.InsecureSkipVerify = e.insecure
	h := &http.Client{
		Transport: &http.Transport{
			Proxy: c.o.Proxy, TLSClientConfig: conf, ForceAttemptHTTP2: true,
			DialContext:         (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
			TLSHandshakeTimeout: 15 * time.Second, ResponseHeaderTimeout: stall,
			MaxIdleConnsPerHost: 8, IdleConnTimeout: 30 * time.Second,
			DisableCompression: true, ReadBufferSize: 128 << 10, WriteBufferSize: 128 << 10, MaxResponseHeaderBytes: 256 << 10,
		},
		CheckRedirect: checkRedirect,
	}
	c.hosts[key], c.certs[key] = h, certs
	return h, nil
}

// certsState tells apart what a host's folder of certificates holds.
func (c *Client) certsState(host string) string {
	list, err := os.ReadDir(filepath.Join(c.o.CertsDir, host))
	if err != nil || strings.Contains(host, "/") || strings.Contains(host, "..") {
		return ""
	}
	var b strings.Builder
	for _, f := range list {
		if st, err := os.Stat(filepath.Join(c.o.CertsDir, host, f.Name())); err == nil {
			fmt.Fprintln(&b, f.Name(), st.Size(), st.ModTime().UnixNano())
		}
	}
	return b.String()
}

// checkRedirect keeps credentials from other hosts and bytes from plain HTTP.
func checkRedirect(r *http.Request, via []*http.Request) error {
	first, last := via[0], via[len(via)-1]
	if len(via) >= 10 {
		return fault.Unavailable.Errorf("stopped after 10 redirects from %s", first.URL.Host)
	}
	if last.URL.Scheme == "https" && r.URL.Scheme != "https" {
		return fault.Forbidden.Errorf("refused a redirect from https://%s to plain HTTP", last.URL.Host)
	}
	for _, v := range via { // once it left the host it stays without
		if v.URL.Host != r.URL.Host || v.URL.Scheme != r.URL.Scheme {
			r.Header.Del("Authorization")
		}
	}
	if r.URL.Host != first.URL.Host {
		r.Header.Del("Authorization")
	}
	return nil
}

// tlsConfig reads a host's folder of certificates.
func (c *Client) tlsConfig(host string) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	dir := filepath.Join(c.o.CertsDir, host)
	if strings.Contains(host, "/") || strings.Contains(host, "..") {
		return conf, nil
	}
	list, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return conf, nil
	}
	if err != nil {
		return nil, fmt.Errorf("certificates of registry %s: %w", host, err)
	}
	for _, f := range list {
		name := filepath.Join(dir, f.Name())
		switch filepath.Ext(name) {
		case ".crt":
			if conf.RootCAs == nil {
				if conf.RootCAs, err = x509.SystemCertPool(); err != nil {
					conf.RootCAs = x509.NewCertPool()
				}
			}
			pem, err := os.ReadFile(name)
			if err != nil {
				return nil, fmt.Errorf("certificates of registry %s: %w", host, err)
			}
			conf.RootCAs.AppendCertsFromPEM(pem)
		case ".cert":
			key := strings.TrimSuffix(name, ".cert") + ".key"
			cert, err := tls.LoadX509KeyPair(name, key)
			if err != nil {
				return nil, fmt.Errorf("client certificate of registry %s: %w", host, err)
			}
			conf.Certificates = append(conf.Certificates, cert)
		}
	}
	return conf, nil
}
