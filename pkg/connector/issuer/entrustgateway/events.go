package entrustgateway

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

const (
	// maxPages bounds the pages of events that one question reads; a poll reads fewer.
	maxPages     = 100
	maxPollPages = 5
	// maxAsked bounds the certificates that one question fetches because the events do not hold them.
	maxAsked = 50
	// clockMargin is how far the CA's clock may be from ours.
	clockMargin = 25 * time.Hour
	// slack is how much earlier than its order a certificate may begin by our own clock.
	slack = 10 * time.Minute
	// maxIndex is the longest index of a page.
	maxIndex = 1024
	// maxEventsBody: a page holds certificates.
	maxEventsBody = 8 << 20
)

// errTooManyPages is told by walk when there is more than it may read.
var errTooManyPages = issuer.Permanent("LOOKUP_TOO_LARGE", "the gateway has more certificate events since the order than can be looked "+
	"through: see at the CA what became of it")

// page reads one page of events: the first by the time, each other one by the index that came with the one before.
func (i *Issuer) page(ctx context.Context, since time.Time, index string) (eventsResponse, error) {
	call := i.call(http.MethodGet, "certificate-events")
	call.MaxBytes = maxEventsBody
	call.Query = url.Values{"startDate": {since.UTC().Format("2006-01-02T15:04:05.000Z")}}
	if index != "" {
		call.Query = url.Values{"nextPageIndex": {index}}
	}
	call.Map = mapEvents
	var answer eventsResponse
	if _, err := i.client.JSON(ctx, call, &answer); err != nil {
		return eventsResponse{}, err
	}
	if len(answer.NextPageIndex) > maxIndex {
		return eventsResponse{}, i.client.Unusable(call, "the index of the next page has %d bytes", len(answer.NextPageIndex))
	}
	return answer, nil
}

// mapEvents: not every CA behind a gateway has a feed.
func mapEvents(e *caclient.StatusError) error {
	if e.Status == http.StatusNotFound || e.Status == http.StatusMethodNotAllowed {
		return caclient.Refused("LOOKUP_NOT_SUPPORTED", e)
	}
	return nil
}

// more tells whether there is a page behind one.
func (r eventsResponse) more(before string) bool {
	return (r.MorePages || r.HasMore) && r.NextPageIndex != "" && r.NextPageIndex != before
}

// walk hands the events since a time to visit, until it says that it has seen enough.
func (i *Issuer) walk(ctx context.Context, since time.Time, pages int, visit func(event) (enough bool, err error)) error {
	index := ""
	for range pages {
		p, err := i.page(ctx, since, index)
		if err != nil {
			return unimplemented(err)
		}
		for _, e := range p.Events {
			if enough, err := visit(e); enough || err != nil {
				return err
			}
		}
		if !p.more(index) {
			return nil
		}
		index = p.NextPageIndex
	}
	return errTooManyPages
}

// leafOf gives the certificate of an event, asked for by its number if the event does not hold it. Without any it is nil.
func (i *Issuer) leafOf(ctx context.Context, e event, asked *int) (*x509.Certificate, error) {
	if c, ok := decodeOne(e.Certificate); ok {
		return c, nil
	}
	if _, ok := canonical(e.SerialNumber); !ok {
		return nil, nil //nolint:nilnil // an event about nothing
	}
	if *asked++; *asked > maxAsked {
		return nil, errTooManyPages
	}
	answer, ok, err := i.fetch(ctx, e.SerialNumber)
	if err != nil || !ok {
		return nil, err
	}
	c, _ := decodeOne(answer.Certificate.CertificateData)
	return c, nil
}

// askEvents looks for the certificate of an order that is pending in the feed.
func (i *Issuer) askEvents(ctx context.Context, ref issuer.Ref) (issuer.Submission, bool, error) {
	since, err := time.Parse(time.RFC3339, ref[refSince])
	if err != nil || ref[refKey] == "" {
		return issuer.Submission{}, false, nil //nolint:nilerr // a reference that does not say it
	}
	s := search{key: ref[refKey], since: since}
	switch err := i.look(ctx, &s, maxPollPages); {
	case isFeedless(err):
		return issuer.Submission{}, false, nil
	case err != nil:
		return issuer.Submission{}, false, err
	}
	return i.found(ctx, ref, s.best())
}

// isFeedless tells whether the feed cannot say anything, which leaves an order that is known pending.
func isFeedless(err error) bool {
	p, ok := issuer.AsPermanent(err)
	return ok && (p.Fault == issuer.FaultRequest || p.Reason == "NOT_SUPPORTED")
}

// search is what is looked for in the feed, and what was found.
type search struct {
	key    string // caclient.KeyID
	names  certcheck.Names
	since  time.Time
	except string // serial number of the certificate that is renewed, in our form

	exact, similar *event
}

// best prefers a certificate with the names too over one made after the order that has only its key: the CA made something
// else of the order, and it is not to be enrolled again for that.
func (s *search) best() *event {
	if s.exact != nil {
		return s.exact
	}
	return s.similar
}

// see judges a certificate; true ends the search.
func (s *search) see(e event, leaf *x509.Certificate) bool {
	if leaf == nil || caclient.KeyID(leaf.PublicKey) != s.key || issuer.FormatSerial(leaf.SerialNumber) == s.except {
		return false
	}
	if _, ok := canonical(e.SerialNumber); !ok {
		e.SerialNumber = issuer.FormatSerial(leaf.SerialNumber)
	}
	switch {
	case s.names.Len() > 0 && sameNames(leaf, s.names):
		s.exact = &e
		return true
	case s.similar == nil && !leaf.NotBefore.Before(s.since.Add(-slack)):
		s.similar = &e
	}
	return false
}

