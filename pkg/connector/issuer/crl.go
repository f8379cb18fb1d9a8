package issuer

import (
	"fmt"
	"io"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// CRLEntry is one revoked certificate.
type CRLEntry struct {
	SerialNumber *big.Int
	RevokedAt    time.Time
	Reason       Reason
}

// AppendDER adds an entry to b as revokedCertificates holds it (RFC 5280, section 5.1), up to 50 bytes. Reason unspecified is left out
// (section 5.3.1), and an entry with removeFromCRL as a whole: it has a place in delta CRLs only, and means that the certificate is not
// revoked any more. The error is a *PermanentError.
func (e CRLEntry) AppendDER(b []byte) ([]byte, error) {
	if err := CheckSerial(e.SerialNumber); err != nil {
		return nil, &PermanentError{Fault: FaultRequest, Reason: "CRL_REFUSED", Message: "an entry is refused", Cause: err}
	}
	if e.Reason == RemoveFromCRL {
		return b, nil
	}
	if !e.Reason.Valid() {
		return nil, Permanent("CRL_REFUSED", "serial number %s has %s", FormatSerial(e.SerialNumber), e.Reason)
	}
	out := cryptobyte.NewBuilder(b)
	out.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(e.SerialNumber)
		addTime(b, e.RevokedAt.UTC())
		if e.Reason != Unspecified {
			// entryExtensions with reasonCode (2.5.29.21), an ENUMERATED.
			b.AddBytes([]byte{0x30, 0x0c, 0x30, 0x0a, 0x06, 0x03, 0x55, 0x1d, 0x15, 0x04, 0x03, 0x0a, 0x01, byte(e.Reason)})
		}
	})
	der, err := out.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode entry of CRL: %w", err)
	}
	return der, nil
}

// addTime writes times until 2049 as UTCTime and later ones as GeneralizedTime (RFC 5280, section 5.1.2.6).
func addTime(b *cryptobyte.Builder, t time.Time) {
	const firstLong = 2050
	if t.Year() < firstLong {
		b.AddASN1UTCTime(t)
		return
	}
	b.AddASN1GeneralizedTime(t)
}

// CRLEntries are the entries of a CRL, each as AppendDER makes it, one after the other. There may be too many of them to be in memory.
// The zero value is none.
type CRLEntries struct {
	Size  int64 // in bytes
	Write func(to io.Writer) error
}

// NewCRLEntries has a few in memory.
func NewCRLEntries(list ...CRLEntry) (CRLEntries, error) {
	var der []byte
	var err error
	for _, e := range list {
		if der, err = e.AppendDER(der); err != nil {
			return CRLEntries{}, err
		}
	}
	return CRLEntries{Size: int64(len(der)), Write: func(to io.Writer) error {
		_, err := to.Write(der)
		return err //nolint:wrapcheck // as the writer has it
	}}, nil
}
