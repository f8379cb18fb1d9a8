package sectigo

import (
	"context"
	"maps"
	"net/http"
	"net/url"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

const maxList = 8 << 20

// Poll asks how an order is and collects the certificate once there is one.
func (i *Issuer) Poll(ctx context.Context, ref issuer.Ref) (issuer.Submission, error) {
	number, err := sslOf(ref)
	if err != nil {
		return issuer.Submission{}, err
	}
	d, err := i.details(ctx, number)
	if err != nil {
		return issuer.Submission{}, err
	}
	switch stateOf(d.Status) {
	case issuer.Issued:
		return i.collect(ctx, ref)
	case issuer.Rejected:
		return ended(ref, endedBy(d.Status)), nil
	default:
		sub := pending(ref, waitingFor(d.Status))
		sub.RetryAfter = d.retryAfter
		return sub, nil
	}
}

// stateOf maps the CA's words; one that is not known is a state that passes.
func stateOf(status string) issuer.State {
	switch plain(status) {
	case "issued", "downloaded", "enrolledpendingdownload", "replaced":
		return issuer.Issued
	case "declined", "rejected", "invalid", "revoked", "expired":
		return issuer.Rejected
	}
	return issuer.Pending
}

func endedBy(status string) string {
	switch plain(status) {
	case "declined":
		return "an administrator declined the request"
	case "rejected":
		return "the CA rejected the request"
	case "invalid":
		return "the CA calls the request invalid"
	case "expired":
		return "the certificate has expired"
	default:
		return "the certificate was revoked"
	}
}

func waitingFor(status string) string {
	switch plain(status) {
	case "requested", "awaitingapproval":
		return "the request waits for the approval of an administrator at the CA"
	case "saapproved", "approved":
		return "the request is approved and not with the CA yet (" + caclient.Clean(status) + ")"
	case "applied":
		return "the CA validates the request"
	case "init", "unmanaged", "notenrolled":
		return "the CA has not begun with the request (" + caclient.Clean(status) + ")"
	}
	return "the CA calls the request " + caclient.Clean(status)
}

func pending(ref issuer.Ref, detail string) issuer.Submission {
	return issuer.Submission{State: issuer.Pending, Ref: ref, Detail: detail}
}

func ended(ref issuer.Ref, detail string) issuer.Submission {
	return issuer.Submission{State: issuer.Rejected, Ref: ref, Detail: detail}
}

func (i *Issuer) details(ctx context.Context, number string) (details, error) {
	call := caclient.Call{Method: http.MethodGet, Path: []string{"ssl", "v1", number}}
	var d details
	answer, err := i.client.JSON(ctx, call, &d)
	if err != nil {
		return details{}, err
	}
	d.retryAfter = answer.RetryAfter
	if d.number() != number {
		return details{}, i.client.Unusable(call, "the CA was asked for sslId %s and answered with another", number)
	}
	return d, nil
}

// collect fetches an issued certificate. Whatever goes wrong with that may go right the next time: the certificate is
// there and paid for.
func (i *Issuer) collect(ctx context.Context, ref issuer.Ref) (issuer.Submission, error) {
	call := caclient.Call{
		Method: http.MethodGet, Path: []string{"ssl", "v1", "collect", ref[refSSL]}, Accept: "*/*",
		Query: url.Values{"format": {i.settings.CollectFormat}},
		Map: func(e *caclient.StatusError) error {
			if e.Status == http.StatusUnauthorized {
				return nil
			}
			return issuer.RetryAfter(e.RetryAfter, e)
		},
	}
	answer, err := i.client.Bytes(ctx, call)
	if e, ok := caclient.AsStatus(err); ok && e.Status == http.StatusBadRequest {
		if notReady(e) {
			return pending(ref, "the certificate is issued and cannot be collected yet"), nil
		}
		if code, _ := codeOf(e); code == -110 {
			return ended(ref, "the certificate was revoked"), nil
		}
	}
	if err != nil {
		return issuer.Submission{}, err
	}
	bundle, err := caclient.ParseBundle(answer.Body)
	if err != nil {
		return issuer.Submission{}, i.client.Unusable(call, "%w", err)
	}
	if isReplaced(ref, bundle) {
		return pending(ref, "the CA still has the certificate that is to be replaced"), nil
	}
	if ref[refAdopted] != "" && bundle.LeafOf(ref[refKey]) == nil {
		return ended(ref, "the replacement that was under way when the reply to ours was lost is somebody else's: its certificate has another key"), nil
	}
	ref = maps.Clone(ref)
	if leaf := bundle.LeafOf(ref[refKey]); leaf != nil {
		ref[refSerial] = issuer.FormatSerial(leaf.SerialNumber)
	}
	leaf, chain := bundle.Split(ref[refKey])
	return issuer.Submission{State: issuer.Issued, Ref: ref, CertificatePEM: leaf, ChainPEM: chain}, nil
}

// isReplaced tells whether a bundle is that of the certificate that the order replaces.
func isReplaced(ref issuer.Ref, b caclient.Bundle) bool {
	if ref[refReplaced] == "" {
		return false
	}
	for _, c := range b {
		if !c.IsCA && issuer.FormatSerial(c.SerialNumber) == ref[refReplaced] {
			return true
		}
	}
	return false
}
