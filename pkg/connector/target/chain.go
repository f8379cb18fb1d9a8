package target

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/errs"
)

// Bounds of what comes from a CA.
const (
	maxPEM   = 256 << 10
	maxChain = 16
)

// ParseChain reads a leaf and its intermediates from PEM. The leaf is the first certificate. It does not check that one
// signs the other; see CheckChain. Anything but certificates in PEM is an error; text between them is not.
func ParseChain(data []byte) (leaf *x509.Certificate, chain []*x509.Certificate, err error) {
	list, err := parseCertificates(data)
	if err != nil {
		return nil, nil, err
	}
	if len(list) == 0 {
		return nil, nil, errs.New(errs.Invalid, "CERTIFICATE_UNREADABLE", "there is no certificate in the PEM")
	}
	return list[0], list[1:], nil
}

func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	if len(data) > maxPEM {
		return nil, errs.New(errs.Invalid, "CERTIFICATE_UNREADABLE", "the PEM is longer than %d bytes", maxPEM)
	}
	var list []*x509.Certificate
	for {
		var block *pem.Block
		block, data = pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" || len(list) == maxChain {
			return nil, errs.New(errs.Invalid, "CERTIFICATE_UNREADABLE", "the PEM holds more than %d certificates, or something else", maxChain)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, errs.New(errs.Invalid, "CERTIFICATE_UNREADABLE", "certificate %d cannot be parsed", len(list)+1).Wrap(err)
		}
		list = append(list, c)
	}
	if bytes.Contains(data, []byte("-----BEGIN")) {
		return nil, errs.New(errs.Invalid, "CERTIFICATE_UNREADABLE", "the PEM is damaged behind certificate %d", len(list))
	}
	return list, nil
}

// KeyFits makes sure that a private key in PEM belongs to the certificate. The error never holds any of the key.
func KeyFits(leaf *x509.Certificate, key []byte) error {
	block, err := keyBlock(key)
	if err != nil {
		return err
	}
	return blockFits(leaf, block)
}

func blockFits(leaf *x509.Certificate, block *pem.Block) error {
	signer, err := parseKey(block)
	if err != nil {
		return err
	}
	public, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(leaf.PublicKey) {
		return errs.New(errs.Invalid, "KEY_DOES_NOT_FIT", "the private key does not belong to the certificate")
	}
	return nil
}

// keyBlock finds the one private key. OpenSSL puts the parameters of a curve before it.
func keyBlock(data []byte) (*pem.Block, error) {
	if len(data) > maxPEM {
		return nil, errs.New(errs.Invalid, "KEY_UNREADABLE", "the private key is longer than %d bytes", maxPEM)
	}
	for {
		var block *pem.Block
		block, data = pem.Decode(data)
		if block == nil {
			return nil, errs.New(errs.Invalid, "KEY_UNREADABLE", "there is no private key in the PEM")
		}
		if block.Type != "EC PARAMETERS" {
			return &pem.Block{Type: block.Type, Bytes: block.Bytes}, nil
		}
	}
}

// parseKey drops the parser's error: it could quote the key.
func parseKey(block *pem.Block) (crypto.Signer, error) {
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	}
	signer, ok := key.(crypto.Signer)
	if err != nil || !ok {
		return nil, errs.New(errs.Invalid, "KEY_UNREADABLE", "the private key cannot be read; it must be PKCS #8, SEC 1 or PKCS #1 and not encrypted")
	}
	return signer, nil
}

// CheckChain makes sure that each certificate is signed by the next, and that all are valid at the time.
func CheckChain(leaf *x509.Certificate, chain []*x509.Certificate, now time.Time) error {
	list := append([]*x509.Certificate{leaf}, chain...)
	for i, c := range list {
		if now.Before(c.NotBefore) || now.After(c.NotAfter) {
			return errs.New(errs.Invalid, "CERTIFICATE_NOT_VALID_NOW", "certificate %d of the chain (%s) is valid from %s to %s, and now is %s", i+1,
				c.Subject, c.NotBefore.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
		}
		if i == 0 {
			continue
		}
		err := list[i-1].CheckSignatureFrom(c)
		if err != nil {
			return errs.New(errs.Invalid, "CHAIN_BROKEN", "certificate %d of the chain (%s) did not sign the one before it (%s)", i+1, c.Subject, list[i-1].Subject).Wrap(err)
		}
	}
	return nil
}

// covers tells whether a certificate is good for a name: a DNS name, which may be a wildcard, an address, an e-mail
// address or a URI.
func covers(leaf *x509.Certificate, name string) bool {
	same := func(s string) bool { return strings.EqualFold(s, name) }
	return leaf.VerifyHostname(name) == nil || slices.ContainsFunc(leaf.DNSNames, same) || slices.Contains(leaf.EmailAddresses, name) ||
		slices.ContainsFunc(leaf.URIs, func(u *url.URL) bool { return u.String() == name })
}

// bundle is material that has been checked, in the form in which it is written.
type bundle struct {
	leaf   *x509.Certificate
	chain  []*x509.Certificate
	key    []byte
	prints []string
}

// prepare checks all of the material that can be checked without the host.
func (m Material) prepare(serverName string, now time.Time) (*bundle, error) {
	leaf, chain, err := ParseChain(m.CertificatePEM)
	if err != nil {
		return nil, err
	}
	more, err := parseCertificates(m.ChainPEM)
	if err != nil {
		return nil, err
	}
	chain = append(chain, more...)
	block, err := keyBlock([]byte(m.Key.Reveal()))
	if err != nil {
		return nil, err
	}
	err = blockFits(leaf, block)
	if err != nil {
		return nil, err
	}
	err = CheckChain(leaf, chain, now)
	if err != nil {
		return nil, err
	}
	err = checkNames(leaf, m.Names, serverName)
	if err != nil {
		return nil, err
	}
	return &bundle{leaf: leaf, chain: chain, key: pem.EncodeToMemory(block), prints: fingerprints(append([]*x509.Certificate{leaf}, chain...))}, nil
}

func checkNames(leaf *x509.Certificate, names []string, serverName string) error {
	for _, n := range names {
		if !covers(leaf, n) {
			return errs.New(errs.Invalid, "NAME_NOT_COVERED", "the certificate does not cover %q, which it was asked for", n)
		}
	}
	if serverName != "" && !covers(leaf, serverName) {
		return errs.New(errs.Invalid, "NAME_NOT_COVERED", "the certificate does not cover the endpoint's server name %q; it covers %s",
			serverName, strings.Join(leaf.DNSNames, ", "))
	}
	return nil
}

func fingerprints(list []*x509.Certificate) []string {
	prints := make([]string, len(list))
	for i, c := range list {
		sum := sha256.Sum256(c.Raw)
		prints[i] = hex.EncodeToString(sum[:])
	}
	return prints
}

// encode writes certificates anew, so that no byte that is not a certificate reaches a file.
func encode(list ...*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range list {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a bytes.Buffer does not fail
	}
	return b.Bytes()
}
