package local

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"
	"time"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
)

// Reasons that are about the key and not the certificate.
const (
	reasonKeyMismatch    = "CA_KEY_MISMATCH"
	reasonKeyUnsupported = "CA_KEY_UNSUPPORTED"
)

// CA is a checked issuing certificate with its key and the certificates above it. NewCA, LoadFiles and Material.CA
// make it.
type CA struct {
	certificate *x509.Certificate
	parents     []*x509.Certificate // nearest first, up to and with the self-signed root
	signer      crypto.Signer
}

// NewCA finds the certificate of key among certs and checks that it can issue: it is a CA, may sign certificates and
// CRLs, is valid at now, and has a complete chain up to a self-signed root among certs or roots. The error is an
// *issuer.PermanentError whose reason says which check it was.
func NewCA(certs, roots []*x509.Certificate, key crypto.Signer, now time.Time) (CA, error) {
	i := slices.IndexFunc(certs, func(c *x509.Certificate) bool { return certcheck.SameKey(c.PublicKey, key.Public()) })
	if i < 0 {
		return CA{}, issuer.Misconfigured(reasonKeyMismatch, "the CA key belongs to none of the CA certificates")
	}
	cert := certs[i]
	if err := checkIssuing(cert); err != nil {
		return CA{}, err
	}
	parents, err := findParents(cert, slices.Concat(certs, roots), now)
	if err != nil {
		return CA{}, err
	}
	if err := checkPathLen(parents); err != nil {
		return CA{}, err
	}
	return CA{certificate: cert, parents: parents, signer: key}, nil
}

// Certificate gives the issuing certificate.
func (c CA) Certificate() *x509.Certificate { return c.certificate }

// Chain gives the issuing certificate and those above it, up to the root.
func (c CA) Chain() []*x509.Certificate {
	return append([]*x509.Certificate{c.certificate}, c.parents...)
}

// NotAfter is the end of the certificate in the chain that ends first.
func (c CA) NotAfter() time.Time {
	end := c.certificate.NotAfter
	for _, p := range c.parents {
		if p.NotAfter.Before(end) {
			end = p.NotAfter
		}
	}
	return end
}

// notBefore is the begin of the certificate in the chain that begins last.
func (c CA) notBefore() time.Time {
	begin := c.certificate.NotBefore
	for _, p := range c.parents {
		if p.NotBefore.After(begin) {
			begin = p.NotBefore
		}
	}
	return begin
}

func (c CA) root() *x509.Certificate {
	chain := c.Chain()
	return chain[len(chain)-1]
}

// intermediates is what a TLS server sends after the leaf: all but the root.
func (c CA) intermediates() []*x509.Certificate {
	chain := c.Chain()
	return chain[:len(chain)-1]
}

func checkIssuing(cert *x509.Certificate) error {
	switch {
	case !cert.BasicConstraintsValid || !cert.IsCA:
		return issuer.Misconfigured("CA_NOT_A_CA", "certificate %q is not that of a CA (basicConstraints)", cert.Subject)
	case cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return issuer.Misconfigured("CA_KEY_USAGE", "certificate %q may not sign certificates (keyCertSign is missing)", cert.Subject)
	case cert.KeyUsage&x509.KeyUsageCRLSign == 0:
		return issuer.Misconfigured("CA_KEY_USAGE", "certificate %q may not sign CRLs (cRLSign is missing)", cert.Subject)
	case len(cert.SubjectKeyId) == 0:
		return issuer.Misconfigured("CA_NO_KEY_ID", "certificate %q has no subject key identifier (RFC 5280, 4.2.1.2)", cert.Subject)
	case len(cert.RawSubject) == 0 || len(cert.Subject.Names) == 0:
		return issuer.Misconfigured("CA_NO_SUBJECT", "the CA certificate has an empty subject (RFC 5280, 4.1.2.6)")
	}
	if _, err := certcheck.CheckKey(cert.PublicKey); err != nil {
		return misread(reasonKeyUnsupported, "the CA key cannot be used", err)
	}
	return nil
}

// findParents builds and verifies the chain above cert.
func findParents(cert *x509.Certificate, all []*x509.Certificate, now time.Time) ([]*x509.Certificate, error) {
	roots, others := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range all {
		if certcheck.SelfSigned(c) {
			roots.AddCert(c)
		} else {
			others.AddCert(c)
		}
	}
	chains, err := cert.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: others, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, chainError(cert, err, now)
	}
	shortest := slices.MinFunc(chains, func(a, b []*x509.Certificate) int { return len(a) - len(b) })
	return shortest[1:], nil
}

// chainError says what a user can do about a chain that does not verify.
func chainError(cert *x509.Certificate, err error, now time.Time) error {
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		if now.Before(invalid.Cert.NotBefore) {
			return misread("CA_NOT_YET_VALID", "certificate "+quote(invalid.Cert)+" is not valid yet", err)
		}
		return misread("CA_EXPIRED", "certificate "+quote(invalid.Cert)+" has expired", err)
	}
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		return misread("CA_CHAIN_INCOMPLETE", "the chain of "+quote(cert)+
			" does not lead to a self-signed root: add the missing certificates to the file, or give root_file", err)
	}
	return misread("CA_CHAIN_INVALID", "the chain of "+quote(cert)+" does not verify", err)
}

// checkPathLen makes sure that the CAs above allow a leaf below: of the certificates between parents[i] and the leaf,
// i+1 count (RFC 5280, section 4.2.1.9).
func checkPathLen(parents []*x509.Certificate) error {
	for i, p := range parents {
		limited := p.MaxPathLen > 0 || p.MaxPathLenZero
		if limited && p.MaxPathLen < i+1 {
			return issuer.Misconfigured("CA_PATH_LENGTH", "certificate %q allows %d CAs below it, there are %d",
				p.Subject, p.MaxPathLen, i+1)
		}
	}
	return nil
}

// parseKey reads one unencrypted PEM private key: PKCS #8, SEC 1 or PKCS #1. Causes are left out of the errors: they
// might quote the key.
func parseKey(text []byte) (crypto.Signer, error) {
	for {
		block, rest := pem.Decode(text)
		switch {
		case block == nil:
			return nil, issuer.Misconfigured("CA_KEY_UNREADABLE", "the CA key is not PEM")
		case block.Type == "EC PARAMETERS": // "openssl ecparam -genkey" writes them before the key
			text = rest
		case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "":
			return nil, issuer.Misconfigured("CA_KEY_ENCRYPTED", "the CA key is encrypted with a passphrase: decrypt it first (openssl pkey)")
		case len(bytes.TrimSpace(rest)) > 0:
			return nil, issuer.Misconfigured("CA_KEY_UNREADABLE", "the CA key has something after its first PEM block")
		default:
			return parseKeyDER(block)
		}
	}
}

func parseKeyDER(block *pem.Block) (crypto.Signer, error) {
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		return nil, issuer.Misconfigured("CA_KEY_UNREADABLE", "the CA key is a PEM block of another type: no private key")
	}
	signer, ok := key.(crypto.Signer)
	if err != nil || !ok {
		return nil, issuer.Misconfigured("CA_KEY_UNREADABLE", "the CA key cannot be read: use PKCS #8, SEC 1 or PKCS #1")
	}
	return signer, nil
}

func misread(reason, message string, cause error) error {
	return &issuer.PermanentError{Fault: issuer.FaultConfiguration, Reason: reason, Message: message, Cause: cause}
}

func quote(c *x509.Certificate) string { return `"` + c.Subject.String() + `"` }
