package digicert

import (
	"context"
	"net/http"
	"slices"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

type statusChange struct {
	Status           string `json:"status"`
	Note             string `json:"note,omitempty"`
	ProcessorComment string `json:"processor_comment,omitempty"`
}

const cancelNote = "cancelled by certctl"

// Cancel gives up an order. Of a re-issue only its request is rejected: the order is paid for and has another certificate.
func (i *Issuer) Cancel(ctx context.Context, ref issuer.Ref) error {
	if err := issuer.NotSent(ctx); err != nil {
		return err
	}
	number, err := orderOf(ref)
	if err != nil {
		return err
	}
	call := caclient.Call{
		Method: http.MethodPut, Path: []string{"order", "certificate", number, "status"}, Changes: true, Ref: ref,
		Body: statusChange{Status: "CANCELED", Note: cancelNote}, Map: noOrder,
	}
	if ref[refReissue] != "" {
		request, err := i.reissueRequest(ctx, ref, number)
		if err != nil || request == "" {
			return err
		}
		call.Path, call.Body = []string{"request", request, "status"}, statusChange{Status: requestRejected, ProcessorComment: cancelNote}
	}
	_, err = i.client.JSON(ctx, call, nil)
	if _, refused := caclient.AsStatus(err); refused && issuer.OutcomeOf(err) == issuer.OutcomePermanent {
		return i.whyNotCancelled(ctx, ref, err)
	}
	return err
}

// reissueRequest gives the request of a re-issue that is still to be approved; empty if it has ended.
func (i *Issuer) reissueRequest(ctx context.Context, ref issuer.Ref, number string) (string, error) {
	o, err := i.order(ctx, number)
	if err != nil {
		return "", err
	}
	n := slices.IndexFunc(o.Requests, func(r request) bool {
		return r.Type == requestReissue && r.Status == requestPending && (ref[refRequest] == "" || string(r.ID) == ref[refRequest])
	})
	switch {
	case n >= 0:
		return string(o.Requests[n].ID), nil
	case o.Status == "reissue_pending":
		return "", issuer.Permanent("REISSUE_UNDER_WAY", "the re-issue is approved and with DigiCert: it cannot be cancelled any more")
	}
	return "", nil
}

// whyNotCancelled makes a success of what has ended already.
func (i *Issuer) whyNotCancelled(ctx context.Context, ref issuer.Ref, refusal error) error {
	o, err := i.order(ctx, ref[refOrder])
	if err != nil {
		return err
	}
	switch o.Status {
	case "rejected", "denied", "canceled", "cancelled", "expired", "revoked":
		return nil
	}
	return refusal
}
