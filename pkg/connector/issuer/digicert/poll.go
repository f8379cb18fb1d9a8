package digicert

import (
	"context"
	"maps"
	"net/http"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

const orderNotFound = issuer.ReasonOrderNotFound

// noOrder maps the answer that there is no such order.
func noOrder(e *caclient.StatusError) error {
	if e.Status == http.StatusNotFound {
		return caclient.Refused(orderNotFound, e)
	}
	return nil
}

// Poll asks how an order is and downloads the certificate once there is one.
func (i *Issuer) Poll(ctx context.Context, ref issuer.Ref) (issuer.Submission, error) {
	number, err := orderOf(ref)
	if err != nil {
		return issuer.Submission{}, err
	}
	o, err := i.order(ctx, number)
	if err != nil {
		return issuer.Submission{}, err
	}
	var sub issuer.Submission
	if ref[refReissue] != "" {
		sub, err = i.pollReissue(ctx, ref, o)
	} else {
		sub, err = i.settle(ctx, ref, o.Certificate.ID, o.Status, o.pending())
	}
	if sub.State == issuer.Pending {
		sub.RetryAfter = o.retryAfter
	}
	return sub, err
}

func (i *Issuer) order(ctx context.Context, number string) (order, error) {
	call := caclient.Call{Method: http.MethodGet, Path: []string{"order", "certificate", number}, Map: noOrder}
	var o order
	answer, err := i.client.JSON(ctx, call, &o)
	if err != nil {
		return order{}, err
	}
	o.retryAfter = answer.RetryAfter
	if string(o.ID) != number {
		return order{}, i.client.Unusable(call, "the CA was asked for order %s and answered with another", number)
	}
	return o, nil
}

// pollReissue finds the certificate of a re-issue. The order shows the old certificate until the new one is issued, and for
// good when the re-issue is refused; the list of re-issues tells which.
func (i *Issuer) pollReissue(ctx context.Context, ref issuer.Ref, o order) (issuer.Submission, error) {
	if o.Status == "issued" && isNew(ref, o.Certificate) {
		return i.settle(ctx, ref, o.Certificate.ID, o.Status, "")
	}
	if o.Status == "reissue_pending" {
		return i.settle(ctx, ref, "", o.Status, o.pending())
	}
	all, err := i.reissues(ctx, string(o.ID))
	if err != nil {
		return issuer.Submission{}, err
	}
	for _, c := range all {
		if isNew(ref, c) {
			return i.settle(ctx, ref, c.ID, c.Status, "")
		}
	}
	for _, r := range o.Requests {
		if string(r.ID) == ref[refRequest] && r.Status == requestRejected {
			return ended(ref, "the re-issue was rejected", r.Comments), nil
		}
	}
	if o.Status == "issued" {
		return pending(ref, "the CA does not show the re-issue yet"), nil
	}
	return i.settle(ctx, ref, "", o.Status, o.pending())
}

// isNew tells whether c is the certificate of the re-issue that ref is of: by its id where that is known, else by its CSR.
func isNew(ref issuer.Ref, c certificate) bool {
	switch {
	case c.ID == "" || string(c.ID) == ref[refPrevious]:
		return false
	case ref[refCertificate] != "":
		return string(c.ID) == ref[refCertificate]
	}
	csr := c.csrHash()
	return csr != "" && csr == ref[refCSR]
}

func (i *Issuer) reissues(ctx context.Context, number string) ([]certificate, error) {
	var list reissueList
	_, err := i.client.JSON(ctx, caclient.Call{
		Method: http.MethodGet, Path: []string{"order", "certificate", number, "reissue"}, MaxBytes: maxList, Map: noOrder,
	}, &list)
	return list.Certificates, err
}

// settle makes a Submission of the CA's word for the state of an order or a re-issue.
func (i *Issuer) settle(ctx context.Context, ref issuer.Ref, certificateID id, status, waits string) (issuer.Submission, error) {
	switch status {
	case "issued":
		if certificateID == "" {
			return pending(ref, "the certificate is issued, and the CA does not show its id yet"), nil
		}
		return i.download(ctx, ref, certificateID)
	case "rejected", "denied":
		return ended(ref, "the order was rejected", ""), nil
	case "canceled", "cancelled":
		return ended(ref, "the order was cancelled", ""), nil
	case "expired":
		return ended(ref, "the order has expired", ""), nil
	case "revoked":
		return ended(ref, "the certificate was revoked", ""), nil
	}
	if waits == "" {
		waits = waitingFor(status)
	}
	return pending(ref, waits), nil
}

func waitingFor(status string) string {
	switch status {
	case "pending", "processing":
		return "the CA validates the order (" + status + ")"
	case "needs_approval":
		return "the order waits for the approval of an administrator at the CA"
	case "approved":
		return "the order is approved, and the certificate not issued yet"
	case "reissue_pending":
		return "the CA validates the re-issue"
	case "waiting_pickup":
		return "the CA waits for somebody to pick the certificate up"
	case "needs_csr":
		return "the CA wants another CSR"
	}
	return "the CA calls the order " + caclient.Clean(status)
}

// pending tells what a person at the CA or in the DNS has to do, where the order shows it.
func (o order) pending() string {
	if o.DCVRandomValue != "" && (o.Status == "pending" || o.Status == "processing") {
		return waitingFor(o.Status) + "; value for the validation of the domain: " + caclient.Clean(o.DCVRandomValue)
	}
	return ""
}

func pending(ref issuer.Ref, detail string) issuer.Submission {
	return issuer.Submission{State: issuer.Pending, Ref: ref, Detail: detail}
}

func ended(ref issuer.Ref, detail, comment string) issuer.Submission {
	if comment != "" {
		detail += ": " + caclient.Clean(comment)
	}
	return issuer.Submission{State: issuer.Rejected, Ref: ref, Detail: detail}
}

// download fetches an issued certificate. Whatever goes wrong with that may go right the next time: the certificate is
// there and paid for.
func (i *Issuer) download(ctx context.Context, ref issuer.Ref, certificateID id) (issuer.Submission, error) {
	call := caclient.Call{
		Method: http.MethodGet, Path: []string{"certificate", string(certificateID), "download", "format", "pem_all"}, Accept: "*/*",
		Map: func(e *caclient.StatusError) error {
			if e.Status == http.StatusUnauthorized {
				return nil
			}
			return issuer.RetryAfter(e.RetryAfter, e)
		},
	}
	answer, err := i.client.Bytes(ctx, call)
	if err != nil {
		return issuer.Submission{}, err
	}
	bundle, err := caclient.ParseBundle(answer.Body)
	if err != nil {
		return issuer.Submission{}, i.client.Unusable(call, "%w", err)
	}
	ref = maps.Clone(ref)
	ref[refCertificate] = string(certificateID)
	leaf, chain := bundle.Split(ref[refKey])
	return issuer.Submission{State: issuer.Issued, Ref: ref, CertificatePEM: leaf, ChainPEM: chain}, nil
}
