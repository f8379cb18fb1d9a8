package show

import (
	"fmt"
	"time"
)

const (
	day  = 24 * time.Hour
	year = 365 * day
)

// Relative says how far a time is, in one unit: "in 12d", "3h ago", "now".
func Relative(t, now time.Time) string {
	d := t.Sub(now)
	switch {
	case d >= time.Second:
		return "in " + unit(d)
	case d <= -time.Second:
		return unit(-d) + " ago"
	default:
		return "now"
	}
}

// Rough writes a length in one unit, as in a cell of a table: "12d", "3h".
func Rough(d time.Duration) string { return unit(max(d, 0)) }

// unit takes the largest unit of which there are at least two, so that "1d" never stands for 47 hours.
func unit(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d < 2*year:
		return fmt.Sprintf("%dd", d/day)
	default:
		return fmt.Sprintf("%dy", d/year)
	}
}

// Duration writes a length with days, to the second: "90d", "1d12h0m0s", "1h0m0s".
func Duration(d time.Duration) string {
	days, rest := d/day, (d % day).Truncate(time.Second)
	switch {
	case days == 0:
		return rest.String()
	case rest == 0:
		return fmt.Sprintf("%dd", days)
	default:
		return fmt.Sprintf("%dd%s", days, rest)
	}
}
