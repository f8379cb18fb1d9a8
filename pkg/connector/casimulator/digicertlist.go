package casimulator

import (
	"cmp"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// digicertMaxPage is the most that a list has at once, and what it has without a limit.
const digicertMaxPage = 1000

// digicertPage is the filters, the order and the part of a list that is asked for (page "Services API", filters,
// sorting, and pagination parameters).
type digicertPage struct {
	filters       map[string]string
	sort          []string
	offset, limit int
}

// page reads the query of a list. A filter that the list does not have is refused, which the real service may not do.
func (a *digicertAPI) page(c *call, filters []string) (digicertPage, reply, bool) {
	query, err := url.ParseQuery(c.request.URL.RawQuery)
	if err != nil {
		return digicertPage{}, a.wrong(c, "bad_request_format", "query: %v", err), false
	}
	p := digicertPage{filters: map[string]string{}, limit: digicertMaxPage}
	for name, values := range query {
		value := values[len(values)-1]
		switch {
		case name == "offset" || name == "limit":
			n, err := strconv.Atoi(value)
			if err != nil || n < 0 || name == "limit" && n > digicertMaxPage {
				return p, a.wrong(c, "invalid_"+name, "%s is %q", name, value), false // ours
			}
			if name == "offset" {
				p.offset = n
			} else if n > 0 {
				p.limit = n
			}
		case name == "sort":
			p.sort = strings.Split(value, ",")
		case strings.HasPrefix(name, "filters[") && slices.Contains(filters, strings.TrimSuffix(name[len("filters["):], "]")):
			p.filters[strings.TrimSuffix(name[len("filters["):], "]")] = value
		case name == "minutes" || name == "seconds":
			p.filters[name] = value
		default:
			return p, a.wrong(c, "invalid_filter", "there is no parameter %q", name), false // ours
		}
	}
	return p, reply{}, true
}

// matches says whether a filter lets values pass. One that is not set does.
func (p digicertPage) matches(name string, values ...string) bool {
	want, ok := p.filters[name]
	return !ok || slices.ContainsFunc(values, func(v string) bool { return strings.EqualFold(v, want) })
}

func (p digicertPage) body(total int) map[string]int {
	return map[string]int{"total": total, "limit": p.limit, "offset": p.offset}
}

func cut[T any](all []T, p digicertPage) []T {
	from := min(p.offset, len(all))
	return all[from:min(from+p.limit, len(all))]
}

// list answers page "List orders".
func (a *digicertAPI) list(c *call) reply {
	p, wrong, ok := a.page(c, []string{
		"id", "status", "organization_id", "product_name_id", "common_name", "domain_name", "date_created", "certificate_id", "serial_number",
		"is_renewed", "search",
	})
	if !ok {
		return wrong
	}
	created, err := parseRange(p.filters["date_created"], time.UTC)
	if err != nil {
		return a.wrong(c, "invalid_filter", "filters[date_created]: %v", err) // ours
	}
	var found []*order
	until := c.listed()
	for _, o := range a.candidates(p) {
		if !o.Forgotten && !o.Accepted.After(until) && created.holds(c.sim.said(o.Accepted)) && a.passes(c, p, o) {
			found = append(found, o)
		}
	}
	if wrong, ok := a.sortOrders(c, p, found); !ok {
		return wrong
	}
	out := []any{}
	for _, o := range cut(found, p) {
		out = append(out, a.listed(c, o))
	}
	return jsonReply(http.StatusOK, map[string]any{"orders": out, "page": p.body(len(found))})
}

// candidates are those that an index finds, if there is one.
func (a *digicertAPI) candidates(p digicertPage) []*order {
	one := func(o *order, ok bool) []*order {
		if !ok {
			return nil
		}
		return []*order{o}
	}
	if id, ok := p.filters["id"]; ok {
		return one(a.sim.store.byID(DigiCert, id))
	}
	if id, ok := p.filters["certificate_id"]; ok {
		return one(a.sim.store.byRequest(DigiCert, id))
	}
	if serial, ok := p.filters["serial_number"]; ok {
		return one(a.sim.store.bySerial(DigiCert, strings.ToUpper(serial)))
	}
	if name, ok := p.filters["common_name"]; ok {
		return a.sim.store.named(DigiCert, name)
	}
	return a.sim.store.all(DigiCert)
}

func (a *digicertAPI) passes(c *call, p digicertPage, o *order) bool {
	r := a.primary(c.now, o)
	if _, ok := p.filters["is_renewed"]; ok && !p.matches("is_renewed", map[bool]string{true: "1", false: "0"}[a.renewed(o)]) {
		return false
	}
	status := a.orderStatus(c.now, o)
	return p.matches("status", status) && p.matches("product_name_id", o.Product) && p.matches("common_name", r.CommonName) &&
		p.matches("organization_id", strconv.Itoa(c.sim.Credentials().DigiCertOrganization)) &&
		p.matches("domain_name", append([]string{r.CommonName}, r.DNSNames...)...) &&
		strings.Contains(r.CommonName, p.filters["search"])
}

func (a *digicertAPI) listed(c *call, o *order) map[string]any {
	r := a.primary(c.now, o)
	certificate := map[string]any{
		"id": number(r.ID), "common_name": r.CommonName, "dns_names": append(slices.Clone(r.DNSNames), r.IPAddresses...), "signature_hash": "sha256",
	}
	if r.state(c.now) == Issued {
		_, end := r.validity(c)
		certificate["valid_till"] = end.Format(digicertDate)
		certificate["days_remaining"] = int(end.Sub(c.sim.said(c.now)) / (24 * time.Hour))
	}
	return map[string]any{
		"id": number(o.ID), "certificate": certificate, "status": a.orderStatus(c.now, o), "is_renewed": a.renewed(o),
		"date_created": c.sim.said(o.Accepted).Format(digicertTime),
		"organization": map[string]any{"id": c.sim.Credentials().DigiCertOrganization, "name": "Example Inc"},
		"container":    map[string]any{"id": 1, "name": "Simulator"},
		"product":      a.productBody(o), "product_name_id": o.Product,
		"has_duplicates": hasKind(o, "duplicate"), "disable_renewal_notifications": false,
	}
}

// sortOrders sorts by the first property that sort names. Orders that it does not part stay in the order of their numbers.
func (a *digicertAPI) sortOrders(c *call, p digicertPage, orders []*order) (reply, bool) {
	if len(p.sort) == 0 {
		return reply{}, true
	}
	by := map[string]func(x, y *order) int{
		"id":           func(x, y *order) int { return cmp.Compare(number(x.ID), number(y.ID)) },
		"date_created": func(x, y *order) int { return x.Accepted.Compare(y.Accepted) },
		"common_name":  func(x, y *order) int { return strings.Compare(x.Requests[0].CommonName, y.Requests[0].CommonName) },
		"status": func(x, y *order) int {
			return strings.Compare(a.orderStatus(c.now, x), a.orderStatus(c.now, y))
		},
	}
	name, descending := strings.CutPrefix(p.sort[0], "-")
	compare, ok := by[name]
	if !ok {
		return a.wrong(c, "invalid_sort", "nothing can be sorted by %q", name), false // ours
	}
	slices.SortStableFunc(orders, func(x, y *order) int {
		if descending {
			return compare(y, x)
		}
		return compare(x, y)
	})
	return reply{}, true
}

// timeRange is from, to; a zero time is open.
type timeRange struct{ from, to time.Time }

func (r timeRange) holds(t time.Time) bool {
	return (r.from.IsZero() || !t.Before(r.from)) && (r.to.IsZero() || t.Before(r.to))
}

// parseRange reads a date, from...to, <to or >from.
func parseRange(text string, zone *time.Location) (timeRange, error) {
	if text == "" {
		return timeRange{}, nil
	}
	from, to, ranged := strings.Cut(text, "...")
	if !ranged {
		if after, ok := strings.CutPrefix(text, ">"); ok {
			from, to = after, ""
		} else if before, ok := strings.CutPrefix(text, "<"); ok {
			from, to = "", before
		} else {
			to = from
		}
	}
	var r timeRange
	var err error
	if from != "" {
		if r.from, _, err = parseMoment(from, zone); err != nil {
			return r, err
		}
	}
	if to != "" {
		var length time.Duration
		if r.to, length, err = parseMoment(to, zone); err != nil {
			return r, err
		}
		r.to = r.to.Add(length)
	}
	return r, nil
}

// parseMoment reads a day, or a second; length is how long that is. A plus in a query is a space by now.
func parseMoment(text string, zone *time.Location) (at time.Time, length time.Duration, err error) {
	if at, err = time.ParseInLocation(digicertDate, text, zone); err == nil {
		return at, 24 * time.Hour, nil
	}
	at, err = time.ParseInLocation("2006-01-02 15:04:05", strings.Replace(text, "+", " ", 1), zone)
	return at, time.Second, err
}

// changes answers page "Status change list".
func (a *digicertAPI) changes(c *call) reply {
	p, wrong, ok := a.page(c, []string{"status_last_updated"})
	if !ok {
		return wrong
	}
	within, wrong, ok := a.changeRange(c, p)
	if !ok {
		return wrong
	}
	out := []any{}
	for _, o := range a.sim.store.all(DigiCert) {
		if at := c.sim.said(a.lastChange(c.now, o)); !o.Forgotten && within.holds(at) {
			out = append(out, map[string]any{
				"order_id": number(o.ID), "certificate_id": number(o.newest().ID), "status": a.orderStatus(c.now, o),
			})
		}
	}
	if len(out) == 0 {
		return jsonReply(http.StatusOK, map[string]any{})
	}
	return jsonReply(http.StatusOK, map[string]any{"orders": cut(out, p)})
}

// changeRange is at most seven days; dates are in Mountain Daylight Time.
func (a *digicertAPI) changeRange(c *call, p digicertPage) (timeRange, reply, bool) {
	if text, ok := p.filters["status_last_updated"]; ok {
		r, err := parseRange(text, time.FixedZone("MDT", -6*60*60))
		if err != nil {
			return r, a.wrong(c, "invalid_filter", "filters[status_last_updated]: %v", err), false // ours
		}
		if r.from.IsZero() || r.to.IsZero() || r.to.Sub(r.from) > 8*24*time.Hour {
			return r, a.wrong(c, "time_frame_too_long", "the time frame is longer than seven days"), false
		}
		return r, reply{}, true
	}
	minutes, errM := strconv.Atoi(cmp.Or(p.filters["minutes"], "0"))
	seconds, errS := strconv.Atoi(cmp.Or(p.filters["seconds"], "0"))
	back := time.Duration(minutes)*time.Minute + time.Duration(seconds)*time.Second
	switch {
	case errM != nil || errS != nil || back <= 0:
		return timeRange{}, a.wrong(c, "missing_time_frame", "minutes, seconds or filters[status_last_updated] is required"), false // ours
	case back > 7*24*time.Hour:
		return timeRange{}, a.wrong(c, "time_frame_too_long", "the time frame is longer than seven days"), false
	}
	return timeRange{from: c.sim.said(c.now).Add(-back)}, reply{}, true
}

// lastChange is when the status of an order was another one before.
func (a *digicertAPI) lastChange(now time.Time, o *order) time.Time {
	last := o.Accepted
	for i := range o.Requests {
		r := &o.Requests[i]
		for _, at := range []time.Time{r.Accepted, r.approvedAt(now), r.rejectedAt(now), r.CancelledAt, r.issuedAt(now), r.RevokedAt} {
			if at.After(last) && !at.After(now) {
				last = at
			}
		}
	}
	return last
}
