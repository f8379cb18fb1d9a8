package digicert

import (
	"context"
	"encoding/pem"
	"net/http"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

const (
	day = 24 * time.Hour
	// paidEnough is how long an order has to be paid for still, so that a re-issue is worth more than a renewal order.
	paidEnough = 30 * day
	// busyOrder is when to look again at an order that has another re-issue under way.
	busyOrder = 5 * time.Minute
)

// plan is how a certificate is asked for: by a re-issue of an order, by an order that renews one, or by a new one.
type plan struct {
	reissueOf *order
	renewalOf id
}

// Submit places an order, or a re-issue where SubmitRequest.Previous is an order that is paid for. It is not idempotent.
func (i *Issuer) Submit(ctx context.Context, r issuer.SubmitRequest) (issuer.Submission, error) {
	want, err := caclient.CheckTLSServer(ctx, r, i.now(), i.settings.ProfileOption != "")
	if err != nil {
		return issuer.Submission{}, err
	}
	p, err := i.plan(ctx, r, want)
	if err != nil {
		return issuer.Submission{}, err
	}
	c, err := i.certificateRequest(r, want, p)
	if err != nil {
		return issuer.Submission{}, err
	}
	if p.reissueOf != nil {
		return i.reissue(ctx, r, c, *p.reissueOf)
	}
	return i.place(ctx, r, c, p.renewalOf)
}

func (i *Issuer) plan(ctx context.Context, r issuer.SubmitRequest, want caclient.TLSServer) (plan, error) {
	previous := r.Previous[refOrder]
	switch {
	case !numeric(previous) || i.settings.Renewal == RenewalNew:
		return plan{}, nil
	case i.settings.Renewal == RenewalOrder:
		return plan{renewalOf: id(previous)}, nil
	}
	o, err := i.order(ctx, previous)
	if p, gone := issuer.AsPermanent(err); gone && p.Reason == orderNotFound {
		return plan{}, nil
	}
	if err != nil {
		return plan{}, err
	}
	switch o.Status {
	case "issued":
		if i.paid(o, want.LatestEnd) {
			return plan{reissueOf: &o}, nil
		}
		return plan{renewalOf: id(previous)}, nil
	case "expired":
		return plan{renewalOf: id(previous)}, nil
	case "reissue_pending":
		return plan{}, &issuer.RetryError{After: busyOrder, Message: "another re-issue of order " + previous + " is under way at the CA"}
	}
	return plan{}, nil // revoked, cancelled, rejected: nothing is left of that order
}

// paid tells whether an order is paid for long enough to be re-issued. One whose end the CA does not show is not.
func (i *Issuer) paid(o order, wanted time.Time) bool {
	end := o.end()
	return !end.IsZero() && (end.Sub(i.now()) >= paidEnough || !end.Before(wanted))
}

// end gives the last moment of the day that an order is paid until; zero if it is not shown.
func (o order) end() time.Time {
	till := parseTime(o.OrderValidTill)
	if till.IsZero() {
		return till
	}
	return till.Truncate(day).Add(day - time.Second)
}

func (i *Issuer) certificateRequest(r issuer.SubmitRequest, want caclient.TLSServer, p plan) (certificateRequest, error) {
	ends, err := i.expiry(want.LatestEnd, p)
	if err != nil {
		return certificateRequest{}, err
	}
	var others []string
	for _, name := range want.DNSNames {
		if name != want.CommonName {
			others = append(others, name)
		}
	}
	return certificateRequest{
		CommonName: want.CommonName, DNSNames: others, CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: r.CSR.Raw})),
		SignatureHash: "sha256", ServerPlatform: reference{ID: -1}, CACertID: i.settings.CACertID,
		ProfileOption: i.settings.ProfileOption, CertValidity: certValidity{CustomExpirationDate: ends},
	}, nil
}

