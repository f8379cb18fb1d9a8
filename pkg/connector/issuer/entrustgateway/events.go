package entrustgateway

import (
	"context"
	"crypto/x509"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

const (
	// maxPages bounds the pages of events that one lookup reads. A poll reads fewer, and goes on behind them the next time.
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

// place is one in the feed: so many events of a page are read. The feed only grows, so that it stays the same.
type place struct {
	index string // of the page; empty: the first
	read  int
}

// placeOf is how far the feed was read for an order.
func placeOf(ref issuer.Ref) place {
	n, err := strconv.Atoi(ref[refEvents])
	if err != nil || n < 0 || len(ref[refPage]) > maxIndex {
		return place{}
	}
	return place{index: ref[refPage], read: n}
}

func (p place) into(ref issuer.Ref) issuer.Ref {
	ref = maps.Clone(ref)
	delete(ref, refPage)
	delete(ref, refEvents)
	if p.index != "" {
		ref[refPage] = p.index
	}
	if p != (place{}) {
		ref[refEvents] = strconv.Itoa(p.read)
	}
	return ref
}

// walk hands the events since a time, and from a place on, to visit, until it says that it has seen enough. It tells how far
// it came, also with errTooManyPages.
func (i *Issuer) walk(ctx context.Context, since time.Time, at place, pages int, visit func(place, event) (enough bool, err error)) (place, error) {
	for range pages {
		p, err := i.page(ctx, since, at.index)
		if err != nil {
			return at, unimplemented(err)
		}
		for at.read < len(p.Events) {
			if enough, err := visit(at, p.Events[at.read]); enough || err != nil {
				return at, err
			}
			at.read++
		}
		if !p.more(at.index) {
			return at, nil
		}
		at = place{index: p.NextPageIndex}
	}
	return at, errTooManyPages
}

// leafOf gives the certificate of an event, asked for by its number if the event does not hold it. Without any it is nil, and
// unread tells whether there should be one.
func (i *Issuer) leafOf(ctx context.Context, e event, asked *int) (leaf *x509.Certificate, unread bool, err error) {
	if c, ok := decodeOne(e.Certificate); ok {
		return c, false, nil
	}
	if _, ok := canonical(e.SerialNumber); !ok {
		return nil, strings.TrimSpace(e.Certificate) != "", nil // without either it is an event about nothing
	}
	if *asked >= maxAsked {
		return nil, true, errTooManyPages
	}
	*asked++
	answer, ok, err := i.fetch(ctx, e.SerialNumber)
	if err != nil || !ok {
		return nil, true, err
	}
	c, ok := decodeOne(answer.Certificate.CertificateData)
	return c, !ok, nil
}

// askEvents looks for the certificate of an order that is pending in the feed. It goes on where the poll before came to, so
// that however busy the gateway is, the order is reached. Without the certificate, the reference says how far it is.
func (i *Issuer) askEvents(ctx context.Context, ref issuer.Ref) (issuer.Submission, bool, error) {
	since, err := time.Parse(time.RFC3339, ref[refSince])
	if err != nil || ref[refKey] == "" {
		return issuer.Submission{}, false, nil //nolint:nilerr // a reference that does not say it
	}
	s := search{key: ref[refKey], since: since}
	at, err := i.look(ctx, &s, placeOf(ref), maxPollPages)
	switch {
	case errors.Is(err, errTooManyPages):
	case isFeedless(err) || placeOf(ref) != place{} && isRefusedPage(err):
		return issuer.Submission{Ref: place{}.into(ref)}, false, nil
	case err != nil:
		return issuer.Submission{}, false, err
	case s.unread != nil:
		at = *s.unread // until there are more pages behind it than a poll reads
	}
	ref = at.into(ref)
	found, ok, err := i.found(ctx, ref, s.best())
	if err == nil && !ok {
		found.Ref = ref
	}
	return found, ok, err
}

// isFeedless tells whether the feed cannot say anything, which leaves an order that is known pending.
func isFeedless(err error) bool {
	p, ok := issuer.AsPermanent(err)
	return ok && (p.Fault == issuer.FaultRequest || p.Reason == "NOT_SUPPORTED")
}

// isRefusedPage tells whether the gateway does not take the index of a page any more: the feed is read from its beginning.
func isRefusedPage(err error) bool {
	answer, ok := caclient.AsStatus(err)
	return ok && !answer.Foreign && (answer.Status == http.StatusBadRequest || answer.Status == http.StatusNotFound || answer.Status == http.StatusGone)
}

// search is what is looked for in the feed, and what was found.
type search struct {
	key    string // caclient.KeyID
	names  certcheck.Names
	since  time.Time
	except string // serial number of the certificate that is renewed, in our form

	exact, similar *event
	// unread is where the first event about a certificate is that could not be had.
	unread *place
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
func (i *Issuer) look(ctx context.Context, s *search, from place, pages int) (place, error) {
	asked := 0
	return i.walk(ctx, s.since.Add(-clockMargin), from, pages, func(at place, e event) (bool, error) {
		leaf, unread, err := i.leafOf(ctx, e, &asked)
		if err == nil && unread && s.unread == nil {
			s.unread = &at
		}
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
