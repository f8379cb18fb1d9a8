package local

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"slices"

	"github.com/certctl/certctl/pkg/connector/issuer"
)

// SignCRL signs a complete v2 CRL (RFC 5280, section 5) of the issuing certificate, sorted by serial number. Reason
// unspecified is left out of entries (section 5.3.1), and entries with removeFromCRL are left out as a whole: they have
// a place in delta CRLs only, and mean that the certificate is not revoked any more.
func (i *Issuer) SignCRL(ctx context.Context, r issuer.CRLRequest) ([]byte, error) {
	if err := issuer.NotSent(ctx); err != nil {
		return nil, err
	}
	if err := checkCRL(r); err != nil {
		return nil, err
	}
	entries, err := crlEntries(r.Entries)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number:                    r.Number,
		ThisUpdate:                r.ThisUpdate.UTC(),
		NextUpdate:                r.NextUpdate.UTC(),
		RevokedCertificateEntries: entries,
	}, i.ca.certificate, i.ca.signer)
	if err != nil {
		return nil, refuse("CRL_NOT_SIGNED", "the CRL cannot be made", err)
	}
	return der, nil
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

func crlEntries(in []issuer.CRLEntry) ([]x509.RevocationListEntry, error) {
	out := make([]x509.RevocationListEntry, 0, len(in))
	for _, e := range in {
		if err := issuer.CheckSerial(e.SerialNumber); err != nil {
			return nil, refuse("CRL_REFUSED", "an entry is refused", err)
		}
		if e.Reason == issuer.RemoveFromCRL {
			continue
		}
		if !e.Reason.Valid() {
			return nil, issuer.Permanent("CRL_REFUSED", "serial number %s has %s", issuer.FormatSerial(e.SerialNumber), e.Reason)
		}
		out = append(out, x509.RevocationListEntry{
			SerialNumber: e.SerialNumber, RevocationTime: e.RevokedAt.UTC(), ReasonCode: int(e.Reason),
		})
	}
	slices.SortFunc(out, func(a, b x509.RevocationListEntry) int { return a.SerialNumber.Cmp(b.SerialNumber) })
	if n := firstTwice(out); n != nil {
		return nil, issuer.Permanent("CRL_REFUSED", "serial number %s is there twice", issuer.FormatSerial(n))
	}
	return out, nil
}

// firstTwice finds a serial number that sorted entries hold twice.
func firstTwice(sorted []x509.RevocationListEntry) *big.Int {
	for i := 1; i < len(sorted); i++ {
		if sorted[i].SerialNumber.Cmp(sorted[i-1].SerialNumber) == 0 {
			return sorted[i].SerialNumber
		}
	}
	return nil
}
