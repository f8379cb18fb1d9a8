package issuertest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
)

// Lifetime of the certificates that NewRequest asks for.
const Lifetime = 24 * time.Hour

// NewKey makes a key.
func NewKey(t testing.TB, algorithm certcheck.KeyAlgorithm) crypto.Signer {
	t.Helper()
	key, err := newKey(algorithm)
	require.NoError(t, err)
	return key
}

// Names brings DNS names into canonical form; the first is the common name.
func Names(t testing.TB, dnsNames ...string) certcheck.Names {
	t.Helper()
	n, err := certcheck.ParseNames(certcheck.RawNames{CommonName: dnsNames[0], DNSNames: dnsNames})
	require.NoError(t, err)
	return n
}

// NewCSR makes a request for names and checks it as a caller of an issuer would.
func NewCSR(t testing.TB, key crypto.Signer, n certcheck.Names) *x509.CertificateRequest {
	t.Helper()
	csr, err := newCSR(key, n)
	require.NoError(t, err)
	csr, err = certcheck.CheckCSR(csr.Raw, certcheck.Want{Names: n})
	require.NoError(t, err)
	return csr
}

// NewRequest makes a whole order for a TLS server as issuance does it: with serial number and time of the intent.
func NewRequest(t testing.TB, orderID string, key crypto.Signer, n certcheck.Names) issuer.SubmitRequest {
	t.Helper()
	serial, err := issuer.NewSerialNumber()
	require.NoError(t, err)
	return issuer.SubmitRequest{
		OrderID: orderID, CSR: NewCSR(t, key, n), Names: n, Lifetime: Lifetime,
		RequestedAt: time.Now(), SerialNumber: serial,
		ExtKeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
}

func newKey(algorithm certcheck.KeyAlgorithm) (crypto.Signer, error) {
	switch algorithm {
	case certcheck.RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case certcheck.RSA3072:
		return rsa.GenerateKey(rand.Reader, 3072)
	case certcheck.RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	case certcheck.Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case certcheck.ECDSAP384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	default:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
}

func newCSR(key crypto.Signer, n certcheck.Names) (*x509.CertificateRequest, error) {
	urls, err := n.URLs()
	if err != nil {
		return nil, err
	}
	template := &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: n.CommonName},
		DNSNames: n.DNSNames, EmailAddresses: n.EmailAddresses, URIs: urls,
	}
	for _, ip := range n.IPAddresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(ip.AsSlice()))
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificateRequest(der)
}
