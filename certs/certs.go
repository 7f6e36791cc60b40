// Package certs makes the certificates of machines: one authority, a client
// certificate for the user, a server certificate for each engine. PEM in, PEM
// out; it reads and writes no file.
//
// New keys are ECDSA P-256: making one takes well under a millisecond where
// RSA 2048, docker-machine's choice, takes up to a second, and every TLS 1.2
// client knows them. Keys of docker-machine (RSA, PKCS#1) are read as well.
package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

// Life is how long a certificate is good, docker-machine's 1080 days.
const Life = 1080 * 24 * time.Hour

// Skew is how far NotBefore lies in the past, for hosts whose clock is late.
const Skew = time.Hour

// A Pair is a certificate and its private key, both PEM.
type Pair struct {
	Cert, Key []byte
}

// String keeps the key out of logs.
func (p Pair) String() string { return "[redacted key pair]" }

// NewCA makes an authority for the organisation org.
func NewCA(org string, now time.Time) (Pair, error) {
	tmpl, err := template(org, now)
	if err != nil {
		return Pair{}, err
	}
	tmpl.IsCA, tmpl.BasicConstraintsValid = true, true
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("make CA key: %w", err)
	}
	return sign(tmpl, tmpl, key, key)
}

// Renew returns a new certificate for the same authority: name and key stay, so
// that what the old one signed is good under the new one, and the reverse.
func Renew(ca Pair, now time.Time) (Pair, error) {
	old, key, err := ca.parse()
	if err != nil {
		return Pair{}, fmt.Errorf("read CA: %w", err)
	}
	tmpl, err := template("", now)
	if err != nil {
		return Pair{}, err
	}
	tmpl.RawSubject, tmpl.SubjectKeyId, tmpl.KeyUsage, tmpl.IsCA = old.RawSubject, old.SubjectKeyId, old.KeyUsage, true
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return Pair{}, fmt.Errorf("renew CA: %w", err)
	}
	return Pair{Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), Key: ca.Key}, nil
}

// A Request says what a certificate is for.
type Request struct {
	Org    string
	Server bool     // may prove a server's identity
	Client bool     // may prove a client's identity
	SANs   []string // names and IP addresses of a server
}

// Issue makes a key and a certificate for it, signed by ca.
func Issue(ca Pair, r Request, now time.Time) (Pair, error) {
	caCert, caKey, err := ca.parse()
	if err != nil {
		return Pair{}, fmt.Errorf("read CA: %w", err)
	}
	tmpl, err := template(r.Org, now)
	if err != nil {
		return Pair{}, err
	}
	// A leaf never outlives its authority: clients would refuse the chain.
	if tmpl.NotAfter.After(caCert.NotAfter) {
		tmpl.NotAfter = caCert.NotAfter
	}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	if r.Server {
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if r.Client {
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	for _, san := range r.SANs {
		if ip := net.ParseIP(san); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else if san != "" {
			tmpl.DNSNames = append(tmpl.DNSNames, san)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("make key: %w", err)
	}
	return sign(tmpl, caCert, key, caKey)
}

// Leaf parses the first certificate of a PEM text.
func Leaf(certPEM []byte) (*x509.Certificate, error) {
	for {
		block, rest := pem.Decode(certPEM)
		if block == nil {
			return nil, errors.New("no certificate in the PEM text")
		}
		if block.Type == "CERTIFICATE" {
			return x509.ParseCertificate(block.Bytes)
		}
		certPEM = rest
	}
}

// Check reports why cert is not good at now: not signed by ca, expired, not
// yet valid, not for usage, or without one of the names (for servers).
func Check(caPEM, certPEM []byte, usage x509.ExtKeyUsage, names []string, now time.Time) error {
	leaf, err := Leaf(certPEM)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(caPEM) {
		return errors.New("no certificate in the CA's PEM text")
	}
	opts := x509.VerifyOptions{Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}}
	if _, err := leaf.Verify(opts); err != nil {
		return err
	}
	for _, name := range names {
		if err := leaf.VerifyHostname(name); err != nil {
			return err
		}
	}
	return nil
}

// Stale reports whether two thirds of a certificate's life are over, or it is
// no certificate at all: it is time to renew.
func Stale(certPEM []byte, now time.Time) bool {
	leaf, err := Leaf(certPEM)
	if err != nil {
		return true
	}
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	return now.After(leaf.NotAfter.Add(-life / 3))
}

// Client returns the TLS configuration of a client with the pair's identity
// that trusts ca only. serverName may be empty: then the dialled host counts.
func Client(caPEM []byte, p Pair, serverName string) (*tls.Config, error) {
	pair, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		return nil, fmt.Errorf("client certificate: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(caPEM) {
		return nil, errors.New("CA certificate: no certificate in the PEM text")
	}
	return &tls.Config{
		Certificates: []tls.Certificate{pair},
		RootCAs:      pool,
		ServerName:   serverName,
		MinVersion:   tls.VersionTLS12,
	}, nil
}

// Matches reports whether key belongs to cert.
func (p Pair) Matches() bool {
	_, err := tls.X509KeyPair(p.Cert, p.Key)
	return err == nil
}

func (p Pair) parse() (*x509.Certificate, crypto.Signer, error) {
	pair, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil, nil, err
	}
	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, nil, errors.New("the key cannot sign")
	}
	if !cert.IsCA {
		return nil, nil, errors.New("the certificate is not an authority's")
	}
	return cert, signer, nil
}

func template(org string, now time.Time) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{org}},
		NotBefore:             now.Add(-Skew).UTC(),
		NotAfter:              now.Add(Life).UTC(),
		BasicConstraintsValid: true,
	}, nil
}

func sign(tmpl, parent *x509.Certificate, key *ecdsa.PrivateKey, signer crypto.Signer) (Pair, error) {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		return Pair{}, fmt.Errorf("sign certificate: %w", err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return Pair{}, fmt.Errorf("encode key: %w", err)
	}
	return Pair{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw}),
	}, nil
}
