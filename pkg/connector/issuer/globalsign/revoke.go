package globalsign

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

// reasonNames are the API's names for reasons.
func reasonNames() map[issuer.Reason]string {
	return map[issuer.Reason]string{
		issuer.Unspecified:          "unspecified",
		issuer.KeyCompromise:        "keyCompromise",
		issuer.AffiliationChanged:   "affiliationChanged",
		issuer.Superseded:           "superseded",
		issuer.CessationOfOperation: "cessationOfOperation",
		issuer.PrivilegeWithdrawn:   "privilegeWithdrawn",
	}
}

func reasons() []issuer.Reason {
	return []issuer.Reason{
		issuer.Unspecified, issuer.KeyCompromise, issuer.AffiliationChanged, issuer.Superseded, issuer.CessationOfOperation, issuer.PrivilegeWithdrawn,
	}
}

// Revoke revokes at once. What the CA says to a certificate that is revoked already is not documented: after a refusal the
// certificate itself is looked at. The time of the revocation is the CA's.
func (i *Issuer) Revoke(ctx context.Context, r issuer.RevokeRequest) (issuer.Revocation, error) {
	if err := issuer.NotSent(ctx); err != nil {
		return issuer.Revocation{}, err
	}
	name, ok := reasonNames()[r.Reason]
	if !ok {
		return issuer.Revocation{}, issuer.Permanent("REASON_NOT_SUPPORTED", "GlobalSign revokes nothing for %s", r.Reason)
	}
	serial, ok := serialToRevoke(r)
	if !ok {
		return issuer.Revocation{}, issuer.Permanent("CERTIFICATE_MISSING", "revocation needs the reference of the order or the certificate")
	}
	call := caclient.Call{
		Method: http.MethodPatch, Path: []string{"certificates", serial}, Body: revocationPatch{Reason: name}, Changes: true, Map: mapUnknownCertificate,
	}
	_, err := i.do(ctx, call, nil)
	if err == nil {
		return issuer.Revocation{State: issuer.Revoked}, nil
	}
	if refused, ok := issuer.AsPermanent(err); ok && refused.Fault == issuer.FaultRequest && refused.Reason != "CERTIFICATE_NOT_FOUND" {
		if info, wait, lookErr := i.fetch(ctx, serial); lookErr == nil && wait == nil && strings.EqualFold(info.Status, statusRevoked) {
			return issuer.Revocation{State: issuer.Revoked, Detail: "it was revoked already"}, nil
		}
	}
	return issuer.Revocation{}, err
}

// serialToRevoke prefers the form that the CA gave.
func serialToRevoke(r issuer.RevokeRequest) (string, bool) {
	if serial := r.Ref[refCertificate]; serialForm.MatchString(serial) {
		return serial, true
	}
	if r.Certificate == nil || r.Certificate.SerialNumber == nil {
		return "", false
	}
	return fmt.Sprintf("%X", r.Certificate.SerialNumber), true
}

func mapUnknownCertificate(e *caclient.StatusError) error {
	if e.Status == http.StatusNotFound {
		return caclient.Refused("CERTIFICATE_NOT_FOUND", e)
	}
	return nil
}
