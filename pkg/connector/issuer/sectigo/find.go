package sectigo

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/connector/certcheck"
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

// errTooManyRows ends a search that cannot be made to the end: what was not looked at is not "not there".
var errTooManyRows = issuer.Permanent("LOOKUP_TOO_LARGE", "Sectigo has more certificates of the name than can be looked through (%d): "+
	"see in SCM whether one has the order's id in its comments", maxPages*searchPage)

// FindOrder looks for an order whose reply was lost: whether the certificate before was replaced, and then among the
// requests for the names for the one with our order id in its comments. What the settings say of renewals today does not
// matter: the order was placed by those of then.
func (i *Issuer) FindOrder(ctx context.Context, r issuer.FindRequest) (issuer.Submission, bool, error) {
	if err := issuer.NotSent(ctx); err != nil {
		return issuer.Submission{}, false, err
	}
	ref, settle, err := i.findReplacement(ctx, r)
	if err == nil && ref == nil {
		ref, err = i.findNew(ctx, r)
	}
	switch {
	case err != nil:
		return issuer.Submission{}, false, err
	case ref != nil:
		return pending(ref, "the order was found at the CA"), true, nil
	}
	return issuer.Submission{}, false, caclient.Unsettled(r, i.now(), max(settle, i.settings.settle()))
}

// findReplacement looks at the order before. SCM does not show which request a replacement comes from: one that is under
// way under our sslId is taken for ours until its certificate shows whose key it has. Without one, settle is how long
// after the submission it may still appear.
func (i *Issuer) findReplacement(ctx context.Context, r issuer.FindRequest) (ref issuer.Ref, settle time.Duration, err error) {
	number, before := r.Previous[refSSL], r.Previous[refSerial]
	if !numeric(number) || before == "" {
		return nil, 0, nil
	}
	d, err := i.details(ctx, number)
	if p, gone := issuer.AsPermanent(err); gone && p.Reason == orderNotFound {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	ref = issuer.Ref{refSSL: number, refKey: caclient.KeyID(r.PublicKey), refReplaced: before}
	switch stateOf(d.Status) {
	case issuer.Pending:
		ref[refAdopted] = "true"
		return ref, 0, nil
	case issuer.Rejected:
		return nil, 0, nil
	case issuer.Issued:
	}
	if serial(d.SerialNumber) == before {
		if r.Previous[refReplaced] != "" { // its term is shorter than SCM says
			return nil, i.settings.replacementSettle(), nil
		}
		if d.notAskedFor(r.Since) {
			return nil, 0, nil
		}
		return nil, i.settings.replacementSettle(), nil
	}
	ref, err = i.ofOurs(ctx, ref)
	return ref, 0, err
}

// ofOurs holds a replacement that is there against our key: nil if somebody else replaced the certificate.
func (i *Issuer) ofOurs(ctx context.Context, ref issuer.Ref) (issuer.Ref, error) {
	sub, err := i.collect(ctx, ref)
	switch {
	case err != nil || sub.State == issuer.Rejected:
		return nil, err
	case sub.State == issuer.Issued && sameKey(sub, ref):
		return ref, nil
	case sub.State == issuer.Issued:
		return nil, nil
	}
	ref[refAdopted] = "true"
	return ref, nil
}

// notAskedFor tells that a certificate which was not replaced will not be: one that was in the last part of its term was not
// asked to be (see worthReplacing), which is how most renewals are.
func (d details) notAskedFor(submitted time.Time) bool {
	end, whole := parseDate(d.Expires), time.Duration(d.Term)*day
	return !end.IsZero() && !submitted.IsZero() && whole > 0 && end.Sub(submitted) < whole/2-dateDistance
}

func sameKey(sub issuer.Submission, ref issuer.Ref) bool {
	bundle, err := caclient.ParseBundle(sub.CertificatePEM)
	return err == nil && bundle.LeafOf(ref[refKey]) != nil
}

func (i *Issuer) findNew(ctx context.Context, r issuer.FindRequest) (issuer.Ref, error) {
	numbers, err := i.numbersFor(ctx, r.Names)
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

// numbersFor lists the sslIds of all requests that may be for the names, the newest (highest) first. The filters take a part
// of a name for the name, and the common name of a request is what SCM made of the CSR: so it is looked for under both
// kinds of names, and nothing is left out but what shows other names only.
func (i *Issuer) numbersFor(ctx context.Context, names certcheck.Names) ([]string, error) {
	name := caclient.CommonName(names)
	var all []string
	for _, filter := range []string{"commonName", "subjectAlternativeName"} {
		rows, err := i.search(ctx, filter, name)
		if err != nil {
			return nil, err
		}
		for _, row := range rows {
			if row.mayHave(name) {
				all = append(all, row.number())
			}
		}
	}
	slices.SortFunc(all, func(a, b string) int { return compare(b, a) })
	return slices.Compact(all), nil
}

// mayHave tells whether a row of the list can be of a certificate for a name. One without alternative names hides some.
func (d details) mayHave(name string) bool {
	is := func(n string) bool { return strings.EqualFold(n, name) }
	return len(d.SubjectAlternativeNames) == 0 || is(d.CommonName) || slices.ContainsFunc(d.SubjectAlternativeNames, is)
}

// search lists all that a filter finds. A list that cannot be read to its end is an error.
func (i *Issuer) search(ctx context.Context, filter, name string) ([]details, error) {
	var all []details
	for range maxPages {
		rows, total, err := i.list(ctx, url.Values{filter: {name}}, len(all), searchPage)
		if err != nil {
			return nil, err
		}
		all = append(all, rows...)
		switch {
		case len(all) >= total:
			return all, nil
		case len(rows) == 0:
			return nil, issuer.RetryAfter(0, errors.New("the list of the CA ends before the number of entries that it states"))
		}
	}
	return nil, errTooManyRows
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
