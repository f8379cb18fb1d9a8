package casimulator

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/disk"
)

const (
	authorityLifetime = 20 * 365 * 24 * time.Hour
	// defaultDays is the validity of certificates that were ordered without one.
	defaultDays = 199
	// serialBytes makes serial numbers of 32 hexadecimal digits.
	serialBytes = 16
)

// authority signs what is ordered.
type authority struct {
	root, intermediate *pair
	wrong              crypto.Signer // whose public key is in certificates for the wrong key
}

// pair is a certificate and its key.
type pair struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func openAuthority(dir string, now time.Time) (*authority, error) {
	root, err := openPair(dir, "root", func(key *ecdsa.PrivateKey) ([]byte, error) {
		t := caTemplate("CA Simulator Root", now)
		return x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	})
	if err != nil {
		return nil, err
	}
	intermediate, err := openPair(dir, "intermediate", func(key *ecdsa.PrivateKey) ([]byte, error) {
		t := caTemplate("CA Simulator Intermediate", now)
		t.MaxPathLenZero = true
		return x509.CreateCertificate(rand.Reader, t, root.certificate, &key.PublicKey, root.key)
	})
	if err != nil {
		return nil, err
	}
	wrong, err := newKey()
	if err != nil {
		return nil, err
	}
	return &authority{root: root, intermediate: intermediate, wrong: wrong}, nil
}

// caTemplate begins well before now, so that a clock that is off by a day certifies nothing older than its CA.
func caTemplate(name string, now time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{CommonName: name, Organization: []string{"CA Simulator, not trusted by anybody"}},
		NotBefore: now.Add(-30 * 24 * time.Hour).Truncate(time.Second), NotAfter: now.Add(authorityLifetime).Truncate(time.Second),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

// openPair reads a certificate and its key, or makes them.
func openPair(dir, name string, create func(*ecdsa.PrivateKey) ([]byte, error)) (*pair, error) {
	path := filepath.Join(dir, name+".pem")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return createPair(path, create)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	p, err := parsePair(b)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return p, nil
}

func createPair(path string, create func(*ecdsa.PrivateKey) ([]byte, error)) (*pair, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	der, err := create(key)
	if err != nil {
		return nil, fmt.Errorf("make certificate %s: %w", path, err)
	}
	private, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	both := append(encodeCertificates(der), private...)
	if err := disk.Write(path, both, 0o600); err != nil {
		return nil, fmt.Errorf("keep %s: %w", path, err)
	}
	return parsePair(both)
}

func parsePair(b []byte) (*pair, error) {
	first, rest := pem.Decode(b)
	second, _ := pem.Decode(rest)
	if first == nil || second == nil {
		return nil, errors.New("there are no certificate and key in PEM")
	}
	certificate, err := x509.ParseCertificate(first.Bytes)
	if err != nil {
		return nil, err
	}
	private, err := x509.ParsePKCS8PrivateKey(second.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := private.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(certificate.PublicKey) {
		return nil, errors.New("certificate and key do not belong together")
	}
	return &pair{certificate: certificate, key: key}, nil
}

func encodeCertificates(ders ...[]byte) []byte {
	var out []byte
	for _, der := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}

// newSerial has always 32 digits: its first bit is 0 and its second 1 (RFC 5280, section 4.1.2.2: positive).
func newSerial() *big.Int {
	b := make([]byte, serialBytes)
	_, _ = rand.Read(b) // never fails
	b[0] = b[0]&0x3f | 0x40
	return new(big.Int).SetBytes(b)
}

func formatSerial(n *big.Int) string { return fmt.Sprintf("%0*X", 2*serialBytes, n) }

func parseSerial(text string) (*big.Int, error) {
	b, err := hex.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("parse serial number: %w", err)
	}
	return new(big.Int).SetBytes(b), nil
}

// defects are what is wrong with a certificate on purpose.
type defects struct{ key, name, early bool }

// sign makes the certificate of a request as of a moment.
func (a *authority) sign(r *request, at time.Time, d defects) ([]byte, error) {
	public, err := r.publicKey()
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	t, err := r.template(at)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	if _, ok := public.(*rsa.PublicKey); ok {
		t.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	if d.key {
		public = a.wrong.Public()
	}
	if d.name {
		t.Subject.CommonName, t.DNSNames = "wrong.example.invalid", []string{"wrong.example.invalid"}
		t.IPAddresses, t.EmailAddresses, t.URIs = nil, nil, nil
	}
	if d.early {
		life := t.NotAfter.Sub(t.NotBefore)
		t.NotBefore = t.NotBefore.Add(7 * 24 * time.Hour)
		t.NotAfter = t.NotBefore.Add(life)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.intermediate.certificate, public, a.intermediate.key)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return der, nil
}

func (r *request) publicKey() (crypto.PublicKey, error) {
	if r.CSR == nil {
		return x509.ParsePKIXPublicKey(r.PublicKey)
	}
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err != nil {
		return nil, err
	}
	return csr.PublicKey, nil
}

func (r *request) template(at time.Time) (*x509.Certificate, error) {
	serial, err := parseSerial(r.Serial)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: r.CommonName},
		NotBefore: at.Truncate(time.Second), BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		DNSNames: r.DNSNames, EmailAddresses: r.Emails,
		PolicyIdentifiers: []asn1.ObjectIdentifier{{2, 23, 140, 1, 2, 2}}, // CA/Browser Forum, organisation validated
	}
	if r.Organization != "" {
		t.Subject.Organization = []string{r.Organization}
	}
	if r.WholeDays {
		t.NotBefore = at.Truncate(24 * time.Hour)
	}
	if !r.NotBefore.IsZero() {
		t.NotBefore = r.NotBefore
	}
	t.NotAfter = r.expires(t.NotBefore)
	for _, text := range r.IPAddresses {
		t.IPAddresses = append(t.IPAddresses, net.ParseIP(text))
	}
	for _, text := range r.URIs {
		u, err := url.Parse(text)
		if err != nil {
			return nil, err
		}
		t.URIs = append(t.URIs, u)
	}
	return t, r.addUsages(t)
}

