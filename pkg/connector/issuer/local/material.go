package local

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"time"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/secretbox"
)

// Validity of self-made CA certificates.
const (
	rootYears         = 10
	intermediateYears = 5
)

// DefaultCommonName is the name of a self-made CA whose settings give none.
const DefaultCommonName = "certctl Local CA"

// Subject is what a self-made CA is called. The root has " Root" after the common name.
type Subject struct {
	CommonName   string // default DefaultCommonName
	Organization string
	Country      string // ISO 3166, two letters
}

// Material is a self-made CA: what has to be stored, encrypted, before the CA is used for the first time, so that it
// is the same CA after each restart. The root's key serves to renew the intermediate (RenewIntermediate) only.
type Material struct {
	RootPEM         []byte
	RootKey         secretbox.Secret // PKCS #8, PEM
	IntermediatePEM []byte
	IntermediateKey secretbox.Secret // PKCS #8, PEM
}

// storedMaterial is Material as text. It exists inside of Encode and DecodeMaterial only, as it shows the keys.
type storedMaterial struct {
	Version         int    `json:"version"`
	RootPEM         string `json:"root_certificate"`
	RootKey         string `json:"root_key"`
	IntermediatePEM string `json:"intermediate_certificate"`
	IntermediateKey string `json:"intermediate_key"`
}

// materialVersion is raised when storedMaterial changes its meaning.
const materialVersion = 1

// Generate makes a new CA: a root of 10 years and an intermediate of 5 years that can have no CA below it, both with
// ECDSA P-256 keys.
func Generate(s Subject, now time.Time) (Material, error) {
	key, err := newKey()
	if err != nil {
		return Material{}, err
	}
	template, err := caTemplate(s.name(" Root"), now, rootYears)
	if err != nil {
		return Material{}, err
	}
	root, err := signCA(template, template, key.Public(), key)
	if err != nil {
		return Material{}, fmt.Errorf("make root certificate: %w", err)
	}
	return newIntermediate(root, key, s.name(""), now)
}

// RenewIntermediate makes a new certificate for the intermediate, below the same root: same key, subject and subject key
// identifier, another serial number, 5 years from now or to the root's end. Because name and key stay, each certificate
// that was issued before verifies with the new intermediate too, and one CRL serves them all (RFC 5280, section 5.1.2.3
// and 5.2.1: it names its issuer and the key). An intermediate that has expired already can be renewed; a root cannot.
func RenewIntermediate(m Material, now time.Time) (Material, error) {
	root, rootKey, err := parsePair(m.RootPEM, m.RootKey)
	if err != nil {
		return Material{}, fmt.Errorf("read root: %w", err)
	}
	old, key, err := parsePair(m.IntermediatePEM, m.IntermediateKey)
	if err != nil {
		return Material{}, fmt.Errorf("read intermediate: %w", err)
	}
	if !root.NotAfter.After(now) {
		return Material{}, misread("CA_EXPIRED", "the root "+quote(root)+" has expired: make a new issuer", nil)
	}
	return signIntermediate(root, rootKey, intermediate{name: old.Subject, key: key, keyID: old.SubjectKeyId}, now)
}

// Renewal is how a self-made CA stands.
type Renewal struct {
	// Due: the intermediate has less left than it should, and a new one would end later.
	Due bool
	// Short: it has less left than it should and a new one would not help, because the root ends too soon.
	Short bool
	// NotAfter is the end of the intermediate.
	NotAfter time.Time
}

// Renewal tells whether it is time for RenewIntermediate: when less is left than a third of the intermediate's life, or
// than need, which is the longest that a certificate below it should live. As no certificate outlives its issuer, one
// asked for later would be cut short. An intermediate is renewed for no less than a twentieth of its life, so that a need
// that it can never meet does not renew it each time somebody looks.
func (m Material) Renewal(now time.Time, need time.Duration) (Renewal, error) {
	certs, err := certcheck.ParseBundle(m.IntermediatePEM)
	if err != nil {
		return Renewal{}, misread("CA_CERTIFICATE_UNREADABLE", "the intermediate certificate cannot be read", err)
	}
	roots, err := certcheck.ParseBundle(m.RootPEM)
	if err != nil {
		return Renewal{}, misread("CA_CERTIFICATE_UNREADABLE", "the root certificate cannot be read", err)
	}
	cert, end := certs[0], roots[0].NotAfter
	life := intermediateEnd(now, end).Sub(now)
	gain := intermediateEnd(now, end).Sub(cert.NotAfter)
	wanted := gain >= life/20 || gain > 0 && intermediateEnd(now, end).Equal(end)
	low := cert.NotAfter.Sub(now) < max(cert.NotAfter.Sub(cert.NotBefore)/3, need)
	return Renewal{Due: low && wanted, Short: low && !end.After(cert.NotAfter), NotAfter: cert.NotAfter}, nil
}

// intermediateEnd is the end of an intermediate that is made now below a root.
func intermediateEnd(now, rootEnd time.Time) time.Time {
	return earliest(now.UTC().Truncate(time.Second).AddDate(intermediateYears, 0, 0), rootEnd)
}

