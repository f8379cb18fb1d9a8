package entrustecs

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

const (
	perPage = 500
	// maxBody: a page of the list has some 500 bytes for each certificate.
	maxBody = 8 << 20
	// maxCandidates bounds the requests of one name that are looked at for one order, newest first.
	maxCandidates = 100
	// clockMargin is how far Entrust's clock may be from ours.
	clockMargin = 25 * time.Hour
)

// list reads one page of certificates. Requests that were declined, or approved and not issued yet, are in no list.
func (i *Issuer) list(ctx context.Context, filter url.Values, offset int) (listResponse, error) {
	query := url.Values{"limit": {strconv.Itoa(perPage)}, "offset": {strconv.Itoa(offset)}}
	for name, values := range filter {
		query[name] = values
	}
	var page listResponse
	_, err := i.client.JSON(ctx, caclient.Call{Method: http.MethodGet, Path: []string{"certificates"}, Query: query, MaxBytes: maxBody}, &page)
	return page, err
}

// FindOrder looks for a request with the order's id in its tracking information among those of the order's name, those that
// wait for approval, and the one that the order renews. What no list shows (absent) is never said not to be there.
func (i *Issuer) FindOrder(ctx context.Context, r issuer.FindRequest) (issuer.Submission, bool, error) {
	if err := issuer.NotSent(ctx); err != nil {
		return issuer.Submission{}, false, err
	}
	if trackingForm.MatchString(r.Ref[refTracking]) {
		found, err := i.Poll(ctx, r.Ref)
		return found, err == nil, err
	}
	ids, err := i.candidates(ctx, r)
	if err != nil {
		return issuer.Submission{}, false, err
	}
	var before *certificate
	for _, id := range ids {
		c, _, err := i.fetch(ctx, id)
		if err == nil && id == r.Previous[refTracking] {
			before = &c
		}
		switch {
		case isMissing(err):
			continue
		case err != nil:
			return issuer.Submission{}, false, err
		case isOrder(c, r):
			ref := issuer.Ref{refTracking: id, refKey: caclient.KeyID(r.PublicKey)}
			if id := r.Previous[refTracking]; id != "" {
				ref = replacing(ref, replaced{id, r.Previous[refSerial]})
			}
			found, err := submission(ref, c)
			return found, err == nil, err
		}
	}
	return issuer.Submission{}, false, i.absent(r, before)
}

// absent is nil when Entrust has no request of the order. Requests that were approved and not issued yet, or declined, are in
// no list: where the order may be one of those, that it is not listed says nothing, and a human has to look.
func (i *Issuer) absent(r issuer.FindRequest, before *certificate) error {
	if before != nil && succeeded(before.Status) {
		return &issuer.RetryError{Message: fmt.Sprintf("Entrust calls the certificate before (tracking id %s) %s and lists no request of this order yet: "+
			"see at Entrust whether the request that follows it has %s in its tracking information", r.Previous[refTracking], caclient.Clean(before.Status), r.OrderID)}
	}
	if err := i.settled(r); err != nil || !i.settings.QueueForApproval && !i.mayBeRenewal(r, before) {
		return err
	}
	return issuer.Permanent(reasonNotConclusive, reasonNotConclusive+": Entrust lists no request of the order, which it does not do for one that is approved and not issued yet, or declined: "+
		"look at Entrust for a request with %s in its tracking information. If there is one, wait until it is listed, when it is found, or decline it; "+
		"if there is none or it is declined, cancel this order", r.OrderID)
}

// reasonNotConclusive: that the CA shows nothing does not say that there is nothing.
const reasonNotConclusive = "LOOKUP_NOT_CONCLUSIVE"

// mayBeRenewal tells whether an order may have been placed as a renewal or re-issue (kindOf) of the certificate before.
func (i *Issuer) mayBeRenewal(r issuer.FindRequest, before *certificate) bool {
	switch {
	case !trackingForm.MatchString(r.Previous[refTracking]) || i.settings.Renewal == renewalNew:
		return false
	case i.settings.Renewal != renewalAuto || before == nil:
		return true
	}
	bundle, err := caclient.ParseBundle([]byte(before.EndEntityCert))
	if err != nil {
		return true
	}
	const slack = time.Hour // between our clocks
	return submittedLast(r).Sub(bundle[0].NotBefore) > minAge-slack && r.Since.Before(bundle[0].NotAfter)
}

func isMissing(err error) bool {
	p, ok := issuer.AsPermanent(err)
	return ok && p.Reason == issuer.ReasonOrderNotFound
}

// isOrder goes by our id. Where Entrust has none with the request, the key decides; the certificate before may have the same.
func isOrder(c certificate, r issuer.FindRequest) bool {
	if c.Tracking.TrackingInfo != "" {
		return c.Tracking.TrackingInfo == r.OrderID
	}
	key := caclient.KeyID(r.PublicKey)
	if old := r.Previous[refSerial]; key == "" || old != "" && serialOf(c) == old {
		return false
	}
	bundle, err := caclient.ParseBundle([]byte(c.EndEntityCert))
	return keyOfText(c.CSR) == key || err == nil && bundle.LeafOf(key) != nil
}

