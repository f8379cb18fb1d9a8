package casimulator

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// ecsPage is the usual number of certificates on a page, ecsLargest the highest.
	ecsPage    = 100
	ecsLargest = 1000
)

// ecsFilters are the fields that a list can be restricted by.
func ecsFilters() map[string]func(ecsCertificate) string {
	return map[string]func(ecsCertificate) string{
		"certType":     func(c ecsCertificate) string { return c.CertType },
		"dn":           func(c ecsCertificate) string { return c.DN },
		"domainUsed":   func(c ecsCertificate) string { return c.DomainUsed },
		"org":          func(c ecsCertificate) string { return c.Org },
		"status":       func(c ecsCertificate) string { return c.Status },
		"serialNumber": func(c ecsCertificate) string { return c.SerialNumber },
	}
}

// ecsMatches tells whether a value is what a filter wants: exactly, one of several (in:), or within it (con:).
func ecsMatches(want, value string) bool {
	if part, ok := strings.CutPrefix(want, "con:"); ok {
		return strings.Contains(strings.ToLower(value), strings.ToLower(part))
	}
	if several, ok := strings.CutPrefix(want, "in:"); ok {
		return slices.ContainsFunc(strings.Split(several, ","), func(one string) bool { return strings.EqualFold(one, value) })
	}
	return strings.EqualFold(want, value)
}

// ecsSummary says of a list where it is.
type ecsSummary struct {
	Timestamp string `json:"timestamp"`
	Elapsed   int    `json:"elapsed"`
	Offset    int    `json:"offset"`
	Limit     int    `json:"limit"`
	Total     int    `json:"total"`
	Sort      string `json:"sort"`
}

// list gives a page of certificates, by tracking ID. Those that are approved and not made yet, or declined, are not in it.
func (a *entrustecsAPI) list(c *call) reply {
	q := c.request.URL.Query()
	limit, err := ecsNumber(q.Get("limit"), ecsPage, 1, ecsLargest)
	offset, offsetErr := ecsNumber(q.Get("offset"), 0, 0, 1<<31)
	if err != nil || offsetErr != nil {
		return c.refuse(http.StatusBadRequest, "limit is at most %d, and offset not negative", ecsLargest)
	}
	order := q.Get("sort")
	if order != "" && strings.TrimPrefix(order, "-") != "trackingId" {
		return c.refuse(http.StatusBadRequest, "sort %q is neither trackingId nor -trackingId", order)
	}
	for name := range q {
		_, filter := ecsFilters()[name]
		if !filter && !slices.Contains([]string{"limit", "offset", "sort", "fields", "subjectAltName"}, name) {
			return c.refuse(http.StatusBadRequest, "there is no parameter %q", name)
		}
	}
	found := a.filtered(c)
	if strings.HasPrefix(order, "-") {
		slices.Reverse(found)
	}
	total := len(found)
	found = found[min(offset, total):]
	found = found[:min(limit, len(found))]
	return jsonReply(http.StatusOK, struct {
		Summary      ecsSummary       `json:"summary"`
		Certificates []ecsCertificate `json:"certificates"`
	}{
		ecsSummary{a.sim.said(c.now).Format(time.RFC3339), 1, offset, limit, total, orTrackingID(order)},
		append([]ecsCertificate{}, found...),
	})
}

func orTrackingID(order string) string {
	if order == "" {
		return "trackingId"
	}
	return order
}

// filtered are the certificates that the parameters of a list let through.
func (a *entrustecsAPI) filtered(c *call) []ecsCertificate {
	q := c.request.URL.Query()
	var found []ecsCertificate
	listed := c.listed()
	for _, o := range a.sim.store.all(EntrustECS) {
		if o.Forgotten || o.Accepted.After(listed) {
			continue
		}
		d := a.describe(c, o)
		ok := d.Status != "APPROVED" && d.Status != "DECLINED"
		for name, field := range ecsFilters() {
			ok = ok && (!q.Has(name) || ecsMatches(q.Get(name), field(d)))
		}
		names := o.Requests[0].DNSNames
		ok = ok && (!q.Has("subjectAltName") || slices.ContainsFunc(names, func(n string) bool { return ecsMatches(q.Get("subjectAltName"), n) }))
		if ok {
			found = append(found, d)
		}
	}
	return found
}

func ecsNumber(text string, otherwise, low, high int) (int, error) {
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("%q is not a number between %d and %d", text, low, high)
	}
	return n, nil
}
