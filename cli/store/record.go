package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
)

// Version is the config.json schema that we read and write: docker-machine's
// last one.
const Version = 3

// A Record is what config.json keeps of one machine. Field names and order are
// docker-machine's; other programs read them.
type Record struct {
	ConfigVersion int
	Driver        json.RawMessage
	DriverName    string
	HostOptions   HostOptions
	Name          string
}

// HostOptions group what the user asked of the host.
type HostOptions struct {
	Driver        string
	Memory        int
	Disk          int
	EngineOptions EngineOptions
	SwarmOptions  SwarmOptions
	AuthOptions   AuthOptions
	// Rancher's: the script's copy in the machine's folder, and the host's name.
	CustomInstallScript string `json:",omitempty"`
	HostnameOverride    string `json:",omitempty"`
}

// EngineOptions configure the engine.
type EngineOptions struct {
	ArbitraryFlags   []string
	Dns              []string //nolint:staticcheck // docker-machine's key
	GraphDir         string
	Env              []string
	Ipv6             bool
	InsecureRegistry []string
	Labels           []string
	LogLevel         string
	StorageDriver    string
	SelinuxEnabled   bool
	TlsVerify        bool //nolint:staticcheck // docker-machine's key
	RegistryMirror   []string
	InstallURL       string
}

// SwarmOptions are kept for docker-machine; classic swarm itself is gone.
type SwarmOptions struct {
	IsSwarm            bool
	Address            string
	Discovery          string
	Agent              bool
	Master             bool
	Host               string
	Image              string
	Strategy           string
	Heartbeat          int
	Overcommit         float64
	ArbitraryFlags     []string
	ArbitraryJoinFlags []string
	Env                []string
	IsExperimental     bool
}

// AuthOptions say where the certificates are. Paths are absolute; the remote
// ones are empty on disk.
type AuthOptions struct {
	CertDir              string
	CaCertPath           string //nolint:staticcheck // docker-machine's key
	CaPrivateKeyPath     string //nolint:staticcheck // docker-machine's key
	CaCertRemotePath     string //nolint:staticcheck // docker-machine's key
	ServerCertPath       string
	ServerKeyPath        string
	ClientKeyPath        string
	ServerCertRemotePath string
	ServerKeyRemotePath  string
	ClientCertPath       string
	ServerCertSANs       []string
	StorePath            string
}

// ErrFuture is the answer to a config.json of a later schema; it is never
// rewritten (F25).
var ErrFuture = errors.New("config version is from the future -- you should upgrade your Docker Machine client")

// decode reads config.json of any version. migrated tells that data was of an
// older schema and should be kept as config.json.bak before it is replaced.
func decode(data []byte, dir, root string) (rec *Record, migrated bool, err error) {
	var v struct{ ConfigVersion int }
	if err := json.Unmarshal(data, &v); err != nil {
		return nil, false, err
	}
	if v.ConfigVersion > Version {
		return nil, false, fmt.Errorf("Error getting migrated host: %w", ErrFuture) //nolint:staticcheck // docker-machine's words
	}
	rec = &Record{}
	if v.ConfigVersion == 0 {
		err = decodeV0(data, rec, root)
	} else {
		err = json.Unmarshal(data, rec)
	}
	if err != nil {
		return nil, false, err
	}
	if v.ConfigVersion == 1 {
		if err := fromV1(data, rec); err != nil {
			return nil, false, err
		}
	}
	if v.ConfigVersion < Version {
		if rec.Driver, err = withStorePath(rec.Driver, root); err != nil {
			return nil, false, err
		}
		rec.HostOptions.AuthOptions.StorePath = dir
	}
	if rec.DriverName == "" {
		return nil, false, errors.New("config.json names no driver")
	}
	if rec.Name == "" {
		rec.Name = filepath.Base(dir)
	}
	rec.ConfigVersion = Version
	return rec, v.ConfigVersion < Version, nil
}

// decodeV0 nests the flat fields of the first schema.
func decodeV0(data []byte, rec *Record, root string) error {
	var old struct {
		Driver                                json.RawMessage
		DriverName, Name                      string
		StorePath, CaCertPath, PrivateKeyPath string
		ServerCertPath, ServerKeyPath         string
		ClientCertPath, ClientKeyPath         string
		SwarmHost, SwarmDiscovery             string
		SwarmMaster                           bool
		HostOptions                           *HostOptions
	}
	if err := json.Unmarshal(data, &old); err != nil {
		return err
	}
	rec.Driver, rec.DriverName, rec.Name = old.Driver, old.DriverName, old.Name
	if old.HostOptions != nil {
		rec.HostOptions = *old.HostOptions
	}
	a := &rec.HostOptions.AuthOptions
	a.CertDir = filepath.Join(root, "certs")
	a.CaCertPath, a.CaPrivateKeyPath = old.CaCertPath, old.PrivateKeyPath
	a.ServerCertPath, a.ServerKeyPath = old.ServerCertPath, old.ServerKeyPath
	a.ClientCertPath, a.ClientKeyPath = old.ClientCertPath, old.ClientKeyPath
	s := &rec.HostOptions.SwarmOptions
	s.Host, s.Master, s.Discovery = old.SwarmHost, old.SwarmMaster, old.SwarmDiscovery
	return nil
}

// fromV1 moves the CA key's path to its later name.
func fromV1(data []byte, rec *Record) error {
	var old struct {
		StorePath   string
		HostOptions struct {
			AuthOptions struct{ PrivateKeyPath string }
		}
	}
	if err := json.Unmarshal(data, &old); err != nil {
		return err
	}
	a := &rec.HostOptions.AuthOptions
	if a.CaPrivateKeyPath == "" {
		a.CaPrivateKeyPath = old.HostOptions.AuthOptions.PrivateKeyPath
	}
	if a.CertDir == "" && old.StorePath != "" {
		a.CertDir = filepath.Join(filepath.Dir(filepath.Dir(old.StorePath)), "certs")
	}
	return nil
}

func withStorePath(driver json.RawMessage, root string) (json.RawMessage, error) {
	m := map[string]json.RawMessage{}
	if len(driver) > 0 {
		if err := json.Unmarshal(driver, &m); err != nil {
			return nil, fmt.Errorf("driver's part: %w", err)
		}
	}
	if m == nil { // a literal null
		m = map[string]json.RawMessage{}
	}
	raw, err := json.Marshal(root)
	if err != nil {
		return nil, err
	}
	m["StorePath"] = raw
	return json.Marshal(m)
}
