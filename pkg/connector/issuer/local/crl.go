package local

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/certctl/certctl/pkg/connector/issuer"
)

// SignCRL signs a complete v2 CRL (RFC 5280, section 5) of the issuing certificate, with the entries in their order. crypto/x509
// makes all of it but the entries, of which a CRL may have too many to be in memory.
func (i *Issuer) SignCRL(ctx context.Context, r issuer.CRLRequest) (issuer.SignedCRL, error) {
	if err := issuer.NotSent(ctx); err != nil {
		return issuer.SignedCRL{}, err
	}
	if err := checkCRL(r); err != nil {
		return issuer.SignedCRL{}, err
	}
	empty, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: r.Number, ThisUpdate: r.ThisUpdate.UTC(), NextUpdate: r.NextUpdate.UTC(),
	}, i.ca.certificate, i.ca.signer)
	signed := issuer.SignedCRL{Head: empty}
	if err == nil && r.Entries.Size > 0 {
		signed, err = i.around(empty, r.Entries)
	}
	if err != nil {
		return issuer.SignedCRL{}, refuse("CRL_NOT_SIGNED", "the CRL cannot be made", err)
	}
	return signed, nil
}

// around signs a CRL that has none with entries.
func (i *Issuer) around(empty []byte, entries issuer.CRLEntries) (issuer.SignedCRL, error) {
	list, err := x509.ParseRevocationList(empty)
	if err != nil {
		return issuer.SignedCRL{}, err
	}
	head, algorithm, tail, err := cut(list.RawTBSRevocationList)
	if err != nil {
		return issuer.SignedCRL{}, err
	}
	head = append(head, sequenceHeader(entries.Size)...)
	head = append(sequenceHeader(int64(len(head))+entries.Size+int64(len(tail))), head...)
	m := newMessage(hashOf(list.SignatureAlgorithm))
	if err := errors.Join(m.write(head), entries.Write(m), m.write(tail)); err != nil {
		return issuer.SignedCRL{}, err
	}
	if want := int64(len(head)) + entries.Size + int64(len(tail)); m.size != want {
		return issuer.SignedCRL{}, fmt.Errorf("the entries have %d bytes more than they should", m.size-want)
	}
	signature, err := m.sign(i.ca.signer)
	if err != nil {
		return issuer.SignedCRL{}, err
	}
	end := cryptobyte.NewBuilder(tail)
	end.AddBytes(algorithm)
	end.AddASN1BitString(signature)
	tail, err = end.Bytes()
	if err != nil {
		return issuer.SignedCRL{}, err
	}
	return issuer.SignedCRL{Head: append(sequenceHeader(int64(len(head))+entries.Size+int64(len(tail))), head...), Tail: tail}, nil
}

// message is what is signed: its hash as it comes, or all of it where the algorithm has no hash.
type message struct {
	hash   crypto.Hash
	hashed hash.Hash
	whole  bytes.Buffer
	size   int64
}

func newMessage(h crypto.Hash) *message {
	m := &message{hash: h}
	if h != 0 {
		m.hashed = h.New()
	}
	return m
}

// Write implements io.Writer.
func (m *message) Write(b []byte) (int, error) {
	m.size += int64(len(b))
	if m.hashed == nil {
		return m.whole.Write(b) //nolint:wrapcheck // it has no errors
	}
	return m.hashed.Write(b) //nolint:wrapcheck // it has no errors
}

func (m *message) write(b []byte) error {
	_, err := m.Write(b)
	return err
}

// sign signs, and verifies what came of it, as crypto/x509 does.
func (m *message) sign(signer crypto.Signer) ([]byte, error) {
	signed := m.whole.Bytes()
	if m.hashed != nil {
		signed = m.hashed.Sum(nil)
	}
	signature, err := signer.Sign(rand.Reader, signed, m.hash)
	if err != nil {
		return nil, err
	}
	ok := false
	switch key := signer.Public().(type) {
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(key, signed, signature)
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(key, m.hash, signed, signature) == nil
	case ed25519.PublicKey:
		ok = ed25519.Verify(key, signed, signature)
	}
	if !ok {
		return nil, errors.New("the signature is not valid")
	}
	return signature, nil
}

// sequenceHeader is what stands before the content of a SEQUENCE of n bytes in DER (X.690, section 8.1.3).
func sequenceHeader(n int64) []byte {
	const short = 0x80
	if n < short {
		return []byte{byte(cbasn1.SEQUENCE), byte(n)}
	}
	length := bytes.TrimLeft(binary.BigEndian.AppendUint64(nil, uint64(n)), "\x00")
	return append([]byte{byte(cbasn1.SEQUENCE), short | byte(len(length))}, length...)
}

// cut parts the content of a TBSCertList that has no entries where they belong: behind version, signature, issuer and the two
// times, before the extensions. algorithm is the second of them.
func cut(tbs []byte) (head, algorithm, tail []byte, err error) {
	const before = 5
	in := cryptobyte.String(tbs)
	var content, element cryptobyte.String
	if !in.ReadASN1(&content, cbasn1.SEQUENCE) {
		return nil, nil, nil, errors.New("the list is no sequence")
	}
	rest := content
	for n := range before {
		if !rest.ReadAnyASN1Element(&element, nil) {
			return nil, nil, nil, errors.New("the list is too short")
		}
		if n == 1 {
			algorithm = element
		}
	}
	return bytes.Clone(content[:len(content)-len(rest)]), algorithm, bytes.Clone(rest), nil
}

// hashOf is the hash of an algorithm that x509 chooses for a CRL; Ed25519 has none.
func hashOf(a x509.SignatureAlgorithm) crypto.Hash {
	switch a {
	case x509.SHA256WithRSA, x509.ECDSAWithSHA256:
		return crypto.SHA256
	case x509.SHA384WithRSA, x509.ECDSAWithSHA384:
		return crypto.SHA384
	case x509.SHA512WithRSA, x509.ECDSAWithSHA512:
		return crypto.SHA512
	default:
		return crypto.Hash(0)
	}
}

// checkCRL holds number and times against RFC 5280, sections 5.1.2 and 5.2.3.
func checkCRL(r issuer.CRLRequest) error {
	const maxNumberBits = 20*8 - 1
	switch {
	case r.Number == nil || r.Number.Sign() < 0 || r.Number.BitLen() > maxNumberBits:
		return issuer.Permanent("CRL_REFUSED", "a CRL number is not negative and has at most 20 octets")
	case !r.NextUpdate.After(r.ThisUpdate):
		return issuer.Permanent("CRL_REFUSED", "the next update is not after this one")
	}
	return nil
}
