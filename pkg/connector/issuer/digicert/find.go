package digicert

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

const (
	pageSize = 100
	// listPage is small, as each entry costs a call.
	listPage = 25
	// maxPages bounds a search by name.
	maxPages = 50
	maxList  = 8 << 20
	// clockDistance is how far the CA's clock and calendar may be from ours when orders are chosen by their date.
	clockDistance = 26 * time.Hour
)

// errTooManyOrders ends a search that cannot be made to the end: what was not looked at is not "not there".
var errTooManyOrders = issuer.Permanent("LOOKUP_TOO_LARGE", "DigiCert has more orders for the common name than can be looked through (%d): "+
	"see at DigiCert whether one has the order's id in its comments", maxPages*pageSize)

// FindOrder looks for an order whose reply was lost: among the re-issues of the order before, and among the orders for the
// common name. The one with our order id in its comments is it, or the one with our CSR that is no other order's of ours.
// What the settings say of renewals today does not matter: the order was placed by those of then.
func (i *Issuer) FindOrder(ctx context.Context, r issuer.FindRequest) (issuer.Submission, bool, error) {
	if err := issuer.NotSent(ctx); err != nil {
		return issuer.Submission{}, false, err
	}
	for _, search := range []func(context.Context, issuer.FindRequest) (issuer.Ref, error){i.findReissue, i.findNew} {
		ref, err := search(ctx, r)
		if err != nil {
			return issuer.Submission{}, false, err
		}
		if ref != nil {
			return pending(ref, "the order was found at the CA"), true, nil
		}
	}
	settle := time.Duration(i.settings.LookupSettleSeconds) * time.Second
	return issuer.Submission{}, false, caclient.Unsettled(r, i.now(), settle)
}

func (i *Issuer) findReissue(ctx context.Context, r issuer.FindRequest) (issuer.Ref, error) {
	previous := r.Previous[refOrder]
	if !numeric(previous) {
		return nil, nil
	}
	all, err := i.reissues(ctx, previous)
	if p, gone := issuer.AsPermanent(err); gone && p.Reason == orderNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	want := wanted(r, previous)
	want[refReissue] = "true"
	if before := r.Previous[refCertificate]; before != "" {
		want[refPrevious] = before
	}
	for _, c := range all {
		if isNew(want, c) && !tooOld(c.DateCreated, r.Since) {
			want[refCertificate] = string(c.ID)
			return want, nil
		}
	}
	return i.requested(ctx, want, r.OrderID)
}

// requested looks for a re-issue that is a request only: one that waits for approval, or was rejected.
func (i *Issuer) requested(ctx context.Context, want issuer.Ref, orderID string) (issuer.Ref, error) {
	o, err := i.order(ctx, want[refOrder])
	if p, gone := issuer.AsPermanent(err); gone && p.Reason == orderNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, each := range o.Requests {
		if each.Type == requestReissue && each.Comments == orderID && each.ID != "" {
			want[refRequest] = string(each.ID)
			return want, nil
		}
	}
	return nil, nil
}

// wanted is the reference that Submit would have given.
func wanted(r issuer.FindRequest, number string) issuer.Ref {
	ref := issuer.Ref{refOrder: number, refCSR: hexOf(r.CSRSHA256)}
	if r.PublicKey != nil {
		ref[refKey] = caclient.KeyID(r.PublicKey)
	}
	return ref
}

func (i *Issuer) findNew(ctx context.Context, r issuer.FindRequest) (issuer.Ref, error) {
	rows, err := i.ordersFor(ctx, caclient.CommonName(r.Names))
	if err != nil {
		return nil, err
	}
	// The oldest first: should the CA have made two orders of one request, every search finds the same.
	slices.SortFunc(rows, func(a, b order) int {
		return cmp.Or(cmp.Compare(len(a.ID), len(b.ID)), cmp.Compare(a.ID, b.ID))
	})
	for _, row := range rows {
		if tooOld(row.DateCreated, r.Since) || string(row.ID) == r.Previous[refOrder] {
			continue
		}
		o, err := i.order(ctx, string(row.ID))
		if p, gone := issuer.AsPermanent(err); gone && p.Reason == orderNotFound {
			continue
		}
		if err != nil {
			return nil, err
		}
		if o.isOf(r) {
			return wanted(r, string(o.ID)), nil
		}
	}
	return nil, nil
}

func tooOld(created string, since time.Time) bool {
	at := parseTime(created)
	return !at.IsZero() && !since.IsZero() && at.Before(since.Add(-clockDistance))
}

