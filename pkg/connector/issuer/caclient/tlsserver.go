package caclient

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/requestcheck"
)

// maxCommonName is the bound of RFC 5280, appendix A.1 (ub-common-name).
const maxCommonName = 64

// TLSServer is what a public CA can be asked for: a certificate for DNS names and TLS servers.
type TLSServer struct {
	CommonName string
	// DNSNames are all names; CommonName is one of them.
	DNSNames []string
	// LatestEnd is the end of validity that the request allows.
	LatestEnd time.Time
}

// CheckTLSServer refuses what a CA of public TLS certificates cannot fulfil, before it costs an order, and gives what is
// left to ask for. ClientAuth tells whether certificates may be for TLS clients too. Errors are permanent, or say that ctx
// ended and nothing was sent.
func CheckTLSServer(ctx context.Context, r issuer.SubmitRequest, now time.Time, clientAuth bool) (TLSServer, error) {
	if err := issuer.NotSent(ctx); err != nil {
		return TLSServer{}, err
	}
	if err := checkRequest(r, clientAuth); err != nil {
		return TLSServer{}, err
	}
	end, err := requestcheck.End(r, now)
	if err != nil {
		return TLSServer{}, err
	}
	s := TLSServer{DNSNames: r.Names.DNSNames, CommonName: CommonName(r.Names), LatestEnd: end}
	switch {
	case s.CommonName == "":
		return TLSServer{}, issuer.Permanent("NAME_TOO_LONG", "no name has at most %d characters, as a common name must", maxCommonName)
	case !s.LatestEnd.After(now):
		return TLSServer{}, issuer.Permanent("LIFETIME_INVALID", "the certificate would have ended already")
	}
	return s, nil
}

func checkRequest(r issuer.SubmitRequest, clientAuth bool) error {
	if err := requestcheck.Check(r); err != nil {
		return err
	}
	n := r.Names
	switch algorithm, err := certcheck.CheckKey(r.CSR.PublicKey); {
	case len(n.IPAddresses)+len(n.EmailAddresses)+len(n.URIs) > 0:
		return issuer.Permanent("NAMES_NOT_SUPPORTED", "this CA is asked for DNS names only")
	case len(n.DNSNames) == 0:
		return issuer.Permanent("NAMES_MISSING", "the certificate would be for no name")
	case err != nil || algorithm == certcheck.Ed25519:
		return issuer.Permanent("KEY_NOT_SUPPORTED", "public CAs do not certify Ed25519 keys")
	case r.KeyUsage&^(x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment|x509.KeyUsageKeyAgreement) != 0:
		return issuer.Permanent("KEY_USAGE_NOT_SUPPORTED", "a TLS certificate has no such key usage")
	}
	for _, u := range r.ExtKeyUsages {
		if u != x509.ExtKeyUsageServerAuth && (u != x509.ExtKeyUsageClientAuth || !clientAuth) {
			return issuer.Permanent("KEY_USAGE_NOT_SUPPORTED", "extended key usage %s is not what this issuer's product has", u)
		}
	}
	return nil
}

// CommonName gives the common name that a certificate for n is ordered with: that of n, or the first DNS name that is short
// enough; empty if there is none.
func CommonName(n certcheck.Names) string {
	if n.CommonName != "" {
		return n.CommonName
	}
	for _, name := range n.DNSNames {
		if len(name) <= maxCommonName {
			return name
		}
	}
	return ""
}

// Unsettled tells that an order which was not found may still appear: the request may be on its way through the CA, or its
// list be late. The error names the time after which not found means not there; nil: that time is over.
func Unsettled(r issuer.FindRequest, now time.Time, settle time.Duration) error {
	since := r.LastSubmitted
	if since.IsZero() {
		since = r.Since
	}
	left := settle - now.Sub(since)
	if since.IsZero() || left <= 0 {
		return nil
	}
	return &issuer.RetryError{After: left, Message: "the CA does not show the order yet, which may change"}
}
