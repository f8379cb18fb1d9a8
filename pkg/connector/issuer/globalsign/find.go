package globalsign

import (
	"cmp"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
)

const (
	// maxListed bounds the certificates of a window that are looked through for one order.
	maxListed = 10_000
	// maxCompared bounds the certificates that are fetched in one FindOrder; the next one goes on behind them.
	maxCompared = 50
	// clockMargin is how far the CA's clock may be from ours.
	clockMargin = 25 * time.Hour
	// compareMore is when to go on comparing.
	compareMore = 2 * time.Second
)

// FindOrder looks through the certificates that the account got since the order, nearest first, for one with the order's
// key and names. Since the CA shows a certificate only once it is made, "there is none" is said only after the settings'
// time for that is over, and only when all that it lists could be read.
func (i *Issuer) FindOrder(ctx context.Context, r issuer.FindRequest) (issuer.Submission, bool, error) {
	if err := issuer.NotSent(ctx); err != nil {
		return issuer.Submission{}, false, err
	}
	if serial := r.Ref[refCertificate]; serialForm.MatchString(serial) {
		found, err := i.Poll(ctx, r.Ref)
		return found, err == nil, err
	}
	id, err := keyID(r.PublicKey)
	if err != nil {
		return issuer.Submission{}, false, err
	}
	listed, err := i.listWindow(ctx, r)
	if err != nil {
		return issuer.Submission{}, false, err
	}
	return i.compare(ctx, r, id, listed)
}

// keyID names a key by the SHA-256 of its encoding.
func keyID(key crypto.PublicKey) ([sha256.Size]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return [sha256.Size]byte{}, issuer.Permanent("PUBLIC_KEY_MISSING", "GlobalSign shows neither our references nor CSRs: "+
			"without its public key an order cannot be looked up")
	}
	return sha256.Sum256(der), nil
}

// submittedLast is when the CA may have got the order for the last time.
func submittedLast(r issuer.FindRequest) time.Time {
	if r.LastSubmitted.After(r.Since) {
		return r.LastSubmitted
	}
	return r.Since
}

// listWindow gives what was issued around the time of the order, without the certificate that the order renews.
func (i *Issuer) listWindow(ctx context.Context, r issuer.FindRequest) ([]issuedEntry, error) {
	at := cursor{page: 1, from: r.Since.Add(-clockMargin).Unix(), to: submittedLast(r).Add(clockMargin).Unix()}
	var all []issuedEntry
	for {
		entries, next, err := i.listPage(ctx, at)
		if err != nil {
			return nil, err
		}
		all = append(all, entries...)
		if len(all) > maxListed {
			return nil, issuer.Permanent("LOOKUP_TOO_LARGE", "GlobalSign issued more than %d certificates around the time of the order: "+
				"see at GlobalSign what became of it", maxListed)
		}
		if next == nil {
			return nearestFirst(withoutSerial(all, r.Previous[refSerial]), r.Since), nil
		}
		at = *next
	}
}

func withoutSerial(entries []issuedEntry, serial string) []issuedEntry {
	return slices.DeleteFunc(entries, func(e issuedEntry) bool {
		ref, ok := refOf(e.SerialNumber) // what has no serial number that can be asked for is kept, as one that cannot be read
		return ok && ref[refSerial] == serial
	})
}

// nearestFirst orders by the distance from the order's time, as what is looked for was mostly issued right after it.
func nearestFirst(entries []issuedEntry, since time.Time) []issuedEntry {
	distance := func(e issuedEntry) int64 {
		d := e.NotBefore - since.Add(-backdate).Unix()
		return max(d, -d)
	}
	slices.SortStableFunc(entries, func(a, b issuedEntry) int { return cmp.Compare(distance(a), distance(b)) })
	return entries
}

