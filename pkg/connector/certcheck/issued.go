package certcheck

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"
)

// Bounds of what is read from a CA.
const (
	MaxBundle       = 256 << 10 // bytes
	MaxCertificates = 16
)

// clockSkew is how far ahead of ours the clock of a CA may be.
const clockSkew = 5 * time.Minute

// Issued is what an issued certificate has to be. Zero fields are not checked, PublicKey and Names always are.
type Issued struct {
	PublicKey    crypto.PublicKey
	Names        Names
	NotAfter     time.Time // the certificate ends then or before
	Now          time.Time // zero: validity against the clock is not checked
	ExtKeyUsages []x509.ExtKeyUsage
	SerialNumber *big.Int
	// Roots are the trust anchors. Without any, the top of the chain in the bundle itself is believed, so that only
	// the inner order of the bundle is checked.
	Roots []*x509.Certificate
}

// Chain is a checked bundle in order.
type Chain struct {
	Leaf          *x509.Certificate
	Intermediates []*x509.Certificate // each signed by the next; the root is not among them
	Root          *x509.Certificate   // nil when the bundle and Roots do not hold it
}

// CertificatePEM gives the leaf.
func (c Chain) CertificatePEM() []byte { return EncodePEM(c.Leaf) }

// ChainPEM gives the intermediates, next to the leaf first, as a TLS server sends them after the leaf.
func (c Chain) ChainPEM() []byte { return EncodePEM(c.Intermediates...) }

// Mismatch says in what an issued certificate differs from what was asked for. What is one of bundle, public key,
// names, validity, key usage, serial number, chain, leaf.
type Mismatch struct {
	What   string
	Detail string
}

func (m *Mismatch) Error() string { return m.What + ": " + m.Detail }

func mismatch(what, format string, a ...any) error {
	return &Mismatch{What: what, Detail: fmt.Sprintf(format, a...)}
}

// CheckIssued reads a PEM bundle in any order, finds the leaf by its public key, orders the chain, verifies its
// signatures, and holds the leaf against what was asked for. Certificates that are not part of the chain are left
// out. The error joins one *Mismatch per difference; errors.As finds the first.
func CheckIssued(bundle []byte, want Issued) (Chain, error) {
	certs, err := ParseBundle(bundle)
	if err != nil {
		return Chain{}, err
	}
	leaf, err := findLeaf(certs, want.PublicKey)
	if err != nil {
		return Chain{}, err
	}
	chain, chainErr := buildChain(leaf, certs, want)
	if err := errors.Join(checkLeaf(leaf, want), chainErr); err != nil {
		return Chain{}, err
	}
	return chain, nil
}

// CheckMade holds a chain against what was asked for that was signed in this process and whose signature was checked there: all of
// CheckIssued but the signatures. A chain that came from elsewhere, be it from the database, is for CheckIssued.
func CheckMade(chain Chain, want Issued) error {
	if !SameKey(chain.Leaf.PublicKey, want.PublicKey) {
		return mismatch("public key", "the certificate is not for the key of the request")
	}
	return checkLeaf(chain.Leaf, want)
}

// ParseBundle reads the certificates of a PEM bundle, each once. Text around the blocks is skipped; a private key
// or any other block is refused, as nobody should have sent it. The error is a *Mismatch.
func ParseBundle(bundle []byte) ([]*x509.Certificate, error) {
	if len(bundle) > MaxBundle {
		return nil, mismatch("bundle", "has %d bytes: the most is %d", len(bundle), MaxBundle)
	}
	var out []*x509.Certificate
	for len(out) <= MaxCertificates {
		block, rest := pem.Decode(bundle)
		if block == nil {
			return out, checkBundleEnd(out, rest)
		}
		bundle = rest
		if block.Type != "CERTIFICATE" {
			return nil, mismatch("bundle", "holds a PEM block of type %q", clip(block.Type))
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, mismatch("bundle", "holds a certificate that cannot be read: %v", err)
		}
		if !slices.ContainsFunc(out, c.Equal) {
			out = append(out, c)
		}
	}
	return nil, mismatch("bundle", "holds more than %d certificates", MaxCertificates)
}

func checkBundleEnd(certs []*x509.Certificate, rest []byte) error {
	switch {
	case bytes.Contains(rest, []byte("-----BEGIN ")):
		return mismatch("bundle", "holds a broken PEM block")
	case len(certs) == 0:
		return mismatch("bundle", "holds no certificate")
	}
	return nil
}

