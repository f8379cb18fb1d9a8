package globalsign

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

const perPage = 100

// ListOrders lists what was issued to the account, whoever asked for it. The CA's list has serial numbers and validities
// only: Poll gives the certificates, and thus the names.
func (i *Issuer) ListOrders(ctx context.Context, r issuer.ListRequest) (issuer.Listing, error) {
	at := cursor{page: 1, from: r.Since.Unix(), to: i.now().Add(clockMargin).Unix()}
	if r.Page != "" {
		var ok bool
		if at, ok = parseCursor(r.Page); !ok {
			return issuer.Listing{}, issuer.Permanent("PAGE_INVALID", "the page of the list is none that was given")
		}
	}
	entries, next, err := i.listPage(ctx, at)
	if err != nil {
		return issuer.Listing{}, err
	}
	var out issuer.Listing
	for _, e := range entries {
		ref, ok := refOf(e.SerialNumber)
		if !ok {
			continue
		}
		out.Orders = append(out.Orders, issuer.ListedOrder{
			Key: ref[refSerial], Ref: ref, State: issuer.Issued, SerialNumber: ref[refSerial], PlacedAt: time.Unix(e.NotBefore, 0).UTC(),
			Detail: "valid until " + time.Unix(e.NotAfter, 0).UTC().Format(time.RFC3339),
		})
	}
	if next != nil {
		out.Next = next.String()
	}
	return out, nil
}

// OrderKey gives the serial number: it is all that the CA knows orders by.
func (i *Issuer) OrderKey(ref issuer.Ref) string { return ref[refSerial] }

// cursor is a place in the list of issued certificates. The window stays the same from page to page, and seen counts what
// came before, as the CA may have smaller pages than are asked for.
type cursor struct {
	page, seen int
	from, to   int64
}

func (c cursor) String() string { return fmt.Sprintf("%d.%d.%d.%d", c.page, c.seen, c.from, c.to) }

func parseCursor(s string) (cursor, bool) {
	parts := strings.Split(s, ".")
	if len(parts) != 4 || len(s) > 100 {
		return cursor{}, false
	}
	var n [4]int64
	for i, part := range parts {
		var err error
		if n[i], err = strconv.ParseInt(part, 10, 64); err != nil {
			return cursor{}, false
		}
	}
	c := cursor{page: int(n[0]), seen: int(n[1]), from: n[2], to: n[3]}
	return c, c.page > 0 && c.seen >= 0
}

// listPage reads one page; next is nil when it was the last.
func (i *Issuer) listPage(ctx context.Context, at cursor) (entries []issuedEntry, next *cursor, err error) {
	call := caclient.Call{Method: http.MethodGet, Path: []string{"stats", "issued"}, Query: url.Values{
		"page": {strconv.Itoa(at.page)}, "per_page": {strconv.Itoa(perPage)},
		"from": {strconv.FormatInt(max(at.from, 0), 10)}, "to": {strconv.FormatInt(at.to, 10)},
	}}
	resp, err := i.do(ctx, call, &entries)
	if err != nil {
		return nil, nil, err
	}
	total, err := strconv.Atoi(resp.Header.Get("Total-Count"))
	if err != nil {
		return nil, nil, i.client.Unusable(call, "the list of issued certificates does not say how many there are")
	}
	at.page, at.seen = at.page+1, at.seen+len(entries)
	if len(entries) == 0 && at.seen < total {
		return nil, nil, i.client.Unusable(call, "the list of issued certificates ended after %d of %d", at.seen, total)
	}
	if at.seen >= total {
		return entries, nil, nil
	}
	return entries, &at, nil
}