// compare fetches certificates until one is the order's. One with the order's key and other names, made after the order, is
// taken too when there is none better: the CA made something else of the order, and it is not to be bought again for that.
func (i *Issuer) compare(ctx context.Context, r issuer.FindRequest, id [sha256.Size]byte, listed []issuedEntry) (issuer.Submission, bool, error) {
	fetched, unread := 0, 0
	var second *candidate
	for n, entry := range listed {
		if known, ok := i.seen.get(entry.SerialNumber); ok && known != id {
			continue
		}
		if _, ok := refOf(entry.SerialNumber); !ok {
			unread++
			continue
		}
		if fetched >= maxCompared {
			return issuer.Submission{}, false, &issuer.RetryError{
				After: compareMore, Message: fmt.Sprintf("%d certificates of GlobalSign are still to be compared with the order", len(listed)-n),
			}
		}
		fetched++
		info, wait, err := i.fetch(ctx, entry.SerialNumber)
		switch {
		case isRefused(err) || err == nil && wait != nil:
			unread++ // it is not made yet, or was forgotten
			continue
		case err != nil:
			return issuer.Submission{}, false, err
		}
		c := candidate{serial: entry.SerialNumber, info: info}
		switch i.liken(c, r, id) {
		case same:
			return i.adopt(ctx, c)
		case sameKey:
			if second == nil {
				second = &c
			}
		case unreadable:
			unread++
		case other:
		}
	}
	if err := notRead(unread); err != nil {
		return issuer.Submission{}, false, err
	}
	if second != nil {
		return i.adopt(ctx, *second)
	}
	return issuer.Submission{}, false, i.settled(r)
}

// candidate is a certificate that may be the order's.
type candidate struct {
	serial string
	info   certificateInfo
}

func (i *Issuer) adopt(ctx context.Context, c candidate) (issuer.Submission, bool, error) {
	ref, _ := refOf(c.serial)
	found, err := i.submission(ctx, ref, c.info, nil)
	return found, err == nil, err
}

// isRefused tells whether the CA does not give a certificate that it lists, whatever the account.
func isRefused(err error) bool {
	refused, ok := issuer.AsPermanent(err)
	return ok && refused.Fault == issuer.FaultRequest
}

// likeness is how much of an order a certificate has.
type likeness uint8

const (
	other   likeness = iota
	sameKey          // made after the order
	same             // key and names
	unreadable
)

// liken compares key and names: keys are used again.
func (i *Issuer) liken(c candidate, r issuer.FindRequest, id [sha256.Size]byte) likeness {
	leaf, ok := single([]byte(c.info.Certificate))
	if !ok {
		return unreadable
	}
	of := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	i.seen.put(c.serial, of)
	switch {
	case of != id:
		return other
	case sameNames(leaf, r.Names):
		return same
	case !leaf.NotBefore.Before(r.Since.Add(-2 * backdate)):
		return sameKey
	}
	return other
}

// sameNames tells whether a certificate has exactly the names of an order. Without names in the question the key decides.
func sameNames(leaf *x509.Certificate, want certcheck.Names) bool {
	if want.Len() == 0 {
		return true
	}
	raw := certcheck.RawNames{DNSNames: leaf.DNSNames, EmailAddresses: leaf.EmailAddresses}
	for _, ip := range leaf.IPAddresses {
		raw.IPAddresses = append(raw.IPAddresses, ip.String())
	}
	for _, u := range leaf.URIs {
		raw.URIs = append(raw.URIs, u.String())
	}
	got, err := certcheck.ParseNames(raw)
	return err == nil && got.EqualSANs(want)
}

// notRead is nil when all certificates could be looked at.
func notRead(n int) error {
	if n == 0 {
		return nil
	}
	return &issuer.RetryError{Message: fmt.Sprintf("GlobalSign lists %d certificates around the time of the order that it does not give or that "+
		"cannot be read yet, of which one may be the order's", n)}
}

// settled is nil when the CA has had time enough to show the order.
func (i *Issuer) settled(r issuer.FindRequest) error {
	settle := time.Duration(i.settings.LookupSettleSeconds) * time.Second
	left := submittedLast(r).Add(settle).Sub(i.now())
	if left <= 0 {
		return nil
	}
	return &issuer.RetryError{After: min(left, settle), Message: fmt.Sprintf("GlobalSign lists no certificate of the order yet: "+
		"it counts as never placed if that stays so for %s", min(left, settle).Round(time.Second))}
}
