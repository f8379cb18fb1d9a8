package client

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/certctl/certctl/pkg/config"
	"github.com/certctl/certctl/pkg/secretbox"
)

// Settings are the settings of the client. What is not set comes from the data directory of a local server.
type Settings struct {
	URL     string           `env:"CERTCTL_URL" flag:"url" check:"url https" help:"Client: URL of the gateway. Empty: that of the server with the data directory."`
	APIKey  secretbox.Secret `env:"CERTCTL_API_KEY" help:"Client: API key. Empty: that of the data directory, for the server on this host only."`
	CA      string           `env:"CERTCTL_CA" flag:"ca" help:"Client: file with the CA of the gateway's certificate, PEM. Empty: that of the data directory for the server on this host, the system's CAs for others."`
	DataDir string           `env:"CERTCTL_DATA_DIR" envDefault:"./.certctl" flag:"data-dir" help:"Directory for the embedded Postgres, keys and secrets of this installation."`
}

// The files of a data directory that a client reads.
const (
	keyFile = "api-key"
	caFile  = "ca.crt"
	urlFile = "url"
)

const (
	keyVariable     = "CERTCTL_API_KEY"
	keyFileVariable = "CERTCTL_API_KEY_FILE"
	// maxFile bounds what is read of the files of a data directory.
	maxFile = 1 << 20
)

// access is where to go and how to get in.
type access struct {
	// address is host:port.
	address string
	host    string
	url     string
	key     secretbox.Secret
	// keyFrom names the place of the key; empty when there is none.
	keyFrom string
	// ca is PEM; empty: the system's CAs.
	ca []byte
	// caFrom names the place of the CA.
	caFrom string
}

// access finds out from flags, environment and data directory.
func (a *app) access(c *cobra.Command) (access, error) {
	var s Settings
	environ, keyFrom := a.environ(c)
	warnings, err := config.Load(&s, environ, config.Options{Flags: given(c, flagURL, flagCA, flagDataDir), Also: a.cfg.Also})
	for _, w := range warnings {
		c.PrintErrln("warning: " + w)
	}
	if err != nil {
		return access{}, usage(err.Error())
	}
	return s.resolve(keyFrom)
}

func given(c *cobra.Command, names ...string) map[string]string {
	flags := make(map[string]string)
	for _, name := range names {
		if f := c.Flags().Lookup(name); f != nil && f.Changed {
			flags[name] = f.Value.String()
		}
	}
	return flags
}

// environ puts --api-key-file in the place of the variables for the key, and tells where a key would come from.
func (a *app) environ(c *cobra.Command) (environ []string, keyFrom string) {
	path, byFlag := given(c, flagKeyFile)[flagKeyFile]
	for _, kv := range a.cfg.Environ {
		name, val, _ := strings.Cut(kv, "=")
		if name == keyVariable || name == keyFileVariable {
			if byFlag {
				continue
			}
			if val != "" {
				keyFrom = name
			}
		}
		environ = append(environ, kv)
	}
	if byFlag {
		return append(environ, keyFileVariable+"="+path), path
	}
	return environ, keyFrom
}

func (s Settings) resolve(keyFrom string) (access, error) {
	local, err := s.local()
	if err != nil {
		return access{}, err
	}
	ac := access{key: s.APIKey, keyFrom: keyFrom, url: s.URL}
	if s.URL == "" {
		if ac.url, err = s.localURL(); err != nil {
			return access{}, err
		}
	}
	if err := ac.locate(); err != nil {
		return access{}, err
	}
	if ac.key.IsZero() && local {
		if err := s.localKey(&ac); err != nil {
			return access{}, err
		}
	}
	if strings.ContainsFunc(ac.key.Reveal(), func(r rune) bool { return r <= ' ' || r > '~' }) {
		return access{}, usagef("what is in %s is no API key: it has spaces, line breaks or letters that no key has", ac.keyFrom)
	}
	return ac, s.findCA(&ac, local)
}

// local tells whether the server is the one with the data directory, or another one on this host. Only then are the
// directory's key and CA for it: a key is never sent to a host that it is not of.
func (s Settings) local() (bool, error) {
	if s.URL == "" {
		return true, nil
	}
	u, err := url.Parse(s.URL)
	if err != nil {
		return false, usagef("CERTCTL_URL: %v", err)
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil && ip.IsLoopback() || u.Hostname() == "localhost" {
		return true, nil
	}
	known, err := s.read(urlFile)
	return err == nil && strings.TrimSuffix(known, "/") == strings.TrimSuffix(s.URL, "/"), nil
}

// locate cuts the URL into what to dial.
func (ac *access) locate() error {
	u, err := url.Parse(ac.url)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.User != nil {
		return usagef("the URL %q is not right: write https://HOST or https://HOST:PORT", ac.url)
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	ac.host, ac.address = u.Hostname(), net.JoinHostPort(u.Hostname(), port)
	ac.url = "https://" + u.Host
	return nil
}

func (s Settings) localURL() (string, error) {
	text, err := s.read(urlFile)
	if errors.Is(err, fs.ErrNotExist) {
		return "", &Failure{
			Message: fmt.Sprintf("no server is named, and there is none in %s", s.DataDir),
			Hint: "start one here with: certctl serve\n" +
				"or name its data directory with --data-dir, or set CERTCTL_URL, CERTCTL_API_KEY and CERTCTL_CA for one elsewhere",
			Code: exitUsage, cause: err,
		}
	}
	if err != nil {
		return "", s.unreadable(urlFile, err)
	}
	return text, nil
}

// localKey takes the key of the data directory. A server that asks for none has none; whether one elsewhere asks, it says itself.
func (s Settings) localKey(ac *access) error {
	text, err := s.read(keyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return s.unreadable(keyFile, err)
	}
	ac.key, ac.keyFrom = secretbox.NewSecret(text), filepath.Join(s.DataDir, keyFile)
	return nil
}

func (s Settings) findCA(ac *access, local bool) error {
	if s.CA != "" {
		text, err := readBounded(s.CA)
		if err != nil {
			return usagef("the CA cannot be read: %v", err)
		}
		ac.ca, ac.caFrom = []byte(text), s.CA
		return nil
	}
	if !local {
		ac.caFrom = "the system's CAs"
		return nil
	}
	text, err := s.read(caFile)
	if errors.Is(err, fs.ErrNotExist) {
		ac.caFrom = "the system's CAs"
		return nil
	}
	if err != nil {
		return s.unreadable(caFile, err)
	}
	ac.ca, ac.caFrom = []byte(text), filepath.Join(s.DataDir, caFile)
	return nil
}

func (s Settings) unreadable(name string, err error) error {
	return &Failure{
		Message: fmt.Sprintf("%s of the local server cannot be read: %v", filepath.Join(s.DataDir, name), err),
		Hint:    "run this as the user that runs `certctl serve`, or set CERTCTL_URL, CERTCTL_API_KEY and CERTCTL_CA",
		Code:    exitUsage, cause: err,
	}
}

func (s Settings) read(name string) (string, error) {
	return readBounded(filepath.Join(s.DataDir, name))
}

func readBounded(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	if len(b) > maxFile {
		return "", fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	return strings.TrimSpace(string(b)), nil
}