// EncodePEM gives certificates as one PEM bundle.
func EncodePEM(certs ...*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, c := range certs {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return out.Bytes()
}

// SameKey tells whether two public keys are the same.
func SameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(x crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// findLeaf goes by the key: the position in a bundle differs from CA to CA.
func findLeaf(certs []*x509.Certificate, pub crypto.PublicKey) (*x509.Certificate, error) {
	var found []*x509.Certificate
	for _, c := range certs {
		if SameKey(c.PublicKey, pub) {
			found = append(found, c)
		}
	}
	switch len(found) {
	case 0:
		return nil, mismatch("public key", "none of the %d certificates is for the key of the request", len(certs))
	case 1:
		return found[0], nil
	}
	return nil, mismatch("leaf", "%d certificates are for the key of the request", len(found))
}

// checkLeaf joins all differences, so that one look shows what a CA made of the request.
func checkLeaf(leaf *x509.Certificate, want Issued) error {
	return errors.Join(
		checkLeafKind(leaf),
		checkLeafNames(leaf, want.Names),
		checkLeafSubject(leaf, want.Names),
		checkLeafValidity(leaf, want),
		checkLeafUsages(leaf, want.ExtKeyUsages),
		checkLeafSerial(leaf, want.SerialNumber),
	)
}

func checkLeafKind(leaf *x509.Certificate) error {
	if leaf.IsCA {
		return mismatch("leaf", "is a CA certificate")
	}
	return nil
}

func checkLeafNames(leaf *x509.Certificate, want Names) error {
	got, err := parseSANs(leaf.Extensions)
	if err != nil {
		return mismatch("names", "%v", err)
	}
	var all []error
	extra, missing := got.compare(want.sans())
	for _, s := range extra {
		all = append(all, mismatch("names", "%s was not asked for", s))
	}
	for _, s := range missing {
		all = append(all, mismatch("names", "%s was asked for and is not there", s))
	}
	return errors.Join(all...)
}

func checkLeafSubject(leaf *x509.Certificate, want Names) error {
	for _, s := range subjectNames(leaf.Subject) {
		if _, ok := want.canonicalCommonName(s); !ok {
			return mismatch("names", "subject %q was not asked for", clip(s))
		}
	}
	return nil
}

func checkLeafValidity(leaf *x509.Certificate, want Issued) error {
	stamp := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch {
	case !leaf.NotAfter.After(leaf.NotBefore):
		return mismatch("validity", "ends at %s before it begins", stamp(leaf.NotAfter))
	case !want.NotAfter.IsZero() && leaf.NotAfter.After(want.NotAfter):
		return mismatch("validity", "ends at %s, the latest allowed is %s", stamp(leaf.NotAfter), stamp(want.NotAfter))
	case !want.Now.IsZero() && !leaf.NotAfter.After(want.Now):
		return mismatch("validity", "ended already at %s", stamp(leaf.NotAfter))
	case !want.Now.IsZero() && leaf.NotBefore.After(want.Now.Add(clockSkew)):
		return mismatch("validity", "begins only at %s", stamp(leaf.NotBefore))
	}
	return nil
}

func checkLeafUsages(leaf *x509.Certificate, want []x509.ExtKeyUsage) error {
	for _, u := range want {
		if !slices.Contains(leaf.ExtKeyUsage, u) && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny) {
			return mismatch("key usage", "extended key usage %s was asked for and is not there", u)
		}
	}
	return nil
}

// checkLeafSerial holds the serial number against RFC 5280, section 4.1.2.2: positive and at most 20 octets.
func checkLeafSerial(leaf *x509.Certificate, want *big.Int) error {
	const maxBits = 20*8 - 1
	n := leaf.SerialNumber
	switch {
	case n.Sign() <= 0 || n.BitLen() > maxBits:
		return mismatch("serial number", "%s is not positive or longer than 20 octets", n.Text(16))
	case want != nil && n.Cmp(want) != 0:
		return mismatch("serial number", "is %s, asked for was %s", n.Text(16), want.Text(16))
	}
	return nil
}

// buildChain finds the way from leaf to a trust anchor and verifies each signature on it.
func buildChain(leaf *x509.Certificate, certs []*x509.Certificate, want Issued) (Chain, error) {
	anchors := want.Roots
	if len(anchors) == 0 {
		anchors = tops(leaf, certs)
	}
	if len(anchors) == 0 {
		return Chain{}, mismatch("chain", "the bundle does not hold the issuer %q", clip(leaf.Issuer.String()))
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots:         pool(anchors),
		Intermediates: pool(certs),
		CurrentTime:   verifyTime(leaf, want.Now),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return Chain{}, mismatch("chain", "does not lead to a trusted root: %v", err)
	}
	return split(longest(chains), want.Roots), nil
}

// verifyTime is when the chain has to be valid. Validity of the leaf itself has its own check with its own words.
func verifyTime(leaf *x509.Certificate, now time.Time) time.Time {
	if now.Before(leaf.NotBefore) {
		return leaf.NotBefore
	}
	if now.After(leaf.NotAfter) {
		return leaf.NotAfter
	}
	return now
}

// tops gives the CA certificates of a bundle that no other certificate of it has signed.
func tops(leaf *x509.Certificate, certs []*x509.Certificate) []*x509.Certificate {
	return slices.DeleteFunc(slices.Clone(certs), func(c *x509.Certificate) bool {
		return c.Equal(leaf) || !c.IsCA || slices.ContainsFunc(certs, func(p *x509.Certificate) bool {
			return !p.Equal(c) && !SelfSigned(c) && bytes.Equal(p.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(p) == nil
		})
	})
}

// SelfSigned tells whether a certificate is its own issuer.
func SelfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(c) == nil
}

func pool(certs []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

// longest prefers the way with most certificates: servers should send all that clients might need. Among equals,
// the first in a fixed order, so that the same bundle always gives the same chain.
func longest(chains [][]*x509.Certificate) []*x509.Certificate {
	return slices.MaxFunc(chains, func(a, b []*x509.Certificate) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return bytes.Compare(flatten(a), flatten(b))
	})
}

func flatten(chain []*x509.Certificate) []byte {
	var out []byte
	for _, c := range chain {
		out = append(out, c.Raw...)
	}
	return out
}

// split takes the root off the end: clients have it, and TLS servers need not send it (RFC 8446, section 4.4.2). Whether one of
// the anchors has signed itself is for who trusts it to know.
func split(chain, anchors []*x509.Certificate) Chain {
	c := Chain{Leaf: chain[0], Intermediates: chain[1:]}
	last := chain[len(chain)-1]
	own := bytes.Equal(last.RawSubject, last.RawIssuer) && (slices.ContainsFunc(anchors, last.Equal) || SelfSigned(last))
	if len(chain) > 1 && own {
		c.Root, c.Intermediates = last, chain[1:len(chain)-1]
	}
	return c
}
