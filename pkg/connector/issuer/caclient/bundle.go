package caclient

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"github.com/smallstep/pkcs7"

	"github.com/certctl/certctl/pkg/connector/certcheck"
)

// Bundle is what a CA delivered, in whatever form it has: PEM certificates, a PKCS#7 in PEM, DER or bare base64, one
// certificate in DER or bare base64. Certificates keep the order of the CA.
type Bundle []*x509.Certificate

// ParseBundle reads a bundle. Text around PEM blocks is skipped; blocks of other types are refused.
func ParseBundle(body []byte) (Bundle, error) {
	if len(body) > certcheck.MaxBundle {
		return nil, fmt.Errorf("the bundle has %d bytes: the most is %d", len(body), certcheck.MaxBundle)
	}
	certs, err := parseForms(body)
	switch {
	case err != nil:
		return nil, &clippedError{doing: "read the bundle of the CA", err: err}
	case len(certs) == 0:
		return nil, errors.New("the bundle of the CA holds no certificate")
	case len(certs) > certcheck.MaxCertificates:
		return nil, fmt.Errorf("the bundle of the CA holds more than %d certificates", certcheck.MaxCertificates)
	}
	return certs, nil
}

func parseForms(body []byte) ([]*x509.Certificate, error) {
	if bytes.Contains(body, []byte("-----BEGIN ")) {
		return parsePEM(body)
	}
	if der, err := base64.StdEncoding.DecodeString(string(bytes.Join(bytes.Fields(body), nil))); err == nil && len(der) > 0 {
		return parseDER(der)
	}
	return parseDER(body)
}

func parsePEM(body []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		block, rest := pem.Decode(body)
		if block == nil {
			if bytes.Contains(rest, []byte("-----BEGIN ")) {
				return nil, errors.New("a PEM block is broken")
			}
			return out, nil
		}
		body = rest
		switch block.Type {
		case "CERTIFICATE", "X509 CERTIFICATE", "PKCS7", "CMS":
		default:
			return nil, fmt.Errorf("a PEM block is of type %q", clean(block.Type))
		}
		certs, err := parseDER(block.Bytes)
		if err != nil {
			return nil, err
		}
		if out = append(out, certs...); len(out) > certcheck.MaxCertificates {
			return out, nil
		}
	}
}

// parseDER reads one certificate or a PKCS#7.
func parseDER(der []byte) ([]*x509.Certificate, error) {
	c, err := x509.ParseCertificate(der)
	if err == nil {
		return []*x509.Certificate{c}, nil
	}
	p, p7err := pkcs7.Parse(der)
	if p7err != nil {
		return nil, err
	}
	return p.Certificates, nil
}

// Leaf finds the certificate for a key; nil if there is none.
func (b Bundle) Leaf(pub crypto.PublicKey) *x509.Certificate { return b.LeafOf(KeyID(pub)) }

// LeafOf finds the certificate for a key by its KeyID; nil if there is none.
func (b Bundle) LeafOf(keyID string) *x509.Certificate {
	i := slices.IndexFunc(b, func(c *x509.Certificate) bool { return keyID != "" && KeyID(c.PublicKey) == keyID })
	if i < 0 {
		return nil
	}
	return b[i]
}

// Split gives the leaf and the rest as PEM, as issuer.Submission wants them. The leaf is found by its key and not by its
// place; where no certificate has the key, all of them are in leaf, so that certcheck says what is wrong. Self-signed
// certificates (roots) are left out of chain.
func (b Bundle) Split(keyID string) (leaf, chain []byte) {
	l := b.LeafOf(keyID)
	if l == nil {
		return certcheck.EncodePEM(b...), nil
	}
	rest := slices.DeleteFunc(slices.Clone(b), func(c *x509.Certificate) bool { return c.Equal(l) || certcheck.SelfSigned(c) })
	return certcheck.EncodePEM(l), certcheck.EncodePEM(rest...)
}

// KeyID is the SHA-256 of a public key (SubjectPublicKeyInfo) in hex, so that a Ref can say for which key an order is.
// It is empty for a key of a kind that X.509 does not know.
func KeyID(pub crypto.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}