// expiry gives the date of the last day of a certificate. The CA ends certificates with the last second of a day (UTC), so
// that it is the last day that is over by the latest allowed end. A date is the same however late the CA issues, where a
// number of days would lengthen the certificate by the time that the order waited.
func (i *Issuer) expiry(latest time.Time, p plan) (string, error) {
	now := i.now().UTC()
	if limit := i.settings.maxValidity(now); limit > 0 {
		latest = earlier(latest, now.Add(limit))
	}
	if p.reissueOf != nil {
		latest = earlier(latest, p.reissueOf.end())
	} else {
		latest = earlier(latest, i.settings.orderValidity(now))
	}
	last := latest.UTC().Add(time.Second - day).Truncate(day)
	if !last.After(now.Truncate(day)) {
		return "", issuer.Permanent("LIFETIME_TOO_SHORT",
			"DigiCert ends certificates with a day: none ends between tomorrow and %s", latest.UTC().Format(time.RFC3339))
	}
	return last.Format(time.DateOnly), nil
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func (i *Issuer) place(ctx context.Context, r issuer.SubmitRequest, c certificateRequest, renewalOf id) (issuer.Submission, error) {
	s := i.settings
	body := orderRequest{
		Certificate: c, OrderValidity: orderValidity{Years: s.OrderValidityYears, Days: s.OrderValidityDays},
		Comments: r.OrderID, PaymentMethod: s.PaymentMethod, SkipApproval: s.SkipApproval, DisableRenewalNotifications: true,
		DCVMethod: s.DCVMethod, RenewalOfOrderID: renewalOf,
	}
	if s.OrganizationID != 0 {
		body.Organization = &reference{ID: s.OrganizationID}
	}
	if s.ContainerID != 0 {
		body.Container = &reference{ID: s.ContainerID}
	}
	call := caclient.Call{
		Method: http.MethodPost, Path: []string{"order", "certificate", s.ProductNameID}, Body: body, Changes: true,
		Map: func(e *caclient.StatusError) error {
			if e.Status == http.StatusNotFound {
				return caclient.Misconfigured("PRODUCT_NOT_FOUND", "product_name_id", "the CA has no such product", e)
			}
			return nil
		},
	}
	var answer placed
	if _, err := i.client.JSON(ctx, call, &answer); err != nil {
		return issuer.Submission{}, err
	}
	if answer.ID == "" {
		return issuer.Submission{}, i.client.Unusable(call, "the answer to an order holds no order id")
	}
	return i.submission(newRef(string(answer.ID), r.CSR.Raw, caclient.KeyID(r.CSR.PublicKey)), answer), nil
}

func (i *Issuer) reissue(ctx context.Context, r issuer.SubmitRequest, c certificateRequest, of order) (issuer.Submission, error) {
	call := caclient.Call{
		Method: http.MethodPost, Path: []string{"order", "certificate", string(of.ID), "reissue"}, Changes: true,
		Body: reissueRequest{Certificate: c, SkipApproval: i.settings.SkipApproval, Comments: r.OrderID}, Map: noOrder,
	}
	var answer placed
	if _, err := i.client.JSON(ctx, call, &answer); err != nil {
		return issuer.Submission{}, err
	}
	ref := newRef(string(of.ID), r.CSR.Raw, caclient.KeyID(r.CSR.PublicKey))
	ref[refReissue] = "true"
	if of.Certificate.ID != "" {
		ref[refPrevious] = string(of.Certificate.ID)
	}
	return i.submission(ref, answer), nil
}

func newRef(order string, csr []byte, keyID string) issuer.Ref {
	return issuer.Ref{refOrder: order, refCSR: hash(csr), refKey: keyID}
}

// submission makes of the answer to an order what is known now. A certificate that came at once and cannot be read is left
// to Poll.
func (i *Issuer) submission(ref issuer.Ref, answer placed) issuer.Submission {
	if answer.CertificateID != "" && string(answer.CertificateID) != ref[refPrevious] {
		ref[refCertificate] = string(answer.CertificateID)
	}
	if len(answer.Requests) > 0 && answer.Requests[0].ID != "" {
		ref[refRequest] = string(answer.Requests[0].ID)
	}
	if s, ok := atOnce(ref, answer); ok {
		return s
	}
	detail := "the CA has taken the order"
	if len(answer.Requests) > 0 && answer.Requests[0].Status == requestPending {
		detail = "the order waits for the approval of an administrator at the CA"
	}
	if answer.DCVRandomValue != "" {
		detail += "; value for the validation of the domain: " + caclient.Clean(answer.DCVRandomValue)
	}
	return issuer.Submission{State: issuer.Pending, Ref: ref, Detail: detail}
}

func atOnce(ref issuer.Ref, answer placed) (issuer.Submission, bool) {
	var all strings.Builder
	for _, c := range answer.CertificateChain {
		all.WriteString(c.PEM + "\n")
	}
	bundle, err := caclient.ParseBundle([]byte(all.String()))
	if err != nil || ref[refCertificate] == "" {
		return issuer.Submission{}, false
	}
	leaf, chain := bundle.Split(ref[refKey])
	return issuer.Submission{State: issuer.Issued, Ref: ref, CertificatePEM: leaf, ChainPEM: chain}, true
}