// candidates gives the tracking ids that may be the order's, newest first. Entrust's filters are asked for the same thing in
// three ways, as it is not documented how they treat requests without a certificate.
func (i *Issuer) candidates(ctx context.Context, r issuer.FindRequest) ([]string, error) {
	var all []listedCertificate
	filters := []url.Values{{"status": {"PENDING"}}}
	if names := append(append([]string{}, r.Names.DNSNames...), r.Names.IPStrings()...); len(names) > 0 {
		filters = append(filters, url.Values{"subjectAltName": {names[0]}})
	}
	if r.Names.CommonName != "" {
		filters = append(filters, url.Values{"dn": {"con:" + r.Names.CommonName}})
	}
	for _, filter := range filters {
		listed, err := i.listAll(ctx, filter)
		if err != nil {
			return nil, err
		}
		all = append(all, listed...)
	}
	all = slices.DeleteFunc(all, func(c listedCertificate) bool { return c.TrackingID <= 0 || issuedBefore(c, r.Since.Add(-clockMargin)) })
	slices.SortFunc(all, func(a, b listedCertificate) int { return cmp.Compare(b.TrackingID, a.TrackingID) })
	var ids []string
	if before := r.Previous[refTracking]; trackingForm.MatchString(before) {
		ids = append(ids, before)
	}
	for _, c := range all {
		if id := strconv.FormatInt(c.TrackingID, 10); !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	if len(ids) > maxCandidates {
		return nil, issuer.Permanent("LOOKUP_TOO_LARGE", "Entrust has %d requests that may be the order's, the most that are looked at is %d: "+
			"see at Entrust what became of it", len(ids), maxCandidates)
	}
	return ids, nil
}

// issuedBefore tells whether a certificate is older than the order. Requests without a date are not issued yet.
func issuedBefore(c listedCertificate, t time.Time) bool {
	at, err := time.Parse(time.RFC3339, c.IssueDateTime)
	return err == nil && at.Before(t)
}

// maxListed bounds the certificates that one filter may give.
const maxListed = 10_000

func (i *Issuer) listAll(ctx context.Context, filter url.Values) ([]listedCertificate, error) {
	var all []listedCertificate
	for {
		page, err := i.list(ctx, filter, len(all))
		if err != nil {
			return nil, err
		}
		all = append(all, page.Certificates...)
		switch {
		case len(page.Certificates) == 0 || len(all) >= page.Summary.Total:
			return all, nil
		case len(all) > maxListed:
			return nil, issuer.Permanent("LOOKUP_TOO_LARGE", "Entrust has more than %d certificates of the name: see at Entrust what became of the order", maxListed)
		}
	}
}

// settled is nil when Entrust has had time enough to list the order.
func (i *Issuer) settled(r issuer.FindRequest) error {
	settle := time.Duration(i.settings.LookupSettleSeconds) * time.Second
	left := min(submittedLast(r).Add(settle).Sub(i.now()), settle)
	if left <= 0 {
		return nil
	}
	return &issuer.RetryError{After: left, Message: fmt.Sprintf("Entrust lists no request of the order yet: "+
		"it counts as never placed if that stays so for %s", left.Round(time.Second))}
}

// submittedLast is when Entrust may have got the order for the last time.
func submittedLast(r issuer.FindRequest) time.Time {
	if r.LastSubmitted.After(r.Since) {
		return r.LastSubmitted
	}
	return r.Since
}

// ListOrders lists what the account has, without what was issued before. The list does not show our order ids.
func (i *Issuer) ListOrders(ctx context.Context, r issuer.ListRequest) (issuer.Listing, error) {
	offset := 0
	if r.Page != "" {
		n, err := strconv.Atoi(r.Page)
		if err != nil || n < 0 {
			return issuer.Listing{}, issuer.Permanent("PAGE_INVALID", "the page of the list is none that was given")
		}
		offset = n
	}
	page, err := i.list(ctx, nil, offset)
	if err != nil {
		return issuer.Listing{}, err
	}
	var out issuer.Listing
	for _, c := range page.Certificates {
		if c.TrackingID > 0 && !issuedBefore(c, r.Since) {
			out.Orders = append(out.Orders, listed(c))
		}
	}
	if next := offset + len(page.Certificates); len(page.Certificates) > 0 && next < page.Summary.Total {
		out.Next = strconv.Itoa(next)
	}
	return out, nil
}

func listed(c listedCertificate) issuer.ListedOrder {
	id := strconv.FormatInt(c.TrackingID, 10)
	o := issuer.ListedOrder{
		Key: id, Ref: issuer.Ref{refTracking: id}, State: issuer.Pending, CommonName: commonNameOf(c.DN),
		Detail: strings.TrimSpace(caclient.Clean(c.CertType) + " " + caclient.Clean(c.Status)),
	}
	switch fateOf(c.Status) {
	case made:
		o.State = issuer.Issued
	case ended, recalled:
		o.State = issuer.Rejected
	case open:
	}
	o.SerialNumber, _ = canonical(c.SerialNumber)
	o.Ref = withSerial(o.Ref, c.SerialNumber)
	if at, err := time.Parse(time.RFC3339, c.IssueDateTime); err == nil {
		o.PlacedAt = at.UTC()
	}
	return o
}

// commonNameOf finds the common name in a distinguished name as Entrust writes it ("cn=www.example.com,o=…"). Host names
// need no unescaping.
func commonNameOf(dn string) string {
	for _, part := range strings.Split(dn, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		if ok && strings.EqualFold(strings.TrimSpace(name), "cn") {
			return caclient.Clean(value)
		}
	}
	return ""
}

// OrderKey gives the tracking id.
func (i *Issuer) OrderKey(ref issuer.Ref) string { return ref[refTracking] }