// look searches the feed. The CA's clock may be off, so it begins a day before the order.
func (i *Issuer) look(ctx context.Context, s *search, pages int) error {
	asked := 0
	return i.walk(ctx, s.since.Add(-clockMargin), pages, func(e event) (bool, error) {
		leaf, err := i.leafOf(ctx, e, &asked)
		return err == nil && s.see(e, leaf), err
	})
}

// found makes the answer of what was found in the feed. What the feed tells of is there, whether it can be fetched yet or not.
func (i *Issuer) found(ctx context.Context, ref issuer.Ref, e *event) (issuer.Submission, bool, error) {
	if e == nil {
		return issuer.Submission{}, false, nil
	}
	ref = withCertificate(ref, e.SerialNumber)
	sub, ok, err := i.askCertificate(ctx, ref)
	if err == nil && !ok {
		return issuer.Submission{State: issuer.Pending, Ref: ref, Detail: "the gateway tells of the certificate and does not give it yet"}, true, nil
	}
	return sub, ok, err
}

// sameNames tells whether a certificate has exactly the names of an order.
func sameNames(leaf *x509.Certificate, want certcheck.Names) bool {
	got, err := certcheck.ParseNames(rawNames(leaf))
	return err == nil && got.EqualSANs(want)
}

func rawNames(leaf *x509.Certificate) certcheck.RawNames {
	raw := certcheck.RawNames{DNSNames: leaf.DNSNames, EmailAddresses: leaf.EmailAddresses}
	for _, ip := range leaf.IPAddresses {
		raw.IPAddresses = append(raw.IPAddresses, ip.String())
	}
	for _, u := range leaf.URIs {
		raw.URIs = append(raw.URIs, u.String())
	}
	return raw
}

// FindOrder looks in the feed of certificate events for a certificate with the order's key and names. Since an enrolment may
// take its time before there is a certificate, "there is none" is said only after the settings' time for that is over.
func (i *Issuer) FindOrder(ctx context.Context, r issuer.FindRequest) (issuer.Submission, bool, error) {
	if err := issuer.NotSent(ctx); err != nil {
		return issuer.Submission{}, false, err
	}
	if r.Ref[refCertificate] != "" || r.Ref[refEnrollment] != "" {
		found, err := i.Poll(ctx, r.Ref)
		return found, err == nil, err
	}
	key := caclient.KeyID(r.PublicKey)
	if key == "" {
		return issuer.Submission{}, false, issuer.Permanent("PUBLIC_KEY_MISSING", "the gateway has no reference of ours: without its public key an order cannot be looked up")
	}
	s := search{key: key, names: r.Names, since: r.Since, except: r.Previous[refSerial]}
	if err := i.look(ctx, &s, maxPages); err != nil {
		return issuer.Submission{}, false, err
	}
	ref := issuer.Ref{refKey: key, refSince: r.Since.UTC().Format(time.RFC3339)}
	found, ok, err := i.found(ctx, ref, s.best())
	if err != nil || ok {
		return found, ok, err
	}
	return issuer.Submission{}, false, i.settled(r)
}

// settled is nil when the CA has had time enough to show the order.
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
	return &issuer.RetryError{After: left, Message: fmt.Sprintf("the gateway shows no certificate of the order yet: "+
		"it counts as never placed if that stays so for %s", left.Round(time.Second))}
}

// ListOrders lists the certificates that the feed tells of and that were made since, whoever asked for them. Enrolments
// without a certificate are in no list of the gateway.
func (i *Issuer) ListOrders(ctx context.Context, r issuer.ListRequest) (issuer.Listing, error) {
	if len(r.Page) > maxIndex {
		return issuer.Listing{}, issuer.Permanent("PAGE_INVALID", "the page of the list is none that was given")
	}
	p, err := i.page(ctx, r.Since.Add(-clockMargin), r.Page)
	if err != nil {
		return issuer.Listing{}, unimplemented(err)
	}
	var out issuer.Listing
	for _, e := range p.Events {
		if o, ok := listed(e, r.Since); ok {
			out.Orders = append(out.Orders, o)
		}
	}
	if p.more(r.Page) {
		out.Next = p.NextPageIndex
	}
	return out, nil
}

// listed makes an order of an event. One about a certificate from before is a revocation or the like.
func listed(e event, since time.Time) (issuer.ListedOrder, bool) {
	leaf, ok := decodeOne(e.Certificate)
	if ok && leaf.NotBefore.Before(since.Add(-clockMargin)) {
		return issuer.ListedOrder{}, false
	}
	if _, known := canonical(e.SerialNumber); !known && ok {
		e.SerialNumber = issuer.FormatSerial(leaf.SerialNumber)
	}
	serial, known := canonical(e.SerialNumber)
	if !known {
		return issuer.ListedOrder{}, false
	}
	o := issuer.ListedOrder{
		Key: serial, Ref: withCertificate(nil, e.SerialNumber), State: issuer.Issued, SerialNumber: serial, Detail: caclient.Clean(e.Action),
	}
	if at, err := time.Parse(time.RFC3339, e.EventDate); err == nil {
		o.PlacedAt = at.UTC()
	}
	if ok {
		o.CommonName, o.DNSNames, o.PlacedAt = leaf.Subject.CommonName, leaf.DNSNames, leaf.NotBefore.UTC()
	}
	return o, true
}

// OrderKey gives the serial number: enrolments have no other name that the feed knows.
func (i *Issuer) OrderKey(ref issuer.Ref) string { return ref[refSerial] }
