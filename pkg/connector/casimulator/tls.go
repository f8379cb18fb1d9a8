package casimulator

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/certctl/certctl/pkg/disk"
	"github.com/certctl/certctl/pkg/run"
)

const (
	transportLifetime = 825 * 24 * time.Hour
	drainTime         = 2 * time.Second
	headerTime        = 10 * time.Second
)

// transport is the simulator's own HTTPS: a server certificate, and client certificates that it accepts.
type transport struct {
	dir    string
	now    func() time.Time
	server *pair // CA of the server's certificate
	client *pair // CA of client certificates

	mu      sync.Mutex
	current *pair // the one client certificate that is accepted
}

func openTransport(dir string, now func() time.Time) (*transport, error) {
	t := &transport{dir: dir, now: now}
	var err error
	for name, into := range map[string]**pair{"server-ca": &t.server, "client-ca": &t.client} {
		*into, err = openPair(dir, name, func(key *ecdsa.PrivateKey) ([]byte, error) {
			c := caTemplate("CA Simulator "+name, now())
			return x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
		})
		if err != nil {
			return nil, err
		}
	}
	if err := disk.Write(t.caFile(), encodeCertificates(t.server.certificate.Raw), 0o600); err != nil {
		return nil, fmt.Errorf("keep CA of the server: %w", err)
	}
	t.current, err = openPair(dir, "client", t.createClient)
	if err != nil {
		return nil, err
	}
	return t, t.writeClient()
}

func (t *transport) caFile() string { return filepath.Join(t.dir, "ca.pem") }

func (t *transport) clientFiles() (certificate, key string) {
	return filepath.Join(t.dir, "client-cert.pem"), filepath.Join(t.dir, "client-key.pem")
}

func (t *transport) createClient(key *ecdsa.PrivateKey) ([]byte, error) {
	c := leafTemplate("certctl at the CA simulator", t.now())
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return x509.CreateCertificate(rand.Reader, c, t.client.certificate, &key.PublicKey, t.client.key)
}

func leafTemplate(name string, now time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true,
		NotBefore: now.Add(-time.Hour).Truncate(time.Second), NotAfter: now.Add(transportLifetime).Truncate(time.Second),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
}

// writeClient puts certificate and key where clients read them, in two files. The key comes first: who reads
// between the two has a pair that does not match and reads again.
func (t *transport) writeClient() error {
	certificate, key := t.clientFiles()
	both, err := encodeKey(t.current.key)
	if err == nil {
		err = disk.Write(key, both, 0o600)
	}
	if err == nil {
		err = disk.Write(certificate, encodeCertificates(t.current.certificate.Raw), 0o600)
	}
	if err != nil {
		return fmt.Errorf("keep client certificate: %w", err)
	}
	return nil
}

// rotate makes another client certificate and refuses the one before it.
func (t *transport) rotate() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	next, err := createPair(filepath.Join(t.dir, "client.pem"), t.createClient)
	if err != nil {
		return err
	}
	t.current = next
	return t.writeClient()
}

// accepts says whether a certificate is the one client certificate of now.
func (t *transport) accepts(c *x509.Certificate) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return c.Equal(t.current.certificate)
}

// CAFile is the PEM of the CA of the simulator's own HTTPS certificate.
func (s *Simulator) CAFile() string { return s.transport.caFile() }

// ClientCertificate is the pair of files that the simulator accepts.
func (s *Simulator) ClientCertificate() (certFile, keyFile string) { return s.transport.clientFiles() }

// RotateClientCertificate writes a new pair into the files and refuses the old one from now on.
func (s *Simulator) RotateClientCertificate() error { return s.transport.rotate() }

// TLSConfig is for servers under test of the caller's own. It speaks HTTP/1.1 only, so that a cut connection is one.
func (s *Simulator) TLSConfig(hosts ...string) (*tls.Config, error) {
	certificate, err := s.transport.serverCertificate(hosts)
	if err != nil {
		return nil, err
	}
	clients := x509.NewCertPool()
	clients.AddCert(s.transport.client.certificate)
	return &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate}, NextProtos: []string{"http/1.1"},
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: clients,
		SessionTicketsDisabled: true, // a resumed session would bring back a client certificate that is refused by now
		VerifyConnection:       s.verifyConnection,
	}, nil
}

