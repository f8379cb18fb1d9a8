package core

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"time"

	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

const (
	// defaultFraction is the part of the lifetime after which to renew when a policy says nothing.
	defaultFraction = 2.0 / 3

	// Renewal is kept away from both ends of the lifetime: at least 1/earliestPart of it after the start, and
	// before the end at least the margin, which is 1/marginPart of the lifetime from minMargin to maxMargin.
	earliestPart = 10
	marginPart   = 10
	minMargin    = time.Minute
	maxMargin    = time.Hour

	// tooShortPart bounds renew_before: a certificate that would be renewed in the first third of its life is too
	// short for it.
	tooShortPart = 3

	// spreadPart is the share of the time from the renewal to the end over which equal certificates are spread.
	spreadPart = 10

	// freezePart is the share of the time from the renewal to the end that no freeze window may take.
	freezePart = 4
)

// validity is the time for which a certificate version is valid.
type validity struct{ notBefore, notAfter time.Time }

// renewal is when a certificate is renewed, and by which rule.
type renewal struct {
	// Time is the decision: due + spread, out of freeze windows, not before the earliest time asked for.
	Time time.Time
	// Due is the policy's own time, without spread and freeze windows.
	Due time.Time
	// Spread is how much later than others this certificate is.
	Spread time.Duration
	Rule   string
	// Frozen is the window that made it later; nil: none did.
	Frozen *store.FreezeWindow
	// Forced tells that a freeze window was not kept, because the certificate would come too near to its end.
	Forced bool
}

// renewalOf decides when to renew. It is a pure function: the same certificate gets the same time from every replica.
// Earliest is for what comes after a failure, or late; the zero time asks for the plan itself.
func renewalOf(p *store.Policy, certificateID string, v validity, earliest time.Time) renewal {
	r := renewal{}
	r.Due, r.Rule = dueTime(p, v)
	left := v.notAfter.Sub(r.Due)
	window := max(left/spreadPart, 0)
	r.Spread = spread(certificateID, window)
	if window > 0 {
		r.Rule += ", spread over " + words(window)
	}
	t := r.Due.Add(r.Spread)
	if earliest.After(t) {
		t = earliest
	}
	// The last moment keeps the certificates apart too: they count back from it.
	last := v.notAfter.Add(-left/freezePart - r.Spread)
	r.thaw(p.FreezeWindows, t, last)
	return r
}

// dueTime is when the policy wants the certificate renewed.
func dueTime(p *store.Policy, v validity) (time.Time, string) {
	lifetime := v.notAfter.Sub(v.notBefore)
	if lifetime <= 0 {
		return v.notBefore, "policy " + p.ID + ": the certificate has no lifetime"
	}
	rule := "policy " + p.ID + ": "
	var after time.Duration
	switch {
	case p.RenewBefore > 0 && lifetime-p.RenewBefore >= lifetime/tooShortPart:
		after = lifetime - p.RenewBefore
		rule += words(p.RenewBefore) + " before the end"
	case p.RenewBefore > 0:
		after = part(lifetime, defaultFraction)
		rule += "2/3 of the lifetime, which is too short for " + words(p.RenewBefore) + " before the end"
	case p.RenewAtFraction > 0:
		after = part(lifetime, p.RenewAtFraction)
		rule += strconv.FormatFloat(p.RenewAtFraction, 'g', 4, 64) + " of the lifetime"
	default:
		after = part(lifetime, defaultFraction)
		rule += "2/3 of the lifetime"
	}
	bounded := min(max(after, lifetime/earliestPart), lifetime-endMargin(lifetime))
	if bounded != after {
		rule += ", brought to " + words(bounded) + " after the start to stay away from its ends"
	}
	return v.notBefore.Add(bounded), rule
}

// endMargin is the least time between renewal and end.
func endMargin(lifetime time.Duration) time.Duration {
	return min(max(lifetime/marginPart, minMargin), maxMargin, lifetime/2)
}

func part(d time.Duration, f float64) time.Duration { return time.Duration(float64(d) * f) }

// spread is a place in [0, window) that belongs to the certificate.
func spread(certificateID string, window time.Duration) time.Duration {
	seconds := uint64(window / time.Second)
	if seconds == 0 {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(certificateID))
	return time.Duration(mix(h.Sum64())%seconds) * time.Second
}

// mix spreads the bits of an FNV hash, whose low bits are alike for names that end alike (the finaliser of MurmurHash3).
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// thaw moves t out of the freeze windows, and not beyond last.
func (r *renewal) thaw(windows []store.FreezeWindow, t, last time.Time) {
	r.Time = t
	sorted := slices.Clone(windows)
	slices.SortFunc(sorted, func(a, b store.FreezeWindow) int { return a.Start.Compare(b.Start) })
	for i := range sorted {
		w := sorted[i]
		if r.Time.Before(w.Start) || !r.Time.Before(w.End) {
			continue
		}
		r.Frozen = &w
		// The end of the freeze must not be a stampede.
		r.Time = later(t, w.End.Add(r.Spread))
		if r.Time.After(last) {
			r.Time, r.Forced = later(t, last), true
			return
		}
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// frozenAt finds the freeze window that a time lies in.
func frozenAt(p *store.Policy, t time.Time) *store.FreezeWindow {
	for i := range p.FreezeWindows {
		if w := p.FreezeWindows[i]; !t.Before(w.Start) && t.Before(w.End) {
			return &w
		}
	}
	return nil
}

const (
	firstDelay = 15 * time.Minute
	maxDelay   = 24 * time.Hour
	minDelay   = 10 * time.Second
)

// delayAfter is how long to wait before a fresh job after the given number of failed ones: it doubles from 15 minutes to
// a day, and never takes more than a quarter of what the certificate has left. An expired one goes on being tried.
func delayAfter(failures int, left time.Duration) time.Duration {
	d := firstDelay
	for i := 1; i < failures && d < maxDelay; i++ {
		d *= 2
	}
	d = min(d, maxDelay)
	if left > 0 {
		d = min(d, left/freezePart)
	}
	return max(d, minDelay)
}

const (
	firstBackoff = 15 * time.Second
	maxBackoff   = 30 * time.Minute
)

// backoffAfter is the most that a job waits before its next try; the caller draws below it. Short certificates have short
// backoffs: at most a tenth of what is left.
func backoffAfter(attempt int, left time.Duration) time.Duration {
	d := firstBackoff
	for i := 1; i < attempt && d < maxBackoff; i++ {
		d *= 2
	}
	d = min(d, maxBackoff)
	if left > 0 {
		d = min(d, left/10)
	}
	return max(d, time.Second)
}

// words spells a duration in its largest fitting units.
func words(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= 2*day && d%day < time.Hour:
		return fmt.Sprintf("%d days", d/day)
	case d >= 2*day:
		return fmt.Sprintf("%.1f days", float64(d)/float64(day))
	case d >= time.Hour:
		return d.Round(time.Minute).String()
	default:
		return d.Round(time.Second).String()
	}
}
