// Package requestcheck refuses orders that no CA would take, before anything is sent and whoever calls. What a certain CA
// does not take besides (names other than DNS, key algorithms, key usages) is for its connector.
package requestcheck

import (
	"crypto/x509"
	"time"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
)

// maxOrderID is the longest name of an order; CAs that take it as their own reference have room for it.
const maxOrderID = 128

// Check judges what all CAs want in the same way. The error is permanent and about the request.
func Check(r issuer.SubmitRequest) error {
	if r.OrderID == "" || len(r.OrderID) > maxOrderID || r.CSR == nil {
		return issuer.Permanent("REQUEST_INCOMPLETE", "an order needs an id of at most %d bytes and a CSR", maxOrderID)
	}
	if _, err := certcheck.CheckKey(r.CSR.PublicKey); err != nil {
		return refuse("KEY_REFUSED", "the key of the CSR is refused", err)
	}
	if err := r.CSR.CheckSignature(); err != nil {
		return refuse("CSR_REFUSED", "the CSR is not signed by its key", err)
	}
	names, err := certcheck.ParseNames(r.Names.Raw())
	if err != nil {
		return refuse("NAMES_REFUSED", "the names are refused", err)
	}
	if names.CommonName != r.Names.CommonName || !names.EqualSANs(r.Names) {
		return issuer.Permanent("NAMES_REFUSED", "the names are not in canonical form")
	}
	return checkUsages(r)
}

// usable are the key usages that CAs put into the certificates of TLS servers and clients by themselves, as the type of
// the key has it. Orders cannot ask for others.
const usable = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement | x509.KeyUsageDataEncipherment |
	x509.KeyUsageContentCommitment

func checkUsages(r issuer.SubmitRequest) error {
	if r.KeyUsage&^usable != 0 {
		return issuer.Permanent("KEY_USAGE_REFUSED", "keyCertSign, cRLSign and the like are not for certificates of servers and clients")
	}
	for _, u := range r.ExtKeyUsages {
		if u == x509.ExtKeyUsageOCSPSigning {
			return issuer.Permanent("KEY_USAGE_REFUSED", "OCSPSigning would let the certificate answer for the CA")
		}
	}
	return nil
}

// End gives when the certificate of an order ends at the latest, in whole seconds.
func End(r issuer.SubmitRequest, now time.Time) (time.Time, error) {
	if r.Lifetime <= 0 {
		return time.Time{}, issuer.Permanent("LIFETIME_INVALID", "a certificate needs a lifetime")
	}
	from := r.RequestedAt
	if from.IsZero() {
		from = now
	}
	end := from.Add(r.Lifetime)
	if !r.NotAfter.IsZero() && r.NotAfter.Before(end) {
		end = r.NotAfter
	}
	end = end.UTC().Truncate(time.Second)
	if !end.After(now) {
		return time.Time{}, issuer.Permanent("LIFETIME_INVALID", "the certificate would have ended already at %s: place a new order", end.Format(time.RFC3339))
	}
	return end, nil
}

func refuse(reason, message string, cause error) error {
	return &issuer.PermanentError{Fault: issuer.FaultRequest, Reason: reason, Message: message + ": " + cause.Error(), Cause: cause}
}
