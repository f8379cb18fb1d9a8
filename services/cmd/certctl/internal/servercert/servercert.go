// Package servercert gives the gateway a certificate of its own, from an internal CA in the data directory: the CA is made
// once, the certificate anew at each start and long before it ends.
package servercert

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
	"io/fs"
	"math/big"
	"net"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/certctl/certctl/services/cmd/certctl/internal/home"
)

const (
	caKeyFile = "ca.key"
	// caLifetime is long: agents pin the CA. It is replaced when less than caRenewBefore is left.
	caLifetime    = 10 * 365 * 24 * time.Hour
	caRenewBefore = 365 * 24 * time.Hour
	leafLifetime  = 90 * 24 * time.Hour
	backdate      = 5 * time.Minute
	// caWarnBefore is when the log begins to ask for another CA from outside, which nobody renews.
	caWarnBefore = 90 * 24 * time.Hour
	warnEvery    = 24 * time.Hour
	// A certificate that could not be replaced is used, and that is tried again after retryAfter; one that ends with its CA is
	// as good as there can be, and after lookAgain there may be another CA.
	retryAfter = time.Minute
	lookAgain  = time.Hour
)

// Config says what the certificate is for and who signs it.
type Config struct {
	// Names are DNS names and IP addresses besides loopback's.
	Names []string
	// CACertFile and CAKeyFile are a CA from outside, PEM, for replicas that must have the same; empty: one is made.
	CACertFile, CAKeyFile string
}

// Source answers the gateway's certificate; a new one is made when a third of its life is left.
type Source struct {
	dir home.Dir
	cfg Config
	log *zap.Logger
	now func() time.Time

	mu     sync.Mutex
	cert   *tls.Certificate
	next   time.Time // when to look for another one
	caEnd  time.Time
	warned time.Time
}

// New makes or reads the CA.
func New(dir home.Dir, cfg Config, log *zap.Logger, now func() time.Time) (*Source, error) {
	s := &Source{dir: dir, cfg: cfg, log: log, now: now}
	_, err := s.Certificate()
	return s, err
}

// GetCertificate implements the hook of tls.Config.
func (s *Source) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.Certificate()
}

// Certificate answers the current certificate with the CA behind it. One that cannot be replaced is used while it is valid.
func (s *Source) Certificate() (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.warn()
	if s.cert != nil && s.now().Before(s.next) {
		return s.cert, nil
	}
	err := s.renew()
	switch {
	case err == nil:
	case s.cert == nil || !s.now().Before(s.cert.Leaf.NotAfter):
		return nil, err
	default:
		s.log.Error("the gateway's certificate could not be replaced; it is used until it ends", zap.Time("not_after", s.cert.Leaf.NotAfter), zap.Error(err))
		s.next = s.earlier(s.now().Add(retryAfter))
	}
	return s.cert, nil
}

// renew makes a certificate, unless the one that there is lasts as long as its CA.
func (s *Source) renew() error {
	authority := s.authority
	if s.cfg.CACertFile != "" {
		authority = s.given
	}
	ca, key, err := authority()
	if err != nil {
		return err
	}
	if s.cert == nil || !s.cert.Leaf.NotAfter.Equal(ca.NotAfter) || s.cert.Leaf.CheckSignatureFrom(ca) != nil {
		cert, err := s.issue(ca, key)
		if err != nil {
			return err
		}
		s.cert = cert
	}
	s.caEnd = ca.NotAfter
	s.next = s.cert.Leaf.NotAfter.Add(-leafLifetime / 3)
	if !s.now().Before(s.next) { // only another CA gives more
		s.next = s.earlier(s.now().Add(lookAgain))
	}
	return nil
}

// warn tells once a day that the CA ends soon.
func (s *Source) warn() {
	now := s.now()
	if s.caEnd.IsZero() || now.Before(s.caEnd.Add(-caWarnBefore)) || now.Before(s.warned.Add(warnEvery)) {
		return
	}
	s.log.Warn("the CA of the gateway's certificate ends soon: make another, and give it to agents and clients first", zap.Time("not_after", s.caEnd))
	s.warned = now
}

// earlier answers t or the end of the certificate.
func (s *Source) earlier(t time.Time) time.Time {
	if end := s.cert.Leaf.NotAfter; end.Before(t) {
		return end
	}
	return t
}

