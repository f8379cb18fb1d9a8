package digicert

import (
	"context"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

const (
	// approvalDelay is when to ask again for something that an administrator has to approve.
	approvalDelay = 15 * time.Minute
	// submittedDelay is when to ask again for something that is approved and under way.
	submittedDelay = time.Minute
)

// revokeRequest has for its reason the names of RFC 5280.
type revokeRequest struct {
	RevocationReason string `json:"revocation_reason"`
	Comments         string `json:"comments"`
	SkipApproval     bool   `json:"skip_approval"`
}

// Revoke asks for the revocation of one certificate of an order. Without skip_approval that is a request, which an
// administrator approves: it carries the serial number in its comments, so that it is found again and not made twice.
func (i *Issuer) Revoke(ctx context.Context, r issuer.RevokeRequest) (issuer.Revocation, error) {
	if err := issuer.NotSent(ctx); err != nil {
		return issuer.Revocation{}, err
	}
	switch {
	case !slices.Contains(capabilities().Reasons, r.Reason):
		return issuer.Revocation{}, issuer.Permanent("REASON_NOT_SUPPORTED", "DigiCert revokes nothing for %s", r.Reason)
	case r.Certificate == nil && !numeric(r.Ref[refCertificate]):
		return issuer.Revocation{}, issuer.Permanent("CERTIFICATE_MISSING", "revocation needs the certificate or its id at the CA")
	}
	if number := r.Request[refRequest]; numeric(number) {
		return i.revocationRequest(ctx, number)
	}
	if known, ok, err := i.revocationOf(ctx, r); err != nil || ok {
		return known, err
	}
	return i.askToRevoke(ctx, r)
}

func mark(r issuer.RevokeRequest) string {
	if r.Certificate == nil {
		return "certctl: certificate " + r.Ref[refCertificate]
	}
	return "certctl: serial number " + issuer.FormatSerial(r.Certificate.SerialNumber)
}

func (i *Issuer) askToRevoke(ctx context.Context, r issuer.RevokeRequest) (issuer.Revocation, error) {
	target := r.Ref[refCertificate]
	if !numeric(target) {
		target = strings.ToUpper(hex.EncodeToString(r.Certificate.SerialNumber.Bytes()))
	}
	call := caclient.Call{
		Method: http.MethodPut, Path: []string{"certificate", target, "revoke"}, Changes: true, Ref: r.Ref,
		Body: revokeRequest{RevocationReason: r.Reason.String(), Comments: mark(r), SkipApproval: i.settings.SkipApproval},
	}
	var made request
	answer, err := i.client.JSON(ctx, call, &made)
	if refused, ok := caclient.AsStatus(err); ok && issuer.OutcomeOf(err) == issuer.OutcomePermanent && refused.Status != http.StatusUnauthorized {
		return i.whyNotRevoked(ctx, r, err)
	}
	if err != nil {
		return issuer.Revocation{}, err
	}
	if answer.Status == http.StatusNoContent {
		return issuer.Revocation{State: issuer.Revoked}, nil
	}
	if made.ID == "" {
		return issuer.Revocation{}, i.client.Unusable(call, "the answer to a revocation holds no request id")
	}
	return made.revocation()
}

// whyNotRevoked looks behind a refusal: what is revoked already is a success, and what a re-issue stands in the way of has
// to wait. The CA's codes for that are not documented, so that its records are asked too.
func (i *Issuer) whyNotRevoked(ctx context.Context, r issuer.RevokeRequest, refusal error) (issuer.Revocation, error) {
	if e, ok := caclient.AsStatus(refusal); ok && strings.Contains(e.Code, "already_revoked") {
		return issuer.Revocation{State: issuer.Revoked}, nil
	}
	if _, err := orderOf(r.Ref); err != nil {
		return issuer.Revocation{}, refusal
	}
	known, ok, err := i.revocationOf(ctx, r)
	switch {
	case err != nil:
		return issuer.Revocation{}, err
	case ok:
		return known, nil
	}
	o, err := i.order(ctx, r.Ref[refOrder])
	if err == nil && o.Status == "reissue_pending" {
		return issuer.Revocation{}, &issuer.RetryError{
			After: approvalDelay, Message: "DigiCert revokes nothing while a re-issue of the order is under way", Cause: refusal,
		}
	}
	return issuer.Revocation{}, refusal
}

// revocationOf tells what the CA has on a revocation already; ok is false if nothing. Without an order id it has to be
// asked for without looking.
func (i *Issuer) revocationOf(ctx context.Context, r issuer.RevokeRequest) (known issuer.Revocation, ok bool, err error) {
	number := r.Ref[refOrder]
	if !numeric(number) {
		return known, false, nil
	}
	o, err := i.order(ctx, number)
	if err != nil {
		return known, false, err
	}
	if revoked, err := i.isRevoked(ctx, r, o); err != nil || revoked {
		return issuer.Revocation{State: issuer.Revoked}, revoked, err
	}
	for _, each := range slices.Backward(o.Requests) {
		if each.Type != requestRevoke || each.Status == requestRejected {
			continue
		}
		full, err := i.request(ctx, string(each.ID))
		if err != nil {
			return known, false, err
		}
		if full.Comments == mark(r) && full.Status != requestRejected {
			known, err = full.revocation()
			return known, true, err
		}
	}
	return known, false, nil
}

func (i *Issuer) isRevoked(ctx context.Context, r issuer.RevokeRequest, o order) (bool, error) {
	if o.Status == "revoked" {
		return true, nil
	}
	if r.Ref[refReissue] == "" && o.Certificate.is(r) {
		return o.Certificate.Status == "revoked", nil
	}
	all, err := i.reissues(ctx, string(o.ID))
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(all, func(c certificate) bool { return c.is(r) && c.Status == "revoked" }), nil
}

func (c certificate) is(r issuer.RevokeRequest) bool {
	if want := r.Ref[refCertificate]; want != "" && c.ID != "" {
		return string(c.ID) == want
	}
	return r.Certificate != nil && serial(c.SerialNumber) == issuer.FormatSerial(r.Certificate.SerialNumber)
}

// serial brings a serial number into the form of issuer.FormatSerial; empty if it is none.
func serial(s string) string {
	n, ok := new(big.Int).SetString(strings.ReplaceAll(s, ":", ""), 16)
	if !ok || n.Sign() <= 0 {
		return ""
	}
	return issuer.FormatSerial(n)
}

func (i *Issuer) request(ctx context.Context, number string) (request, error) {
	call := caclient.Call{
		Method: http.MethodGet, Path: []string{"request", number},
		Map: func(e *caclient.StatusError) error {
			if e.Status == http.StatusNotFound {
				return caclient.Refused("REQUEST_NOT_FOUND", e)
			}
			return nil
		},
	}
	var r request
	if _, err := i.client.JSON(ctx, call, &r); err != nil {
		return request{}, err
	}
	if string(r.ID) != number {
		return request{}, i.client.Unusable(call, "the CA was asked for request %s and answered with another", number)
	}
	return r, nil
}

func (i *Issuer) revocationRequest(ctx context.Context, number string) (issuer.Revocation, error) {
	r, err := i.request(ctx, number)
	if err != nil {
		return issuer.Revocation{}, err
	}
	return r.revocation()
}

func (r request) revocation() (issuer.Revocation, error) {
	out := issuer.Revocation{State: issuer.AwaitingApproval, Request: issuer.Ref{refRequest: string(r.ID)}}
	switch r.Status {
	case requestApproved:
		out.State, out.Request = issuer.Revoked, nil
	case requestRejected:
		return issuer.Revocation{}, issuer.Permanent("REVOCATION_REJECTED", "an administrator rejected request %s for the revocation", r.ID)
	case requestSubmitted:
		out.Detail, out.RetryAfter = fmt.Sprintf("request %s is approved and with DigiCert", r.ID), submittedDelay
	default:
		out.Detail, out.RetryAfter = fmt.Sprintf("request %s waits for the approval of an administrator", r.ID), approvalDelay
	}
	return out, nil
}
