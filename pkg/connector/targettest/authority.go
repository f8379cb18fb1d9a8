// Package targettest is the conformance suite for connectors of package target, with what tests of deployments need: a
// small certification authority, a real nginx, and a process that kills itself in the middle of a deployment.
package targettest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/target"
	"github.com/certctl/certctl/pkg/secretbox"
)

// Authority signs with an intermediate below a root of its own.
type Authority struct {
	Root         *x509.Certificate
	Intermediate *x509.Certificate
	key          crypto.Signer
}

// NewAuthority makes an authority with fresh keys.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	rootKey, interKey := NewKey(t), NewKey(t)
	root := sign(t, authorityTemplate("test root"), nil, rootKey.Public(), rootKey)
	inter := sign(t, authorityTemplate("test intermediate"), root, interKey.Public(), rootKey)
	return &Authority{Root: root, Intermediate: inter, key: interKey}
}

// NewKey makes a P-256 key.
func NewKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return key
}

// Issue makes a key and a certificate for the names, valid for an hour.
func (a *Authority) Issue(t testing.TB, names ...string) target.Material {
	t.Helper()
	now := time.Now()
	return a.IssueFor(t, NewKey(t), now.Add(-time.Minute), now.Add(time.Hour), names...)
}

// IssueFor makes a certificate for a key.
func (a *Authority) IssueFor(t testing.TB, key crypto.Signer, from, to time.Time, names ...string) target.Material {
	t.Helper()
	leaf := sign(t, &x509.Certificate{
		Subject:     pkix.Name{CommonName: names[0]},
		DNSNames:    names,
		NotBefore:   from,
		NotAfter:    to,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a.Intermediate, key.Public(), a.key)
	return target.Material{CertificatePEM: PEM(leaf), ChainPEM: PEM(a.Intermediate), Key: KeyPEM(t, key), Names: names}
}

// PEM encodes certificates.
func PEM(list ...*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range list {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return b.Bytes()
}

// KeyPEM encodes a key as PKCS #8.
func KeyPEM(t testing.TB, key crypto.Signer) secretbox.Secret {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	return secretbox.NewSecret(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
}

func authorityTemplate(name string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

func sign(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	require.NoError(t, err)
	template.SerialNumber = serial
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	require.NoError(t, err)
	c, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return c
}

// Fingerprint gives the fingerprint of the leaf as Served has it.
func Fingerprint(t testing.TB, m target.Material) string {
	t.Helper()
	leaf, _, err := target.ParseChain(m.CertificatePEM)
	require.NoError(t, err)
	return fingerprint(leaf.Raw)
}
