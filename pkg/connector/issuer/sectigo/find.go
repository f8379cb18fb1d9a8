package sectigo

import (
	"context"
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
	searchPage = 200
	maxPages   = 50
	// dateDistance is how far the CA's clock and calendar may be from ours; its dates have no time of day.
	dateDistance = 50 * time.Hour
	totalHeader  = "X-Total-Count"
)

// FindOrder looks for an order whose reply was lost: whether the certificate before was replaced, and then among the
// requests for the common name for the one with our order id in its comments.
func (i *Issuer) FindOrder(ctx context.Context, r issuer.FindRequest) (issuer.Submission, bool, error) {
	if err := issuer.NotSent(ctx); err != nil {
		return issuer.Submission{}, false, err
	}
	for _, search := range []func(context.Context, issuer.FindRequest) (issuer.Ref, error){i.findReplacement, i.findNew} {
		ref, err := search(ctx, r)
		if err != nil {
			return issuer.Submission{}, false, err
		}
		if ref != nil {
			return pending(ref, "the order was found at the CA"), true, nil
		}
	}
	return issuer.Submission{}, false, caclient.Unsettled(r, i.now(), i.settings.settle())
}

// findReplacement looks at the order before. SCM does not show which request a replacement comes from: one that is under
// way under our sslId is taken for ours, and the caller judges what comes of it by its key.
func (i *Issuer) findReplacement(ctx context.Context, r issuer.FindRequest) (issuer.Ref, error) {
	number, before := r.Previous[refSSL], r.Previous[refSerial]
	if !numeric(number) || before == "" || i.settings.Renewal == RenewalNew {
		return nil, nil
	}
	d, err := i.details(ctx, number)
	if p, gone := issuer.AsPermanent(err); gone && p.Reason == orderNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	ref := issuer.Ref{refSSL: number, refKey: caclient.KeyID(r.PublicKey), refReplaced: before}
	switch stateOf(d.Status) {
	case issuer.Pending:
		return ref, nil
	case issuer.Rejected:
		return nil, nil
	case issuer.Issued:
	}
	if serial(d.SerialNumber) == before {
		return nil, nil
	}
	sub, err := i.collect(ctx, ref)
	if err != nil || sub.State == issuer.Rejected {
		return nil, err
	}
	if sub.State == issuer.Issued && !sameKey(sub, ref) {
		return nil, nil // somebody else replaced it
	}
	return ref, nil
}

func sameKey(sub issuer.Submission, ref issuer.Ref) bool {
	bundle, err := caclient.ParseBundle(sub.CertificatePEM)
	return err == nil && bundle.LeafOf(ref[refKey]) != nil
}

func (i *Issuer) findNew(ctx context.Context, r issuer.FindRequest) (issuer.Ref, error) {
	numbers, err := i.numbersFor(ctx, caclient.CommonName(r.Names))
	if err != nil {
		return nil, err
	}
	var found string
	for _, number := range numbers {
		d, err := i.details(ctx, number)
		if p, gone := issuer.AsPermanent(err); gone && p.Reason == orderNotFound {
			continue
		}
		if err != nil {
			return nil, err
		}
		if tooOld(d.Requested, r.Since) {
			break
		}
		if d.Comments == r.OrderID {
			found = number // the oldest: should the CA have made two of one request, every search finds the same
		}
	}
	if found == "" {
		return nil, nil
	}
	return issuer.Ref{refSSL: found, refKey: caclient.KeyID(r.PublicKey)}, nil
}

func tooOld(requested string, since time.Time) bool {
	at := parseDate(requested)
	return !at.IsZero() && !since.IsZero() && at.Before(since.Add(-dateDistance))
}

// numbersFor lists the sslIds of all requests for a common name, the newest (highest) first.
func (i *Issuer) numbersFor(ctx context.Context, commonName string) ([]string, error) {
	var all []string
	seen := 0
	for range maxPages {
		rows, total, err := i.list(ctx, url.Values{"commonName": {commonName}}, seen, searchPage)
		if err != nil {
			return nil, err
		}
		seen += len(rows)
		for _, row := range rows {
			if strings.EqualFold(row.CommonName, commonName) { // the filter takes a part of the name for the name
				all = append(all, row.number())
			}
		}
		if len(rows) == 0 || seen >= total {
			break
		}
	}
	slices.SortFunc(all, func(a, b string) int { return compare(b, a) })
	return all, nil
}

// compare orders numbers that are text.
func compare(a, b string) int {
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	return strings.Compare(a, b)
}

func (i *Issuer) list(ctx context.Context, query url.Values, position, size int) (rows []details, total int, err error) {
	query.Set("position", strconv.Itoa(position))
	query.Set("size", strconv.Itoa(size))
	call := caclient.Call{Method: http.MethodGet, Path: []string{"ssl", "v1"}, Query: query, MaxBytes: maxList}
	answer, err := i.client.JSON(ctx, call, &rows)
	if err != nil {
		return nil, 0, err
	}
	for _, row := range rows {
		if row.number() == "" {
			return nil, 0, i.client.Unusable(call, "the list of the CA holds an entry without sslId")
		}
	}
	total, err = strconv.Atoi(answer.Header.Get(totalHeader))
	if err != nil { // an instance that does not count: there is more as long as pages are full
		total = position + len(rows)
		if len(rows) >= size {
			total++
		}
	}
	return rows, total, nil
}
