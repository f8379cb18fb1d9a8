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
// wait for approval, and the one that the order renews.
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
	for _, id := range ids {
		c, _, err := i.fetch(ctx, id)
		switch {
		case isMissing(err):
			continue
		case err != nil:
			return issuer.Submission{}, false, err
		case isOrder(c, r):
			ref := issuer.Ref{refTracking: id, refKey: caclient.KeyID(r.PublicKey)}
			if before := r.Previous[refTracking]; before != "" {
				ref[refReplaces] = before
			}
			return submission(ref, c), true, nil
		}
	}
	return issuer.Submission{}, false, i.settled(r)
}

func isMissing(err error) bool {
	p, ok := issuer.AsPermanent(err)
	return ok && p.Reason == issuer.ReasonOrderNotFound
}

// isOrder goes by our id. Where Entrust has none with the request, the key decides.
func isOrder(c certificate, r issuer.FindRequest) bool {
	if c.Tracking.TrackingInfo != "" {
		return c.Tracking.TrackingInfo == r.OrderID
	}
	key := caclient.KeyID(r.PublicKey)
	if key == "" {
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
	last := r.Since
	if r.LastSubmitted.After(last) {
		last = r.LastSubmitted
	}
	settle := time.Duration(i.settings.LookupSettleSeconds) * time.Second
	left := min(last.Add(settle).Sub(i.now()), settle)
	if left <= 0 {
		return nil
	}
	return &issuer.RetryError{After: left, Message: fmt.Sprintf("Entrust lists no request of the order yet: "+
		"it counts as never placed if that stays so for %s", left.Round(time.Second))}
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
