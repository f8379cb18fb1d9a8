package sectigo

import (
	"context"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

// listPage is small, as each entry costs a call: the list shows neither dates nor comments.
const listPage = 25

// ListOrders lists the certificates of the issuer's organization and profile, the newest first as far as the CA's list is in
// the order of sslIds, which only grow. It ends with the first page that holds an order from before Since.
func (i *Issuer) ListOrders(ctx context.Context, r issuer.ListRequest) (issuer.Listing, error) {
	at, err := i.startOf(ctx, r.Page)
	if err != nil {
		return issuer.Listing{}, err
	}
	rows, total, err := i.list(ctx, i.own(), at.position, at.size)
	if err != nil {
		return issuer.Listing{}, err
	}
	var out issuer.Listing
	old := false
	for _, row := range rows {
		d, err := i.details(ctx, row.number())
		if p, gone := issuer.AsPermanent(err); gone && p.Reason == orderNotFound {
			continue
		}
		if err != nil {
			return issuer.Listing{}, err
		}
		if tooOld(d.Requested, r.Since) {
			old = true
			continue
		}
		out.Orders = append(out.Orders, d.listed())
	}
	if !old {
		out.Next = at.next(len(rows), total)
	}
	return out, nil
}

func (i *Issuer) own() url.Values {
	return url.Values{
		"orgId":     {strconv.FormatInt(i.settings.OrganizationID, 10)},
		"sslTypeId": {strconv.FormatInt(i.settings.CertificateProfileID, 10)},
	}
}

func (d details) listed() issuer.ListedOrder {
	names := slices.Concat([]string{d.CommonName}, d.SubjectAlternativeNames)
	slices.Sort(names)
	return issuer.ListedOrder{
		Key: d.number(), Ref: issuer.Ref{refSSL: d.number()}, OrderID: d.Comments, State: stateOf(d.Status),
		CommonName: d.CommonName, DNSNames: slices.Compact(names), SerialNumber: serial(d.SerialNumber),
		PlacedAt: parseDate(d.Requested), Detail: caclient.Clean(strings.TrimSpace(d.Status + " " + d.Requester)),
	}
}

// place is where in the CA's list a page is. With the oldest first, pages go from the end of the list to its beginning.
type place struct {
	backwards      bool
	position, size int
}

func (p place) next(rows, total int) string {
	switch {
	case rows == 0:
		return ""
	case p.backwards && p.position > 0:
		return "b" + strconv.Itoa(p.position)
	case !p.backwards && p.position+rows < total:
		return "f" + strconv.Itoa(p.position+rows)
	}
	return ""
}

// startOf finds where a page is. For the first one it looks at the ends of the list to see which is the newest.
func (i *Issuer) startOf(ctx context.Context, page string) (place, error) {
	if page == "" {
		return i.firstPage(ctx)
	}
	n, err := strconv.Atoi(page[1:])
	if err != nil || n < 0 || page[0] != 'b' && page[0] != 'f' {
		return place{}, issuer.Permanent("PAGE_INVALID", "the page of the list of orders is none that was given out")
	}
	if page[0] == 'f' {
		return place{position: n, size: listPage}, nil
	}
	return before(n), nil
}

// before is the page that ends where position begins.
func before(position int) place {
	begin := max(position-listPage, 0)
	return place{backwards: true, position: begin, size: position - begin}
}

func (i *Issuer) firstPage(ctx context.Context) (place, error) {
	first, total, err := i.list(ctx, i.own(), 0, 1)
	if err != nil || total <= listPage || len(first) == 0 {
		return place{size: listPage}, err
	}
	last, _, err := i.list(ctx, i.own(), total-1, 1)
	if err != nil || len(last) == 0 {
		return place{size: listPage}, err
	}
	if compare(first[0].number(), last[0].number()) < 0 {
		return before(total), nil
	}
	return place{size: listPage}, nil
}
