package entrustgateway

import (
	"context"
	"net/http"
	"strings"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

// reasonNames are the API's names for reasons. certificateHold is another action (HoldAction), which can be undone and so
// is no revocation.
func reasonNames() map[issuer.Reason]string {
	return map[issuer.Reason]string{
		issuer.Unspecified:          "unspecified",
		issuer.KeyCompromise:        "keyCompromise",
		issuer.AffiliationChanged:   "affiliationChanged",
		issuer.Superseded:           "superseded",
		issuer.CessationOfOperation: "cessationOfOperation",
	}
}

func reasons() []issuer.Reason {
	return []issuer.Reason{issuer.Unspecified, issuer.KeyCompromise, issuer.AffiliationChanged, issuer.Superseded, issuer.CessationOfOperation}
}

// Revoke has the certificate revoked. An action that was only accepted waits for the CA, or for a human there: after that,
// the certificate's own status tells how it went, as the API has no question for actions. That a human refused it cannot be
// seen.
func (i *Issuer) Revoke(ctx context.Context, r issuer.RevokeRequest) (issuer.Revocation, error) {
	if err := issuer.NotSent(ctx); err != nil {
		return issuer.Revocation{}, err
	}
	name, ok := reasonNames()[r.Reason]
	if !ok {
		return issuer.Revocation{}, issuer.Permanent("REASON_NOT_SUPPORTED", "the gateway revokes nothing for %s", r.Reason)
	}
	serial, ok := serialToRevoke(r)
	if !ok {
		return issuer.Revocation{}, issuer.Permanent("CERTIFICATE_MISSING", "revocation needs the reference of the order or the certificate")
	}
	if len(r.Request) > 0 {
		return i.awaited(ctx, serial, r.Request)
	}
	call := i.call(http.MethodPost, "certificates", serial, "actions")
	call.Changes, call.Map = true, mapUnknownCertificate
	call.Body = actionRequest{Action: action{Type: revokeAction, Reason: name, Comment: "revoked by certctl"}}
	var answer actionResponse
	resp, err := i.client.JSON(ctx, call, &answer)
	if err != nil {
		return i.refusal(ctx, serial, unimplemented(err))
	}
	return i.revocation(ctx, serial, resp, answer)
}

// revocation reads the answer to an action.
func (i *Issuer) revocation(ctx context.Context, serial string, resp *caclient.Response, answer actionResponse) (issuer.Revocation, error) {
	request := issuer.Ref{refCertificate: serial}
	switch strings.ToUpper(answer.Action.Status) {
	case actionCompleted:
		return issuer.Revocation{State: issuer.Revoked}, nil
	case actionRejected:
		return issuer.Revocation{}, issuer.Permanent("REVOCATION_REFUSED", "the CA refuses the revocation: %s", caclient.Clean(answer.Message.Message))
	case actionAccepted:
		return issuer.Revocation{State: issuer.AwaitingApproval, Request: request, RetryAfter: resp.RetryAfter, Detail: "the CA has accepted the revocation and not done it yet"}, nil
	}
	return i.awaited(ctx, serial, request)
}

// awaited looks whether the certificate is revoked by now.
func (i *Issuer) awaited(ctx context.Context, serial string, request issuer.Ref) (issuer.Revocation, error) {
	answer, ok, err := i.fetch(ctx, serial)
	switch {
	case err != nil:
		return issuer.Revocation{}, err
	case ok && revoked(answer.Certificate):
		return issuer.Revocation{State: issuer.Revoked}, nil
	}
	return issuer.Revocation{State: issuer.AwaitingApproval, Request: request, Detail: "the certificate is not revoked yet"}, nil
}

// refusal looks at the certificate after the gateway refused to revoke it: it may be revoked already.
func (i *Issuer) refusal(ctx context.Context, serial string, err error) (issuer.Revocation, error) {
	refused, ok := issuer.AsPermanent(err)
	if !ok || refused.Fault != issuer.FaultRequest || refused.Reason == reasonNoCertificate {
		return issuer.Revocation{}, err
	}
	if answer, ok, lookErr := i.fetch(ctx, serial); lookErr == nil && ok && revoked(answer.Certificate) {
		return issuer.Revocation{State: issuer.Revoked, Detail: "it was revoked already"}, nil
	}
	return issuer.Revocation{}, err
}

// serialToRevoke prefers the form that the gateway gave.
func serialToRevoke(r issuer.RevokeRequest) (string, bool) {
	if serial := r.Ref[refCertificate]; serialForm.MatchString(serial) {
		return serial, true
	}
	if r.Certificate == nil || r.Certificate.SerialNumber == nil {
		return "", false
	}
	return issuer.FormatSerial(r.Certificate.SerialNumber), true
}

const reasonNoCertificate = "CERTIFICATE_NOT_FOUND"

func mapUnknownCertificate(e *caclient.StatusError) error {
	if e.Status == http.StatusNotFound {
		return caclient.Refused(reasonNoCertificate, e)
	}
	return nil
}
