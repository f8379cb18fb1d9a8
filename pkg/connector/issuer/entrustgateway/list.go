package entrustgateway

import (
	"context"
	"time"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

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
