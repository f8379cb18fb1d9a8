package seed

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"
)

// sample is one certificate that stands for all: it is of the true size and can be parsed, but its serial number, names and
// fingerprint are not those that the columns beside it say. Making a million signatures would take longer than all the rest.
type sample struct {
	certificate, chain, csr string // PEM
	csrDER                  []byte
}

// issuerDN is that of the local CA.
const issuerDN = "CN=certctl Local CA"

// newSample signs with a CA that is thrown away. Shapes and sizes are those of the local issuer.
func newSample(now time.Time) (sample, error) {
	root, intermediate := x509.Certificate{Subject: pkix.Name{CommonName: "certctl Local CA Root"}}, authority(now)
	names := []string{"payments-000042.commerce.example.com", "www.payments-000042.commerce.example.com"}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), NotBefore: now, NotAfter: now.Add(90 * day), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: names, SubjectKeyId: make([]byte, 20)}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader) // one for all: it is thrown away
	if err != nil {
		return sample{}, fmt.Errorf("make sample key: %w", err)
	}
	chain, err := x509.CreateCertificate(rand.Reader, intermediate, &root, &key.PublicKey, key)
	if err != nil {
		return sample{}, fmt.Errorf("make sample CA: %w", err)
	}
	certificate, err := x509.CreateCertificate(rand.Reader, leaf, intermediate, &key.PublicKey, key)
	if err != nil {
		return sample{}, fmt.Errorf("make sample certificate: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: names}, key)
	if err != nil {
		return sample{}, fmt.Errorf("make sample CSR: %w", err)
	}
	return sample{certificate: block("CERTIFICATE", certificate), chain: block("CERTIFICATE", chain), csr: block("CERTIFICATE REQUEST", csr), csrDER: csr}, nil
}

func authority(now time.Time) *x509.Certificate {
	return &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "certctl Local CA"}, NotBefore: now,
		NotAfter: now.Add(5 * 365 * day), IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: make([]byte, 20)}
}

func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}
