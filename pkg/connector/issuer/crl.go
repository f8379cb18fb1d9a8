package issuer

import (
	"fmt"
	"math/big"
	"slices"
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

// CRLEntries are the entries of a CRL, encoded when they are added: a million of them take 40 MB. The zero value is empty. A copy
// may be added to without changing the original.
type CRLEntries struct {
	// full are parts of crlPart bytes and a little more, which nothing changes: what grows, and what a copy of its own needs, is last.
	full [][]byte
	last []byte
	n    int
}

// crlPart is what makes a part of the entries full.
const crlPart = 256 << 10

// NewCRLEntries encodes some.
func NewCRLEntries(list ...CRLEntry) (CRLEntries, error) {
	var e CRLEntries
	for _, entry := range list {
		if err := e.Add(entry); err != nil {
			return CRLEntries{}, err
		}
	}
	return e, nil
}

// Len is how many there are.
func (e CRLEntries) Len() int { return e.n }

// DER are the entries as revokedCertificates holds them (RFC 5280, section 5.1), one after the other, without what is around them: in
// parts, which are not to be changed.
func (e CRLEntries) DER() [][]byte { return append(slices.Clip(e.full), e.last) }

// Clone is a copy that shares memory with the original. Either may be added to.
func (e CRLEntries) Clone() CRLEntries {
	return CRLEntries{full: slices.Clip(e.full), last: slices.Clip(e.last), n: e.n}
}

// Add encodes one more; it is the caller's to add none twice. Reason unspecified is left out (section 5.3.1), and an entry with
// removeFromCRL as a whole: it has a place in delta CRLs only, and means that the certificate is not revoked any more. The error is
// a *PermanentError.
func (e *CRLEntries) Add(entry CRLEntry) error {
	if err := CheckSerial(entry.SerialNumber); err != nil {
		return &PermanentError{Fault: FaultRequest, Reason: "CRL_REFUSED", Message: "an entry is refused", Cause: err}
	}
	if entry.Reason == RemoveFromCRL {
		return nil
	}
	if !entry.Reason.Valid() {
		return Permanent("CRL_REFUSED", "serial number %s has %s", FormatSerial(entry.SerialNumber), entry.Reason)
	}
	if len(e.last) >= crlPart {
		e.full, e.last = append(e.full, e.last), make([]byte, 0, crlPart+crlPart/64)
	}
	b := cryptobyte.NewBuilder(e.last)
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(entry.SerialNumber)
		addTime(b, entry.RevokedAt.UTC())
		if entry.Reason != Unspecified {
			// entryExtensions with reasonCode (2.5.29.21), an ENUMERATED.
			b.AddBytes([]byte{0x30, 0x0c, 0x30, 0x0a, 0x06, 0x03, 0x55, 0x1d, 0x15, 0x04, 0x03, 0x0a, 0x01, byte(entry.Reason)})
		}
	})
	der, err := b.Bytes()
	if err != nil {
		return fmt.Errorf("encode entry of CRL: %w", err)
	}
	e.last = der
	e.n++
	return nil
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
