package caclient

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"
)

const (
	connectTimeout = 10 * time.Second
	idleTimeout    = 60 * time.Second
	maxFile        = 1 << 20
)

// material is what the files of the settings held when they were read.
type material struct{ ca, cert, key []byte }

func (m material) equal(o material) bool {
	return bytes.Equal(m.ca, o.ca) && bytes.Equal(m.cert, o.cert) && bytes.Equal(m.key, o.key)
}

// dialler holds the transports for the material that is in use. The files are read before each call: they are small, a
// call is slow, and times of modification do not show every change.
type dialler struct {
	settings Settings
	proxy    func(*http.Request) (*url.URL, error)

	mu   sync.Mutex
	used material
	bad  error           // why the files of now are not used; nil if they are
	keep *http.Transport // for questions: keeps connections
	once *http.Transport // for changes: a new connection each time
}

func newDialler(s Settings) (*dialler, error) {
	d := &dialler{settings: s, proxy: http.ProxyFromEnvironment}
	if s.ProxyURL != "" {
		u, err := url.Parse(s.ProxyURL)
		if err != nil {
			return nil, misconfigured("PROXY_INVALID", "proxy_url", "the address of the proxy is no URL", nil)
		}
		d.proxy = http.ProxyURL(u)
	}
	m, err := s.read()
	if err != nil {
		return nil, err
	}
	config, err := m.tlsConfig()
	if err != nil {
		return nil, err
	}
	d.use(m, config)
	return d, nil
}

// transport gives the one to use now. Files that cannot be read or do not match leave what was used before in use.
func (d *dialler) transport(changes bool) *http.Transport {
	m, readErr := d.settings.read()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bad = readErr
	if readErr == nil && !m.equal(d.used) {
		config, err := m.tlsConfig()
		if d.bad = err; err == nil {
			d.use(m, config)
		}
	}
	if changes {
		return d.once
	}
	return d.keep
}

func (d *dialler) failure() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bad
}

// use switches to new material. Connections of the old are closed, those under way when they fall idle.
func (d *dialler) use(m material, config *tls.Config) {
	if d.keep != nil {
		d.keep.CloseIdleConnections()
	}
	timeout := d.settings.timeout()
	d.used = m
	d.keep = &http.Transport{
		Proxy:                  d.proxy,
		DialContext:            (&net.Dialer{Timeout: min(connectTimeout, timeout)}).DialContext,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    min(connectTimeout, timeout),
		ResponseHeaderTimeout:  timeout,
		IdleConnTimeout:        idleTimeout,
		MaxIdleConnsPerHost:    16,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
		// A map that is not nil keeps HTTP/2 out.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
	d.once = d.keep.Clone()
	d.once.DisableKeepAlives = true
}

func (s Settings) read() (material, error) {
	var m material
	for _, f := range []struct {
		field, path string
		into        *[]byte
	}{{"ca_file", s.CAFile, &m.ca}, {"client_cert_file", s.ClientCertFile, &m.cert}, {"client_key_file", s.ClientKeyFile, &m.key}} {
		if f.path == "" {
			continue
		}
		raw, err := readFile(f.path)
		if err != nil {
			return material{}, misconfigured("FILE_NOT_READABLE", f.field, "the file cannot be read", err)
		}
		*f.into = raw
	}
	return m, nil
}

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a file", path)
	case info.Size() > maxFile:
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	return os.ReadFile(path)
}

func (m material) tlsConfig() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if m.ca != nil {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(m.ca) {
			return nil, misconfigured("CA_FILE_INVALID", "ca_file", "the file holds no certificate in PEM", nil)
		}
	}
	if m.cert != nil {
		pair, err := tls.X509KeyPair(m.cert, m.key)
		if err != nil {
			return nil, misconfigured("CLIENT_CERTIFICATE_INVALID", "client_cert_file", "client_cert_file and client_key_file are no pair", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
