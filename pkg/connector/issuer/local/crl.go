package local

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"errors"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/certctl/certctl/pkg/connector/issuer"
)

// SignCRL signs a complete v2 CRL (RFC 5280, section 5) of the issuing certificate, with the entries in their order. crypto/x509
// makes all of it but the entries, of which a CRL may have too many to have each as a value.
func (i *Issuer) SignCRL(ctx context.Context, r issuer.CRLRequest) ([]byte, error) {
	if err := issuer.NotSent(ctx); err != nil {
		return nil, err
	}
	if err := checkCRL(r); err != nil {
		return nil, err
	}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: r.Number, ThisUpdate: r.ThisUpdate.UTC(), NextUpdate: r.NextUpdate.UTC(),
	}, i.ca.certificate, i.ca.signer)
	if err == nil && r.Entries.Len() > 0 {
		der, err = i.withEntries(der, r.Entries.DER())
	}
	if err != nil {
		return nil, refuse("CRL_NOT_SIGNED", "the CRL cannot be made", err)
	}
	return der, nil
}

// withEntries puts entries into a CRL that has none, and signs it anew. All of it is made in one place, as it may be large: what is
// signed, then what follows it, and at last the header of the whole before it.
func (i *Issuer) withEntries(empty []byte, entries [][]byte) ([]byte, error) {
	list, err := x509.ParseRevocationList(empty)
	if err != nil {
		return nil, err
	}
	head, algorithm, tail, err := cut(list.RawTBSRevocationList)
	if err != nil {
		return nil, err
	}
	size := 2*maxHeader + len(empty) + maxLengths
	for _, part := range entries {
		size += len(part)
	}
	all := cryptobyte.NewBuilder(make([]byte, maxHeader, size))
	all.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(head)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, part := range entries {
				b.AddBytes(part)
			}
		})
		b.AddBytes(tail)
	})
	signed, err := all.Bytes()
	if err != nil {
		return nil, err
	}
	signature, err := crypto.SignMessage(i.ca.signer, rand.Reader, signed[maxHeader:], hashOf(list.SignatureAlgorithm))
	if err != nil {
		return nil, err
	}
	if err := i.ca.certificate.CheckSignature(list.SignatureAlgorithm, signed[maxHeader:], signature); err != nil {
		return nil, err
	}
	all.AddBytes(algorithm)
	all.AddASN1BitString(signature)
	out, err := all.Bytes()
	if err != nil {
		return nil, err
	}
	header := sequenceHeader(len(out) - maxHeader)
	start := maxHeader - len(header)
	copy(out[start:], header)
	return out[start:], nil
}

// maxLengths is more than the lengths take that are longer with entries.
const maxLengths = 64

// maxHeader is the most that sequenceHeader gives.
const maxHeader = 2 + 8

// sequenceHeader is what stands before the content of a SEQUENCE of n bytes in DER (X.690, section 8.1.3).
func sequenceHeader(n int) []byte {
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
	return content[:len(content)-len(rest)], algorithm, rest, nil
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