// given reads a CA from outside.
func (s *Source) given() (*x509.Certificate, crypto.Signer, error) {
	pair, err := tls.LoadX509KeyPair(s.cfg.CACertFile, s.cfg.CAKeyFile)
	if err != nil {
		return nil, nil, fmt.Errorf("read CA of the gateway's certificate (CERTCTL_TLS_CA_CERT_FILE, CERTCTL_TLS_CA_KEY_FILE): %w", err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	switch {
	case !ok:
		return nil, nil, fmt.Errorf("CERTCTL_TLS_CA_KEY_FILE %s is no key that signs: give one of ECDSA, RSA or Ed25519", s.cfg.CAKeyFile)
	case !pair.Leaf.IsCA:
		return nil, nil, fmt.Errorf("CERTCTL_TLS_CA_CERT_FILE %s is no CA: a certificate for the gateway itself belongs in CERTCTL_TLS_CERT_FILE", s.cfg.CACertFile)
	case pair.Leaf.KeyUsage != 0 && pair.Leaf.KeyUsage&x509.KeyUsageCertSign == 0: // without the extension it may (RFC 5280, section 4.2.1.3)
		return nil, nil, fmt.Errorf("CERTCTL_TLS_CA_CERT_FILE %s may not sign certificates: make one with the key usage keyCertSign", s.cfg.CACertFile)
	case s.now().Before(pair.Leaf.NotBefore):
		return nil, nil, fmt.Errorf("CERTCTL_TLS_CA_CERT_FILE %s begins at %s: wait until then, or mend the clock here or where it was made", s.cfg.CACertFile, pair.Leaf.NotBefore.Format(time.RFC3339))
	case !s.now().Before(pair.Leaf.NotAfter):
		return nil, nil, fmt.Errorf("CERTCTL_TLS_CA_CERT_FILE %s ended at %s: make another, and give it to agents and clients", s.cfg.CACertFile, pair.Leaf.NotAfter.Format(time.RFC3339))
	}
	return pair.Leaf, key, nil
}

// authority reads the CA from the directory. One that is missing or about to end is made, with the key that is there: what
// agents have pinned stays valid until its own end.
func (s *Source) authority() (*x509.Certificate, crypto.Signer, error) {
	key, err := s.key()
	if err != nil {
		return nil, nil, err
	}
	b, err := os.ReadFile(s.dir.Path(home.CAFile))
	if errors.Is(err, fs.ErrNotExist) {
		return s.create(key)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read internal CA: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, nil, fmt.Errorf("read internal CA: no PEM in %s", s.dir.Path(home.CAFile))
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("read internal CA %s: %w", s.dir.Path(home.CAFile), err)
	}
	if !key.PublicKey.Equal(ca.PublicKey) {
		return nil, nil, fmt.Errorf("internal CA: %s and %s do not belong together", s.dir.Path(home.CAFile), s.dir.Path(caKeyFile))
	}
	if s.now().After(ca.NotAfter.Add(-caRenewBefore)) {
		return s.create(key)
	}
	return ca, key, nil
}

// key reads the CA's key, or makes it.
func (s *Source) key() (*ecdsa.PrivateKey, error) {
	b, err := os.ReadFile(s.dir.Path(caKeyFile))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(s.dir.Path(home.CAFile)); err == nil {
			return nil, fmt.Errorf("internal CA: %s is there and its key %s is not: put the key back, or remove the certificate "+
				"to have a new CA made, which agents and clients then need", s.dir.Path(home.CAFile), s.dir.Path(caKeyFile))
		}
		return s.makeKey()
	}
	if err != nil {
		return nil, fmt.Errorf("read internal CA's key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("read internal CA's key: no PEM in %s", s.dir.Path(caKeyFile))
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read internal CA's key %s: %w", s.dir.Path(caKeyFile), err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("internal CA: %s is no ECDSA key, as certctl makes it: put its own back; a CA from elsewhere belongs in CERTCTL_TLS_CA_CERT_FILE", s.dir.Path(caKeyFile))
	}
	return key, nil
}

func (s *Source) makeKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make internal CA's key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode internal CA's key: %w", err)
	}
	return key, s.dir.Write(caKeyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

func (s *Source) create(key *ecdsa.PrivateKey) (*x509.Certificate, crypto.Signer, error) {
	template, err := s.template("certctl internal CA", caLifetime)
	if err != nil {
		return nil, nil, err
	}
	template.IsCA, template.BasicConstraintsValid, template.MaxPathLenZero = true, true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("make internal CA: %w", err)
	}
	if err := s.dir.Write(home.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return nil, nil, err
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("read internal CA: %w", err)
	}
	return ca, key, nil
}

func (s *Source) issue(ca *x509.Certificate, caKey crypto.Signer) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make server key: %w", err)
	}
	name := "certctl"
	if ca.Subject.CommonName == name {
		name = "certctl gateway" // OpenSSL takes a certificate whose subject is its issuer for self-signed
	}
	template, err := s.template(name, leafLifetime)
	if err != nil {
		return nil, err
	}
	if template.NotAfter.After(ca.NotAfter) {
		template.NotAfter = ca.NotAfter
	}
	template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	template.DNSNames, template.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	for _, n := range s.cfg.Names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if n != "" {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
	if err != nil {
		return nil, fmt.Errorf("make server certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read server certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, ca.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

func (s *Source) template(name string, lifetime time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make serial: %w", err)
	}
	now := s.now()
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-backdate), NotAfter: now.Add(lifetime)}, nil
}