// Encode gives the material as one secret, to be stored encrypted.
func (m Material) Encode() (secretbox.Secret, error) {
	text, err := json.Marshal(storedMaterial{
		Version: materialVersion,
		RootPEM: string(m.RootPEM), RootKey: m.RootKey.Reveal(),
		IntermediatePEM: string(m.IntermediatePEM), IntermediateKey: m.IntermediateKey.Reveal(),
	})
	if err != nil {
		return secretbox.Secret{}, fmt.Errorf("encode CA material: %w", err)
	}
	return secretbox.NewSecret(string(text)), nil
}

// DecodeMaterial reads what Encode gave.
func DecodeMaterial(s secretbox.Secret) (Material, error) {
	var m storedMaterial
	// The decoder's error may quote the text, which is secret.
	if json.Unmarshal([]byte(s.Reveal()), &m) != nil || m.Version != materialVersion {
		return Material{}, issuer.Misconfigured("CA_MATERIAL_UNREADABLE", "the stored keys of the local CA cannot be read")
	}
	return Material{
		RootPEM: []byte(m.RootPEM), RootKey: secretbox.NewSecret(m.RootKey),
		IntermediatePEM: []byte(m.IntermediatePEM), IntermediateKey: secretbox.NewSecret(m.IntermediateKey),
	}, nil
}

// CA checks the material and makes it ready to sign.
func (m Material) CA(now time.Time) (CA, error) {
	roots, err := certcheck.ParseBundle(m.RootPEM)
	if err != nil {
		return CA{}, misread("CA_CERTIFICATE_UNREADABLE", "the root certificate cannot be read", err)
	}
	certs, err := certcheck.ParseBundle(m.IntermediatePEM)
	if err != nil {
		return CA{}, misread("CA_CERTIFICATE_UNREADABLE", "the intermediate certificate cannot be read", err)
	}
	key, err := parseKey([]byte(m.IntermediateKey.Reveal()))
	if err != nil {
		return CA{}, err
	}
	return NewCA(certs, roots, key, now)
}

func (s Subject) name(suffix string) pkix.Name {
	n := pkix.Name{CommonName: s.CommonName}
	if n.CommonName == "" {
		n.CommonName = DefaultCommonName
	}
	n.CommonName += suffix
	if s.Organization != "" {
		n.Organization = []string{s.Organization}
	}
	if s.Country != "" {
		n.Country = []string{s.Country}
	}
	return n
}

// intermediate is what stays of one from certificate to certificate.
type intermediate struct {
	name  pkix.Name
	key   crypto.Signer
	keyID []byte // nil: made of the key
}

func newIntermediate(root *x509.Certificate, rootKey crypto.Signer, name pkix.Name, now time.Time) (Material, error) {
	key, err := newKey()
	if err != nil {
		return Material{}, err
	}
	return signIntermediate(root, rootKey, intermediate{name: name, key: key}, now)
}

func signIntermediate(root *x509.Certificate, rootKey crypto.Signer, i intermediate, now time.Time) (Material, error) {
	template, err := caTemplate(i.name, now, intermediateYears)
	if err != nil {
		return Material{}, err
	}
	template.MaxPathLenZero = true
	template.SubjectKeyId = i.keyID
	template.NotAfter = intermediateEnd(now, root.NotAfter)
	cert, err := signCA(template, root, i.key.Public(), rootKey)
	if err != nil {
		return Material{}, fmt.Errorf("make intermediate certificate: %w", err)
	}
	return newMaterial(root, rootKey, cert, i.key)
}

func newMaterial(root *x509.Certificate, rootKey crypto.Signer, cert *x509.Certificate, key crypto.Signer) (Material, error) {
	rootPEM, err := encodeKey(rootKey)
	if err != nil {
		return Material{}, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return Material{}, err
	}
	return Material{
		RootPEM: certcheck.EncodePEM(root), RootKey: rootPEM,
		IntermediatePEM: certcheck.EncodePEM(cert), IntermediateKey: keyPEM,
	}, nil
}

// caTemplate is a CA certificate by RFC 5280, section 4.2.1: basicConstraints critical, keyCertSign and cRLSign.
func caTemplate(name pkix.Name, now time.Time, years int) (*x509.Certificate, error) {
	serial, err := issuer.NewSerialNumber()
	if err != nil {
		return nil, err
	}
	now = now.UTC().Truncate(time.Second)
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               name,
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.AddDate(years, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}, nil
}

func signCA(template, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make CA key: %w", err)
	}
	return key, nil
}

func encodeKey(key crypto.Signer) (secretbox.Secret, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return secretbox.Secret{}, fmt.Errorf("encode CA key: %w", err)
	}
	return secretbox.NewSecret(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))), nil
}

func parsePair(certPEM []byte, keyPEM secretbox.Secret) (*x509.Certificate, crypto.Signer, error) {
	certs, err := certcheck.ParseBundle(certPEM)
	if err != nil {
		return nil, nil, err
	}
	key, err := parseKey([]byte(keyPEM.Reveal()))
	if err != nil {
		return nil, nil, err
	}
	if !certcheck.SameKey(certs[0].PublicKey, key.Public()) {
		return nil, nil, issuer.Misconfigured(reasonKeyMismatch, "the key is not that of the certificate")
	}
	return certs[0], key, nil
}
