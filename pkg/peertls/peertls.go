// Package peertls encrypts the connections between the services of one installation, without certificates to hand out:
// each process derives the same CA from the internal secret and makes itself a certificate from it. A certificate here
// only proves that the other side knows the secret and which service it is; callers prove who they are by bearer token.
//
// The internal secret may be a list (secretbox.Secret.List): a server has a certificate from the CA of the first, a client
// trusts the CAs of all.
package peertls

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"time"

	"github.com/certctl/certctl/pkg/secretbox"
)

// The CA must come out the same in every process, so its dates are fixed.
var (
	notBefore = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	notAfter  = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
)

// Name is the DNS name in a service's certificate.
func Name(service string) string { return service + ".certctl.internal" }

// Server is the TLS of a service's listener.
func Server(secret secretbox.Secret, service string) (*tls.Config, error) {
	secrets, err := secret.InternalList()
	if err != nil {
		return nil, err
	}
	ca, key, err := authority(secrets[0])
	if err != nil {
		return nil, err
	}
	leaf, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make serial: %w", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: Name(service)}, DNSNames: []string{Name(service)},
		NotBefore: notBefore, NotAfter: notAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, leaf.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: leaf}}}, nil
}

// Client is the TLS of a connection to a service.
func Client(secret secretbox.Secret, service string) (*tls.Config, error) {
	secrets, err := secret.InternalList()
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	for _, s := range secrets {
		ca, _, err := authority(s)
		if err != nil {
			return nil, err
		}
		roots.AddCert(ca)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: Name(service)}, nil
}

// authority derives the CA. Ed25519 signatures are deterministic (RFC 8032), so the certificate is too.
func authority(secret secretbox.Secret) (*x509.Certificate, ed25519.PrivateKey, error) {
	seed, err := hkdf.Key(sha256.New, []byte(secret.Reveal()), nil, "certctl internal CA v1", ed25519.SeedSize)
	if err != nil {
		return nil, nil, fmt.Errorf("derive key: %w", err)
	}
	key := ed25519.NewKeyFromSeed(seed)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "certctl internal"}, NotBefore: notBefore, NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("make CA: %w", err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("read CA: %w", err)
	}
	return ca, key, nil
}