func (s *Simulator) verifyConnection(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return nil
	}
	if _, ok := s.faults.take("", "", subject{}, MTLSRefused); ok {
		return errors.New("client certificate refused: the scenario says so")
	}
	if !s.transport.accepts(state.PeerCertificates[0]) {
		s.record.violate(Violation{At: s.now(), Message: "client certificate that was replaced, or never made here"})
		return errors.New("client certificate refused: it is not the current one")
	}
	return nil
}

func (t *transport) serverCertificate(hosts []string) (tls.Certificate, error) {
	key, err := newKey()
	if err != nil {
		return tls.Certificate{}, err
	}
	c := leafTemplate("CA simulator", t.now())
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	c.DNSNames = []string{"localhost"}
	c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else if h != "" {
			c.DNSNames = append(c.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, t.server.certificate, &key.PublicKey, t.server.key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make server certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der, t.server.certificate.Raw}, PrivateKey: key}, nil
}

// Listen says where a simulator is served.
type Listen struct {
	// Address is of the CAs, HTTPS.
	Address string
	// ControlAddress is of the control API, plain HTTP without any authentication, which belongs on loopback. It is also
	// at the CAs' address if that is a loopback address, and only there if this is empty.
	ControlAddress string
	// Hosts are names and addresses of the server certificate besides localhost and the loopback addresses.
	Hosts []string
}

// Addresses are where a simulator listens, as host:port.
type Addresses struct{ CAs, Control string }

// URL of a CA, to which its own path is added, such as https://127.0.0.1:9700/digicert.
func (a Addresses) URL(ca string) string { return "https://" + a.CAs + "/" + ca }

// Start serves in the background until the context ends or Close is called.
func (s *Simulator) Start(ctx context.Context, l Listen) (Addresses, error) {
	host, _, _ := net.SplitHostPort(l.Address)
	config, err := s.TLSConfig(append([]string{host}, l.Hosts...)...)
	if err != nil {
		return Addresses{}, fmt.Errorf("start CA simulator: %w", err)
	}
	var lc net.ListenConfig
	cas, err := lc.Listen(ctx, "tcp", l.Address)
	if err != nil {
		return Addresses{}, fmt.Errorf("start CA simulator: %w", err)
	}
	handler := s.handler
	if !loopback(cas.Addr()) {
		handler = s.routes(false)
	}
	at := Addresses{CAs: cas.Addr().String()}
	var control net.Listener
	if l.ControlAddress != "" {
		if control, err = lc.Listen(ctx, "tcp", l.ControlAddress); err != nil {
			return Addresses{}, errors.Join(fmt.Errorf("start control API: %w", err), cas.Close())
		}
		at.Control = control.Addr().String()
	}
	s.group = run.NewGroup(ctx, run.Config{})
	serve(s.group, "cas", tls.NewListener(cas, config), handler)
	if control != nil {
		serve(s.group, "control", control, s.controlHandler())
	}
	return at, nil
}

// loopback tells whether nobody but this machine reaches an address.
func loopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// Wait returns when what Start began has ended.
func (s *Simulator) Wait() error {
	if s.group == nil {
		return nil
	}
	return s.group.Wait()
}

// serve ends requests that hang with the group's context, and gives the others a moment.
func serve(group *run.Group, name string, l net.Listener, h http.Handler) {
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: headerTime, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		BaseContext: func(net.Listener) context.Context { return group.Context() },
	}
	group.Go(name, func(context.Context) error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve %s: %w", name, err)
		}
		return nil
	})
	group.Go(name+" end", func(ctx context.Context) error {
		<-ctx.Done()
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		if server.Shutdown(bounded) != nil {
			return server.Close()
		}
		return nil
	})
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return key, nil
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
