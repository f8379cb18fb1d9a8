package casimulator

import (
	"cmp"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"
)

const (
	// globalSignQuota is that of an account of which the scenario says nothing.
	globalSignQuota = 1_000_000
	// globalSignPage is how many entries a page has at most, and when nothing is asked for.
	globalSignPage = 100
)

// remaining is how many certificates the account may still ask for.
func (a *globalsignAPI) remaining(account GlobalSignAccount) int {
	quota := globalSignQuota
	if account.Quota != nil {
		quota = *account.Quota
	}
	used := 0
	for _, o := range a.sim.store.all(GlobalSign) {
		used += o.Billed
	}
	return max(0, quota-used)
}

func (a *globalsignAPI) quota(*call) reply { return globalSignCount(a.remaining(a.account())) }

func globalSignCount(n int) reply {
	return globalSignReply(http.StatusOK, map[string]int{"value": n})
}

// certificates are all that were issued, rekeyed ones too, in the order in which the account asked for them.
func (a *globalsignAPI) certificates(now time.Time) []*request {
	var out []*request
	for _, o := range a.sim.store.all(GlobalSign) {
		if o.Forgotten {
			continue
		}
		for i := range o.Requests {
			if r := &o.Requests[i]; r.state(now) == Issued {
				out = append(out, r)
			}
		}
	}
	return out
}

func (a *globalsignAPI) countIssued(c *call) reply {
	return globalSignCount(len(a.certificates(c.now)))
}

func (a *globalsignAPI) countRevoked(c *call) reply {
	n := 0
	for _, r := range a.certificates(c.now) {
		if !r.RevokedAt.IsZero() {
			n++
		}
	}
	return globalSignCount(n)
}

// The three statistics differ in the time that from and to are about.

func (a *globalsignAPI) statsIssued(c *call) reply {
	return a.stats(c, func(r *request) time.Time { return a.sim.said(r.issuedAt(c.now)) })
}

func (a *globalsignAPI) statsRevoked(c *call) reply {
	return a.stats(c, func(r *request) time.Time {
		if r.RevokedAt.IsZero() {
			return time.Time{}
		}
		return a.sim.said(r.RevokedAt)
	})
}

func (a *globalsignAPI) statsExpiring(c *call) reply {
	return a.stats(c, func(r *request) time.Time { return r.NotAfter })
}

// globalSignEntry is a certificate in a list.
type globalSignEntry struct {
	SerialNumber string `json:"serial_number"`
	NotBefore    int64  `json:"not_before"`
	NotAfter     int64  `json:"not_after"`
}

// stats lists certificates by a time, oldest first. A zero time leaves one out.
func (a *globalsignAPI) stats(c *call, when func(*request) time.Time) reply {
	q := globalSignQuery{complaints: complaints{}}
	page := q.number(c, "page", 1, 1, math.MaxInt32)
	size := q.number(c, "per_page", globalSignPage, 1, globalSignPage)
	from := q.number(c, "from", 0, 0, math.MaxInt64)
	to := q.number(c, "to", math.MaxInt64, 0, math.MaxInt64)
	for name := range c.request.URL.Query() {
		if !slices.Contains([]string{"page", "per_page", "from", "to"}, name) {
			q.add(name, "there is no such parameter")
		}
	}
	if len(q.complaints) > 0 {
		c.violate("query: %v", map[string]string(q.complaints))
		return globalSignProblem(http.StatusUnprocessableEntity, "query parameters are invalid", q.complaints)
	}
	var found []*request
	listed := a.sim.said(c.listed())
	for _, r := range a.certificates(c.now) {
		if at := when(r); !at.IsZero() && !a.sim.said(r.issuedAt(c.now)).After(listed) && at.Unix() >= from && at.Unix() <= to {
			found = append(found, r)
		}
	}
	slices.SortStableFunc(found, func(x, y *request) int { return cmp.Compare(when(x).Unix(), when(y).Unix()) })
	total := len(found)
	begin := min(int64(total), (page-1)*size)
	found = found[begin:min(int64(total), begin+size)]
	entries := make([]globalSignEntry, len(found))
	for i, r := range found {
		entries[i] = globalSignEntry{r.Serial, r.NotBefore.Unix(), r.NotAfter.Unix()}
	}
	out := globalSignReply(http.StatusOK, entries)
	out.header.Set("Total-Count", strconv.Itoa(total))
	return out
}

// globalSignQuery reads the parameters of a list.
type globalSignQuery struct{ complaints }

func (q globalSignQuery) number(c *call, name string, otherwise, low, high int64) int64 {
	text := c.request.URL.Query().Get(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < low || n > high {
		q.add(name, "%q is not a number between %d and %d", text, low, high)
		return otherwise
	}
	return n
}
