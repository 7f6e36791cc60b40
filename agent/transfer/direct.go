package transfer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"time"
)

const kindMeet = 'M'

// directTimeout bounds the wait for the other host.
const directTimeout = 20 * time.Second

// A Meeting is where one host waits for the other, without this computer
// between them: a port, the hash of a certificate made for this copy only, and
// a word that the caller must say. It travels over SSH, never in arguments.
type Meeting struct {
	Addr  string // host:port; the receiver tells the port only
	Pin   []byte // SHA-256 of the certificate
	Token []byte
}

// Meet reads where a receiver that was ordered to listen waits.
func Meet(r io.Reader) (Meeting, error) {
	kind, payload, err := newWire(r, io.Discard).recv()
	if err != nil {
		return Meeting{}, err
	}
	if kind != kindMeet {
		return Meeting{}, strange(kind)
	}
	var m Meeting
	return m, json.Unmarshal(payload, &m)
}

// listen waits for the sender, and returns the connection with it.
func listen(c *wire) (net.Conn, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.Add(-48 * time.Hour), NotAfter: now.Add(48 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		return nil, err
	}
	defer func() { _ = l.Close() }()
	pin := sha256.Sum256(der)
	m := Meeting{Pin: pin[:], Token: make([]byte, 32)}
	if _, m.Addr, err = net.SplitHostPort(l.Addr().String()); err != nil {
		return nil, err
	}
	_, _ = rand.Read(m.Token)
	data, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(c.send(kindMeet, data), c.flush()); err != nil {
		return nil, err
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	deadline := now.Add(directTimeout)
	_ = l.(*net.TCPListener).SetDeadline(deadline)
	for {
		raw, err := l.Accept()
		if err != nil {
			return nil, fmt.Errorf("the other host does not come: is a firewall between the two? %w", err)
		}
		_ = raw.SetDeadline(deadline)
		conn := tls.Server(raw, conf)
		said := make([]byte, len(m.Token))
		if _, err := io.ReadFull(conn, said); err != nil || subtle.ConstantTimeCompare(said, m.Token) != 1 {
			_ = raw.Close() // somebody else
			continue
		}
		return conn, raw.SetDeadline(time.Time{})
	}
}

// connect goes to the receiver that waits at m.
func connect(m Meeting) (net.Conn, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, //nolint:gosec // the pin is checked instead
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			if len(raw) == 1 {
				if sum := sha256.Sum256(raw[0]); subtle.ConstantTimeCompare(sum[:], m.Pin) == 1 {
					return nil
				}
			}
			return errors.New("the receiving host shows another certificate: somebody is between the two")
		}}
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: directTimeout}, "tcp", m.Addr, conf)
	if err != nil {
		return nil, fmt.Errorf("the receiving host cannot be reached from the sending one (leave --direct out): %w", err)
	}
	if _, err := conn.Write(m.Token); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}