// ofCertctl is the form of certctl's order ids.
var ofCertctl = regexp.MustCompile(`^ord-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// isOf tells whether an order was placed by the request that r describes: by its comments, or, since people edit those and
// the CA may not show them, by its CSR, unless it says that it is another order of certctl's.
func (o order) isOf(r issuer.FindRequest) bool {
	comments := o.comments()
	return slices.Contains(comments, r.OrderID) ||
		o.Certificate.csrHash() == hexOf(r.CSRSHA256) && !slices.ContainsFunc(comments, ofCertctl.MatchString)
}

// ordersFor lists all orders for a common name.
func (i *Issuer) ordersFor(ctx context.Context, commonName string) ([]order, error) {
	var all []order
	for range maxPages {
		list, err := i.list(ctx, url.Values{"filters[common_name]": {commonName}}, len(all), pageSize)
		if err != nil {
			return nil, err
		}
		all = append(all, list.Orders...)
		switch {
		case len(all) >= list.Page.Total:
			return all, nil
		case len(list.Orders) == 0:
			return nil, issuer.RetryAfter(0, errors.New("the list of the CA ends before the number of orders that it states"))
		}
	}
	return nil, errTooManyOrders
}

func (i *Issuer) list(ctx context.Context, query url.Values, offset, limit int) (orderList, error) {
	query.Set("sort", "-date_created")
	query.Set("limit", strconv.Itoa(limit))
	query.Set("offset", strconv.Itoa(offset))
	var list orderList
	_, err := i.client.JSON(ctx, caclient.Call{
		Method: http.MethodGet, Path: []string{"order", "certificate"}, Query: query, MaxBytes: maxList,
	}, &list)
	return list, err
}

// ListOrders lists the orders of the account, the newest first, and asks for each, as the CA's list shows no comments.
func (i *Issuer) ListOrders(ctx context.Context, r issuer.ListRequest) (issuer.Listing, error) {
	offset, err := pageOf(r.Page)
	if err != nil {
		return issuer.Listing{}, err
	}
	list, err := i.list(ctx, url.Values{}, offset, listPage)
	if err != nil {
		return issuer.Listing{}, err
	}
	var out issuer.Listing
	old := false
	for _, row := range list.Orders {
		if at := parseTime(row.DateCreated); !at.IsZero() && at.Before(r.Since) {
			old = true
			continue
		}
		o, err := i.order(ctx, string(row.ID))
		if p, gone := issuer.AsPermanent(err); gone && p.Reason == orderNotFound {
			continue
		}
		if err != nil {
			return issuer.Listing{}, err
		}
		out.Orders = append(out.Orders, o.listed())
	}
	if next := offset + len(list.Orders); !old && len(list.Orders) > 0 && next < list.Page.Total {
		out.Next = strconv.Itoa(next)
	}
	return out, nil
}

func pageOf(page string) (int, error) {
	if page == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(page)
	if err != nil || n < 0 {
		return 0, issuer.Permanent("PAGE_INVALID", "the page of the list of orders is none that was given out")
	}
	return n, nil
}

// comments are all that were given with the order and its re-issues, the order's own first.
func (o order) comments() []string {
	out := []string{o.Comments}
	for _, each := range slices.Backward(o.Requests) { // the CA shows the newest first
		if each.Type != requestRevoke {
			out = append(out, each.Comments)
		}
	}
	return slices.DeleteFunc(out, func(s string) bool { return s == "" })
}

func (o order) listed() issuer.ListedOrder {
	orderID := ""
	if comments := o.comments(); len(comments) > 0 {
		orderID = comments[0]
	}
	state := issuer.Pending
	switch o.Status {
	case "issued":
		state = issuer.Issued
	case "rejected", "denied", "canceled", "cancelled", "expired", "revoked":
		state = issuer.Rejected
	}
	names := slices.Concat([]string{o.Certificate.CommonName}, o.Certificate.DNSNames)
	slices.Sort(names)
	return issuer.ListedOrder{
		Key: string(o.ID), Ref: issuer.Ref{refOrder: string(o.ID)}, OrderID: orderID, State: state,
		CommonName: o.Certificate.CommonName, DNSNames: slices.Compact(names),
		SerialNumber: serial(o.Certificate.SerialNumber), PlacedAt: parseTime(o.DateCreated), Detail: caclient.Clean(o.Status),
	}
}

// OrderKey gives the order id. Re-issues keep it.
func (i *Issuer) OrderKey(ref issuer.Ref) string { return ref[refOrder] }