// expires is the end of a certificate that begins at a time.
func (r *request) expires(begin time.Time) time.Time {
	if !r.NotAfter.IsZero() {
		return r.NotAfter
	}
	days := r.Days
	if days == 0 {
		days = defaultDays
	}
	return begin.Add(time.Duration(days)*24*time.Hour - time.Second)
}

func (r *request) addUsages(t *x509.Certificate) error {
	known := map[string]x509.ExtKeyUsage{
		"1.3.6.1.5.5.7.3.1": x509.ExtKeyUsageServerAuth, "1.3.6.1.5.5.7.3.2": x509.ExtKeyUsageClientAuth,
		"1.3.6.1.5.5.7.3.4": x509.ExtKeyUsageEmailProtection,
	}
	usages := r.ExtKeyUsages
	if len(usages) == 0 {
		usages = []string{"1.3.6.1.5.5.7.3.1"}
	}
	for _, text := range usages {
		if u, ok := known[text]; ok {
			t.ExtKeyUsage = append(t.ExtKeyUsage, u)
			continue
		}
		oid, err := parseOID(text)
		if err != nil {
			return err
		}
		t.UnknownExtKeyUsage = append(t.UnknownExtKeyUsage, oid)
	}
	return nil
}

func parseOID(text string) (asn1.ObjectIdentifier, error) {
	var oid asn1.ObjectIdentifier
	for part := range strings.SplitSeq(text, ".") {
		n, err := strconv.Atoi(part)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("parse object identifier %q: no dotted numbers", text)
		}
		oid = append(oid, n)
	}
	if len(oid) < 2 {
		return nil, fmt.Errorf("parse object identifier %q: too short", text)
	}
	return oid, nil
}
